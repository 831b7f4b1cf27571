"""
Releases and rollbacks on booted hosts over real SSH, under live traffic and under faults.

The tests run the command line in separate processes.  Each of them leaves v1.0.0 serving.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.demo.load import LoadGenerator
from deploy.lab import lab
from deploy.transport.ssh import SshTransport
from deploy.wiring import checkout, lab_models
from deploy.wiring import hosts as connections
from tests.lab.conftest import IS_LONG

ROOT = Path(__file__).parents[2]
INVOKE = [sys.executable, "-m", "invoke"]


def command(args):
    """
    Return the command line; the bundles of earlier runs may have been built in another order.
    """
    is_release = args[0] in ("plan", "release")
    return [*INVOKE, *args, *(["--allow-older"] if is_release else []), "--json"]


def inv(*args, wanted=0):
    """
    Run a task with --json and return its document.  Its exit code must be *wanted*.
    """
    result = subprocess.run(
        command(args), cwd=ROOT, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    # `status` has an exit code of its own for hosts that are not as they should be.
    codes = (0, 26) if args[0] == "status" else (wanted,)
    assert result.returncode in codes, f"{result.returncode}\n{result.stdout}\n{result.stderr}"
    return json.loads(result.stdout)


def inv_until(text, then, *args):
    """
    Run a task; call *then* once its progress has *text*.

    Returns:
        (exit code, JSON document or None, seconds from *then* to the end).
    """
    began_s = None
    with subprocess.Popen(
        command(args), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        lines = []
        for line in process.stderr:
            lines.append(line)
            if text in line and began_s is None:
                began_s = time.monotonic()
                then(process)
        out = process.stdout.read()
        code = process.wait()
    assert began_s is not None, f"no {text!r} in:\n{''.join(lines)}"
    return code, (json.loads(out) if out else None), time.monotonic() - began_s


@pytest.fixture(scope="module")
def fleet(lab_hosts):
    return checkout.fleet("lab")


@pytest.fixture(scope="module")
def provisioned(fleet):
    inv("provision", "--yes")
    for version, kind in {
        "v1.0.0": "good-v1", "v1.1.0": "good-v2", "v1.2.0": "nan", "v1.3.0": "garbled",
    }.items():  # fmt: skip
        model = lab_models.make_lab_model(kind, None, print)
        inv("bundle", "--model", str(model), "--version", version)
    return fleet


@pytest.fixture
def v1(provisioned):
    """
    v1.0.0 serves on every host from one slot, whatever an earlier test left.
    """
    bring_v1()
    yield provisioned
    for name in ("n1", "n2", "n3", "n4"):
        lab.thaw(name)
        lab.heal(name)


def bring_v1():
    if any(shares != {"v1.0.0": 100} for shares in serving().values()):
        good = [{g["version"] for g in host["good"]} for host in inv("status")["hosts"]]
        if all("v1.0.0" in known for known in good):
            inv("rollback", "--to", "v1.0.0", "--yes")
        else:
            inv("release", "--version", "v1.0.0", "--yes")  # the first one: no canary
    assert all(shares == {"v1.0.0": 100} for shares in serving().values())


@pytest.fixture
def load(provisioned):
    """
    Live traffic, keep-alive and streams, for as long as the test runs.
    """
    prompts = json.loads((ROOT / ".slipway/models/nan/live_prompts.json").read_text())
    generator = LoadGenerator(
        [f"http://{host.address}:{provisioned.service.port}" for host in provisioned.hosts],
        prompts=prompts, rate_rps=40, connections=16, streams=4, max_tokens=8, stream_pause_s=1.0,
        stream_max_tokens=24,
    )  # fmt: skip
    generator.start()
    yield generator
    generator.stop()


def serving():
    """
    Return {host: {version: percent}} of the slots with traffic; {} for a host without an answer.
    """
    return {
        host["host"]: {s["version"]: s["weight_pct"] for s in host["slots"] if s["weight_pct"]}
        for host in inv("status")["hosts"]
    }


def on_host(fleet, name, *argv):
    transport = SshTransport(fleet.host(name))
    try:
        return transport.run(argv, timeout_s=30, check=False).stdout
    finally:
        transport.close()


def test_a_good_release_loses_nothing(v1, load):
    """
    A release and a rollback under keep-alive and streaming clients lose no request and cut no
    stream.
    """
    outcome = inv("release", "--version", "v1.1.0", "--canary", "10", "--yes")
    assert outcome["outcome"] == "promoted"
    assert all(shares == {"v1.1.0": 100} for shares in serving().values())

    outcome = inv("rollback", "--yes")
    assert outcome["outcome"] == "rolled_back"
    assert all(shares == {"v1.0.0": 100} for shares in serving().values())

    report = load.stop()
    assert (report.lost_requests, report.cut_streams) == (0, 0), report.losses
    assert report.streams > 20
    assert report.requests_by_version["v1.1.0"] > 50
    assert not report.errors_by_version


def test_a_release_that_fails_users_is_rejected_and_reverted(v1, load):
    """
    Its golden answers pass and live requests fail: the canary's gate reverts it.
    """
    outcome = inv("release", "--version", "v1.2.0", "--canary", "10", "--yes", wanted=8)

    assert outcome["outcome"] == "reverted"
    assert outcome["evidence"]["waves"][0]["gate"] == "http_request_error_rate"
    assert all(shares == {"v1.0.0": 100} for shares in serving().values())
    report = load.stop()
    assert (report.lost_requests, report.cut_streams) == (0, 0), report.losses


def test_a_release_with_wrong_answers_never_reaches_a_user(v1, load):
    """
    Its golden answers differ: it is reverted before it gets traffic.
    """
    outcome = inv("release", "--version", "v1.3.0", "--canary", "10", "--yes", wanted=24)

    assert outcome["outcome"] == "reverted"
    assert "golden" in outcome["reason"]
    assert load.stop().exposure("v1.3.0") is None
    assert all(shares == {"v1.0.0": 100} for shares in serving().values())


def test_a_canary_without_traffic_pauses_and_a_rollback_removes_it(v1):
    """
    Without requests there is no verdict, and no promotion.
    """
    outcome = inv("release", "--version", "v1.1.0", "--yes", wanted=10)
    assert outcome["outcome"] == "paused"
    assert all(shares == {"v1.0.0": 100} for shares in serving().values())
    assert inv("status")["release"]["paused"]

    inv("rollback", "--yes")

    assert inv("status")["release"] is None
    assert all(shares == {"v1.0.0": 100} for shares in serving().values())


@pytest.mark.parametrize("fault", [lab.freeze, lab.cut] if IS_LONG else [lab.freeze])
def test_a_host_that_stops_answering_ends_the_release(v1, load, fault):
    """
    Frozen or cut off during a release: the command ends within the lease's time and two connection
    attempts, its error names the host, and the other three serve the old release.
    """
    code, outcome, took_s = inv_until(
        "lease.acquired", lambda _: fault("n3"), "release", "--version", "v1.1.0", "--yes"
    )
    policy, ssh = v1.release, v1.hosts[0].ssh
    assert took_s < v1.service.start_timeout + policy.lease_ttl + 4 * ssh.connect_timeout
    assert code in (5, 9, 24), outcome  # lost while staging, or after it
    assert "n3" in json.dumps(outcome["error"])
    shares = serving()
    assert shares["n3"] == {}, "status reports it as unreachable"
    assert all(shares[name] == {"v1.0.0": 100} for name in ("n1", "n2", "n4"))

    lab.thaw("n3")
    lab.heal("n3")
    time.sleep(v1.release.lease_ttl)  # its lease was not released and has to expire
    inv("rollback", "--yes", wanted=0 if inv("status")["release"] else 20)
    assert all(shares == {"v1.0.0": 100} for shares in serving().values())


def test_hosts_go_back_by_themselves_after_a_killed_operator(v1, load):
    """
    The release gets SIGKILL during its canary.  Nobody does anything: when the lease is over, the
    host goes back by itself, and no request is lost.  A rollback has nothing more to change.
    """
    code, _, _ = inv_until(
        "traffic.shifted", lambda process: process.kill(), "release", "--version", "v1.1.0", "--yes"
    )
    assert code == -9
    assert serving()["n1"] == {"v1.0.0": 90, "v1.1.0": 10}, "control: nobody is there to undo it"
    refused = inv("rollback", "--yes", wanted=6)
    assert refused["error"]["kind"] == "LeaseHeld"

    time.sleep(v1.release.lease_ttl + 5 + 5)  # the lease, a tick, and the slot's stop

    assert all(shares == {"v1.0.0": 100} for shares in serving().values())
    assert load.stop().lost_requests == 0
    inv("rollback", "--yes")
    assert all(shares == {"v1.0.0": 100} for shares in serving().values())
    assert inv("status")["release"] is None


def test_a_second_operator_is_refused_during_a_release(v1, load):
    """
    The error names the holder of the lease; the first release is promoted.
    """
    refused = {}

    def second(_):
        refused.update(inv("release", "--version", "v1.1.0", "--yes", wanted=6))

    code, outcome, _ = inv_until(
        "lease.acquired", second, "release", "--version", "v1.1.0", "--yes"
    )
    assert refused["error"]["kind"] == "LeaseHeld"
    assert connections.actor() in refused["error"]["why"]
    assert (code, outcome["outcome"]) == (0, "promoted")


def test_a_second_release_of_the_same_bundle_is_a_noop(v1):
    outcome = inv("release", "--version", "v1.0.0", "--yes")
    assert outcome["outcome"] == "noop"


def test_a_plan_with_another_digest_is_refused(v1):
    """
    The digest is stable while the hosts do not change; another one is refused before any change.
    """
    digest = inv("plan", "--version", "v1.1.0")["digest"]
    assert inv("plan", "--version", "v1.1.0")["digest"] == digest
    refused = inv("release", "--version", "v1.1.0", "--plan", "0" * 12, "--yes", wanted=3)
    assert digest in refused["error"]["why"]


def test_a_share_outside_its_range_is_refused_before_anything_connects(v1):
    for share in ("0", "51", "ten"):
        refused = inv("release", "--version", "v1.1.0", "--canary", share, "--yes", wanted=19)
        assert share in refused["error"]["what"]


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda path: (path / "manifest.json.sig").unlink(), 11),
        (lambda path: (path / "files.tar").write_bytes(b"\0" * (path / "files.tar").stat().st_size),
         14),
        (lambda path: os.truncate(path / "files.tar", 1000), 15),
    ],
    ids=["unsigned", "tampered", "truncated"],
)  # fmt: skip
def test_a_bundle_that_differs_from_the_signed_one_is_refused(v1, tmp_path, damage, code):
    """
    Before any host is contacted; a host would refuse it too (tests/unit/deploy/host).
    """
    path = checkout.store().get("v1.1.0", "lab").directory
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    try:
        damage(path)
        inv("release", "--version", "v1.1.0", "--yes", wanted=code)
    finally:
        shutil.rmtree(path)
        shutil.copytree(copy, path)
    assert all(shares == {"v1.0.0": 100} for shares in serving().values())


def test_the_journal_has_an_intent_and_a_result_for_every_effect(v1):
    """
    On the host of the effect, in order.
    """
    lines = on_host(v1, "n1", "cat", "/var/lib/slipway/journal.jsonl").splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["seq"] for r in records] == sorted(r["seq"] for r in records)
    intents = [r for r in records if r["phase"] == "intent"]
    results = [r for r in records if r["phase"] == "result"]
    assert {"slot.start", "traffic.set", "slot.stop"} <= {r["step"] for r in intents}
    assert len(intents) - len(results) <= 1  # a killed operator may have left one open


def test_the_sandbox_of_the_runtime_is_tight(v1):
    """
    systemd-analyze rates its exposure at most 2.0, and the runtime's user can write only its state.
    """
    score = on_host(v1, "n1", "systemd-analyze", "security", "--no-pager",
                    "slipway-runtime@blue").strip().splitlines()[-1]  # fmt: skip
    assert float(score.split(":")[1].split()[0]) <= 2.0, score
    show = ("systemctl", "show", "-P", "MainPID")
    pids = {s: on_host(v1, "n1", *show, f"slipway-runtime@{s}").strip() for s in ("blue", "green")}
    slot, pid = next((slot, pid) for slot, pid in pids.items() if pid != "0")
    find = (
        "find / -xdev -writable \\( -type f -o -type d \\) 2>/dev/null; "
        "find /run /var/lib /tmp /var/tmp /dev/shm /etc /opt -writable "
        "\\( -type f -o -type d \\) 2>/dev/null"
    )
    writable = on_host(v1, "n1", "nsenter", "-t", pid, "-m", "-S",
                       on_host(v1, "n1", "id", "-u", f"slipway-{slot}").strip(), "-G",
                       on_host(v1, "n1", "id", "-g", f"slipway-{slot}").strip(),
                       "sh", "-c", find).split()  # fmt: skip
    # The socket of systemd's notifications is mounted on a file, as which `find` sees it.
    notify = "/run/systemd/notify"
    own = (f"/run/slipway/private/{slot}/", "/tmp", "/var/tmp", "/dev/shm", "/proc/", "/dev/mqueue",
           notify)  # fmt: skip
    assert writable, "control: the search finds the runtime's own state"
    assert [path for path in writable if not path.startswith(own)] == []
