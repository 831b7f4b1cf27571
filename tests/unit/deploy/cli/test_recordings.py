"""
Tasks, flags, help and JSON documents are those of before deploy/cli.

A change here is a change for scripts: it stands in CHANGELOG.md.
"""

import dataclasses
import io
import json
import types
from pathlib import Path

import pytest

from deploy import errors
from deploy.bundle.store import Bundle
from deploy.cli import report
from deploy.cli.terminal import fail, finish
from deploy.demo.demo import DemoReport
from deploy.errors import CanaryRejected, ReleasePaused, TransportError
from deploy.host.protocol import Unfinished
from deploy.lab.config import HostState, LabHost, LabStatus
from deploy.provision.report import Change, Failure, ProvisionReport, Warned
from deploy.release.events import Ending, ReleaseEvent, ReleaseOutcome
from deploy.release.plan import plan_release
from deploy.verify.report import Finding, VerifyReport
from deploy.versions.matrix import load_matrix
from runtime.bench.machine import BenchMachine
from runtime.bench.report import BenchReport, Result
from runtime.bench.sample import Ceilings, RunSample
from runtime.bench.work import LINES
from tests.builders import make_observed, make_policy, make_serving, make_settled, make_slot
from tests.recorded import FOLDER, differences, recorded, recorded_help
from tests.unit.deploy.demo.test_report import BEGAN, make_record, make_report

HOSTS = ("n1", "n2", "n3", "n4")
LOST = TransportError("n4: cannot be reached", why="timed out", fix="ping it", host="n4")
# Help that had to change, as in CHANGELOG.md: {before: now}.
HELP_CHANGED = {
    "Enable debug output.": "Print the traceback of an error, and log what invoke does.",
    "NAME of inventories/NAME.yml (default: `fleet` in invoke.yaml).": (
        "NAME of inventories/NAME.yml, or the path of a .yml file (default: `fleet` in "
        "invoke.yaml)."
    ),
    "Do not ask; for CI.": "Do not ask before hosts are changed; for CI.",
    "in percent, 1 to 50.": (
        "in percent, 1 to 50 (default: release.canary.share_pct of the fleet)."
    ),
    "until interrupted.": "until interrupted, with --json as lines.",
    "nan or garbled.": "nan or garbled (default good-v1).",
    "Directory to write.": "Directory to write (default .slipway/models/KIND).",
    "More arguments for pytest.": "More arguments for pytest, separated by spaces.",
}
TASKS = sorted(p.stem for p in (FOLDER / "help").iterdir() if p.stem not in {"list", "core"})


def words(text):
    """
    Return *text* without its line breaks, which follow from the width of the longest flag.
    """
    return " ".join(text.split())


def expected_help(name):
    text = words(recorded_help(name))
    for before, now in HELP_CHANGED.items():
        text = text.replace(before, now)
    return text


def test_the_tasks_are_those_of_before(inv):
    assert inv("--list") == (0, recorded_help("list"), "")


def test_invokes_own_flags_are_those_of_before(inv):
    code, out, err = inv("--help")
    assert (code, words(out), err) == (0, expected_help("core"), "")


@pytest.mark.parametrize("task", TASKS)
def test_the_help_of_a_task_is_that_of_before(inv, task):
    code, out, err = inv("--help", task)
    assert (code, words(out), err) == (0, expected_help(task), "")


def test_every_change_of_help_is_one_of_a_recording():
    """
    A change that is undone leaves the list.
    """
    texts = "\n".join(words(recorded_help(name)) for name in [*TASKS, "core"])
    assert [before for before in HELP_CHANGED if before not in texts] == []


def printed(capsys, document, error=None):
    """
    Return the document as the task prints it.
    """
    if error is None:
        finish(document, "", None, as_json=True)
    else:
        with pytest.raises(SystemExit):
            finish(document, "", error, as_json=True)
    return json.loads(capsys.readouterr().out)


def provision_report(*, check=False, failed=()):
    changes = (Change("n1", "packages", "install"), Change("n1", "/etc/x", "create", "+ text"))
    ok = tuple(host for host in HOSTS if host not in {f.host for f in failed})
    warning = Warned("n1", "package source", "unsigned", "correct it")
    commands, changes = dict.fromkeys(HOSTS, 1), () if failed else changes
    return ProvisionReport(check, ok, changes, failed, commands, 2, (warning,))


