"""
The supervision of the worker, with workers that are scripted, die, or never answer.
"""

import json
import subprocess
import sys
import time

import pytest

from deploy.inventory.schema import Host, Ssh
from deploy.inventory.secrets import SecretValue
from deploy.provision import supervise
from deploy.provision.report import EventKind, ProvisionEvent
from deploy.provision.report_builder import ReportBuilder
from deploy.provision.worker_request import HostRequest, WorkerRequest
from deploy.transport import sudo
from tests.unit.deploy.provision.builders import make_resources

HOSTS = ["n1", "n2", "n3"]


def event(host, kind, **fields):
    return json.dumps({"event": {"host": host, "kind": kind, **fields}})


def make_request(**ssh):
    ssh = Ssh().model_copy(update=ssh)
    host = Host(name="n1", address="192.0.2.1", groups=(), row="", ssh=ssh, vars={})
    resources = make_resources()
    request = HostRequest.of(host, resources, fence=1)
    return WorkerRequest(packed_program=b"program", hosts=(request,))


def work(script, deadline_s=60.0, began=None):
    """
    Run *script* as the worker; return the report and the events.

    Args:
        began: A file; the deadline counts from when the worker has made it.
    """
    events: list[ProvisionEvent] = []
    builder = ReportBuilder(HOSTS, events.append)
    worker = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while began is not None and not began.exists():
            assert worker.poll() is None
            time.sleep(0.01)
        end_s = time.monotonic() + deadline_s
        supervise.supervise(worker, make_request(), builder, end_s, supervise.WorkerInput())
    finally:
        worker.kill()
        worker.wait()
    return builder.report(False, 1.0), events


def saying(*lines, then=""):
    said = "\n".join(lines)
    return f"import sys, time\nsys.stdin.readline()\nprint({said!r}, flush=True)\n{then}"


def test_the_report_collects_the_messages_of_the_worker():
    """
    Changes, failures, counts and ends, in the order of the fleet.
    """
    script = saying(
        event("n3", "changed", resource="/x", change="create"),
        event("n1", "would_change", resource="/y", change="create", diff="+a"),
        event("n2", "failed", why="no answer", fix="look", resource="TransportError"),
        event("n3", "ok"),
        event("n1", "ok"),
        json.dumps({"commands": {"host": "n3", "commands": 7}}),
    )
    report, events = work(script)
    assert report.ok == ("n1", "n3")
    assert [(c.host, c.resource, c.diff) for c in report.changes] == [
        ("n1", "/y", "+a"),
        ("n3", "/x", None),
    ]
    assert [(f.host, f.why, f.error) for f in report.failed] == [
        ("n2", "no answer", "TransportError")
    ]
    assert report.commands == {"n3": 7}
    assert [e.kind for e in events][:2] == [EventKind.CHANGED, EventKind.WOULD_CHANGE]


def test_the_deadline_ends_a_worker_that_hangs(tmp_path):
    """
    Its hosts fail by name.
    """
    said = "\n".join(
        [event("n1", "ok"), event("n2", "changing", resource="packages", change="install")]
    )
    script = (
        f"import time\nprint({said!r}, flush=True)\n"
        f"open({str(tmp_path / 'began')!r}, 'w').close()\ntime.sleep(600)"
    )
    report, _ = work(script, deadline_s=0.5, began=tmp_path / "began")  # does not wait 600 s
    assert report.ok == ("n1",)
    assert [(f.host, f.why) for f in report.failed] == [
        ("n2", "the run's deadline passed, at: packages"),
        ("n3", "the run's deadline passed, at: starting"),
    ]


def test_a_worker_that_breaks_fails_its_hosts():
    """
    Each host without a final message fails with the worker's error output.
    """
    report, _ = work(saying(event("n1", "ok"), then="sys.exit('out of memory')"))
    assert [f.host for f in report.failed] == ["n2", "n3"]
    assert "out of memory" in report.failed[0].why