def provision_failed():
    result = provision_report(failed=(Failure("n4", "timed out", "ping", "TransportError"),))
    return result.as_json(), result.error


def verify_report(*failed):
    return VerifyReport(HOSTS, 84, 4, tuple(failed), Path("reports/verify.xml"), 5.4321)


def verify_failed():
    result = verify_report(Finding("n4", "reachable", "timed out"))
    return result.as_json(), result.error


def make_bundle():
    manifest = types.SimpleNamespace(version="v1.0.0")
    return Bundle("0" * 64, manifest, Path("bundles/0"), Path("blobs"))


def make_plan(*observed):
    return plan_release(
        fleet="lab",
        bundle="b2",
        version="v2",
        canary_pct=10,
        policy=make_policy(),
        observed={host.host: host for host in observed},
    )


FRESH = [make_observed(host) for host in HOSTS]
SETTLED = [make_settled(host) for host in HOSTS]
RELEASED = [make_settled(host, good=[("b2", "v2")]) for host in HOSTS]


def outcome(name, ending, error=None):
    """
    The evidence is the executor's, and is compared by the executor's own tests.
    """
    evidence = recorded(name)["evidence"]
    result = ReleaseOutcome(
        "20260101T000000-v2", ending, "the numbers", evidence, error, "v2", "10 %"
    )
    return result.as_json()  # `finish` lays the same error over it


def rejected():
    return CanaryRejected("r: refused", why="6 of 11", fix="look")


def releasing():
    """
    Two slots, of which one holds the canary, and the lease of its operator.
    """
    blue = make_serving("blue", weight_pct=90)
    green = make_serving("green", "b2", "v2", weight_pct=10)
    good = make_settled().good
    unfinished = Unfinished("r", "slot.stop")
    return [
        make_observed(host, blue, green, good, lease_owner="ops@x:1:0", unfinished=unfinished)
        for host in HOSTS
    ]


def stopped():
    """
    A host whose other slot holds an earlier release.
    """
    green = make_slot("green", bundle="b0", version="v0")
    return make_observed("n1", make_serving(), green, make_settled().good)


def status(observed):
    return report.status_json("lab", {getattr(o, "host"): o for o in observed})  # noqa: B009


def lab(*hosts):
    return report.lab_json(LabStatus(Path("/lab"), "slip0", "10.78.0.0/24", hosts))


def lab_host(name):
    return LabHost(name, "10.78.0.11", HostState.RUNNING, 7, 12, 8)


def matrix():
    """
    The rows that there were; others may have other keys empty.
    """
    names = {row["name"] for row in recorded("matrix")["rows"]}
    rows = [row for row in report.matrix_json(load_matrix())["rows"] if row["name"] in names]
    return {"rows": rows}


def demo():
    base = make_report([make_record(), make_record(version="v1.2.0")])
    events = [
        ReleaseEvent(BEGAN, name, "text", None)
        for name in {row["event"] for row in recorded("demo")["timeline"]} - {"traffic"}
    ]
    provisioned = {"took_s": 1.0, "changes": 0, "commands_per_host": dict.fromkeys(HOSTS, 1)}
    numbers = {"first_provision": provisioned, "second_provision": provisioned}
    events.append(dataclasses.replace(events[0], host="n1"))
    fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    return DemoReport(**fields | {"events": tuple(events), "numbers": numbers}).as_json()


def bench():
    out = io.StringIO()
    result = BenchReport(out, as_json=True)
    machine = BenchMachine("CPU", None, "3.11", "2.13", None, "3.7", "2026-01-01T00:00:00+00:00")
    how = {"precision": "fp32", "runs": 1, "runs_mix": 1, "seed": 0}
    result.begin(machine, Ceilings(1.0, 1.0, 1.0), "tiny", "cpu", **how)
    result.opened("slipway", "this checkout")
    whole = {f.name: 1.0 for f in dataclasses.fields(RunSample)}
    whole |= {"prefill_tflop_s": None, "counted_tflop_s": None}
    result.line("slipway", Result(LINES["batch-1"], [RunSample(**whole)]))
    result.end()
    return json.loads(out.getvalue())


DOCUMENTS = {
    "provision": lambda: (provision_report().as_json(),),
    "provision-check": lambda: (provision_report(check=True).as_json(),),
    "provision-failed": provision_failed,
    "verify": lambda: (verify_report().as_json(),),
    "verify-failed": verify_failed,
    "bundle": lambda: (report.bundle_json(make_bundle(), "v1.0.0"),),
    "plan-first": lambda: (report.plan_json(make_plan(*FRESH)),),
    "plan": lambda: (report.plan_json(make_plan(*SETTLED)),),
    "plan-unchanged": lambda: (report.plan_json(make_plan(*RELEASED)),),
    "release-first": lambda: (outcome("release-first", Ending.PROMOTED),),
    "release": lambda: (outcome("release", Ending.PROMOTED),),
    "release-noop": lambda: (outcome("release-noop", Ending.NOOP),),
    "release-rejected": lambda: (
        outcome("release-rejected", Ending.REVERTED, rejected()),
        rejected(),
    ),
    "release-paused": lambda: (
        outcome("release-paused", Ending.PAUSED),
        ReleasePaused("r: paused", why="no requests", fix="look"),
    ),
    "rollback": lambda: (outcome("rollback", Ending.ROLLED_BACK),),
    "rollback-noop": lambda: (outcome("rollback-noop", Ending.NOOP),),
    "status": lambda: (status(SETTLED),),
    "status-releasing": lambda: (status(releasing()),),
    "status-unreachable": lambda: (
        report.status_json("lab", {o.host: o for o in SETTLED} | {"n1": stopped(), "n4": LOST}),
    ),
    "status-unprovisioned": lambda: (
        report.status_json("lab", dict.fromkeys(HOSTS, LOST)),
    ),
    "matrix": lambda: (matrix(),),
    "lab.up": lambda: (lab(*map(lab_host, HOSTS)),),
    "lab.status": lambda: (lab(*map(lab_host, HOSTS)),),
    "lab.status-down": lambda: (lab(),),
    "demo": lambda: (demo(),),
    "bench.engine": lambda: (bench(),),
}  # fmt: skip
ERRORS = sorted(p.stem for p in (FOLDER / "json").glob("error-*.json"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_has_the_keys_and_types_of_before(capsys, name):
    document = printed(capsys, *DOCUMENTS[name]())
    assert differences(recorded(name), document) == []


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_the_keys_and_the_exit_code_of_before(capsys, name):
    before = recorded(name)["error"]
    kind = getattr(errors, before["kind"])
    with pytest.raises(SystemExit) as ended:
        fail(kind("what", why="why", fix="fix", host=before.get("host")), as_json=True)
    assert ended.value.code == before["exit_code"]
    assert differences({"error": before}, json.loads(capsys.readouterr().out)) == []


def test_every_recording_is_compared():
    names = {path.stem for path in (FOLDER / "json").iterdir()}
    assert names == {*DOCUMENTS, *ERRORS}


def test_the_words_for_an_ending_are_those_of_before():
    """
    All that were recorded are still there; a rollback's is the one that changed.
    """
    before = {recorded(name)["outcome"] for name in DOCUMENTS if name.startswith("release")}
    assert before == {str(e) for e in Ending} - {"rolled_back"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_dropped_or_renamed_key_would_be_noticed(capsys, name):
    """
    Negative control, for each key at the top and each document with one.
    """
    document = printed(capsys, *DOCUMENTS[name]())
    for key in document:
        dropped = {k: v for k, v in document.items() if k != key}
        assert differences(recorded(name), dropped) == [f"$.{key}: gone"]


def test_a_slip_deep_inside_would_be_noticed():
    """
    Negative control: within lists, maps of hosts and errors; another type is one as well.
    """
    before = recorded("status-unreachable")
    now = recorded("status-unreachable")
    del now["hosts"][0]["slots"][0]["weight_pct"]
    now["hosts"][-1]["error"]["exit_code"] = "5"
    assert any("weight_pct: gone" in line for line in differences(before, now))
    assert any("exit_code: number is str now" in line for line in differences(before, now))

    now = recorded("provision")
    now["commands"]["n1"] = "1"
    assert differences(recorded("provision"), now) != []