def test_a_worker_that_never_reads_fails_all_hosts():
    """
    A worker that cannot start does not hang the run.
    """
    report, _ = work("raise SystemExit('no gevent')")
    assert [f.host for f in report.failed] == HOSTS


def test_the_document_has_the_documented_keys():
    """
    `changes` and `failed`.
    """
    report, _ = work(
        saying(
            event("n1", "changed", resource="/x", change="create"),
            event("n2", "failed", why="w", fix="f", resource="PortInUse"),
        )
    )
    document = report.as_json()
    assert document["changes"] == [{"host": "n1", "resource": "/x", "change": "create"}]
    assert document["failed"][0].keys() == {"host", "why", "fix", "error"}
    assert json.dumps(document)


def test_the_real_worker_ends_when_its_parent_does(tmp_path):
    """
    It stops if its input ends before its request is done.
    """
    worker = supervise.start_worker()
    # 192.0.2.1 is reserved for documentation: no host answers there.
    worker.stdin.write(make_request().model_dump_json() + "\n")
    worker.stdin.flush()
    assert json.loads(worker.stdout.readline())["event"]["kind"] == "connecting"
    worker.stdin.close()
    try:
        assert worker.wait(timeout=60) == 3
    finally:
        worker.kill()
        worker.stdout.close()
        worker.stderr.close()


def test_the_real_worker_reports_a_host_that_is_lost(tmp_path):
    """
    As a failed host with why and fix.
    """
    builder = ReportBuilder(["n1"], lambda _: None)
    request = make_request(known_hosts=tmp_path / "none", port=1, connect_timeout=1.0)
    [host] = request.hosts
    near = host.document | {"address": "127.0.0.1"}
    request = request.model_copy(update={"hosts": (host.model_copy(update={"document": near}),)})
    supervise.run_worker(request, builder, time.monotonic() + 120, supervise.WorkerInput())
    [failure] = builder.report(False, 1.0).failed
    assert (failure.host, failure.error) == ("n1", "TransportError")
    assert "127.0.0.1:1" in failure.why
    assert failure.fix


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": EventKind.CONNECTING}, "n1: connecting"),
        ({"kind": EventKind.FETCHING, "change": "fetching 35 wheels"}, "n1: fetching 35 wheels"),
        ({"kind": EventKind.FAILED, "why": "no answer"}, "n1: failed: no answer"),
        (
            {"kind": EventKind.CHANGED, "resource": "/x", "change": "create", "took_s": 1.25},
            "n1: changed /x: create (1.2s)",
        ),
        (
            {"kind": EventKind.CHANGING, "resource": "/x", "change": "c", "done": 1, "of": 3},
            "n1: [1/3] changing /x: c",
        ),
    ],
)
def test_an_event_prints_as_one_line_of_progress(fields, words):
    """
    An event printed is a line of progress.
    """
    assert str(ProvisionEvent(host="n1", **fields)) == words


def test_what_a_library_prints_is_no_message():
    """
    The run goes on, and the last of it is in the error if the worker dies.
    """
    printed = [f"warning {number}" for number in range(5000)]
    report, _ = work(saying(*printed, event("n1", "ok"), "[]", then="sys.exit(3)"))
    assert report.ok == ("n1",)
    assert {failure.host for failure in report.failed} == {"n2", "n3"}
    assert "[]" in report.failed[0].why


def test_the_password_for_sudo_reaches_the_worker_through_its_input(monkeypatch):
    """
    Not by its environment or arguments, and it is not in what prints the request.
    """
    monkeypatch.setattr(sudo, "_kept", SecretValue("Horse-7"))
    script = (
        "import json, os, sys\n"
        "line = sys.stdin.readline()\n"
        "seen = [json.loads(line)['sudo_password'], 'Horse-7' in str([*os.environ.items()])]\n"
        "print(json.dumps(seen), file=sys.stderr, flush=True)\n"
    )
    report, _ = work(script)
    assert '["Horse-7", false]' in report.failed[0].why
    assert "Horse-7" not in repr(make_request().model_copy(update={"sudo_password": "Horse-7"}))
