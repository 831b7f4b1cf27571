"""
A way back needs the hosts that answer and nothing else, and asks each of them as seldom as it can.
"""

import errno
import importlib
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from invoke.config import Config
from invoke.context import MockContext

from deploy.errors import (
    InventoryError,
    PreconditionError,
    RollbackFailed,
    TransportError,
    UsageError,
)
from deploy.host.layout import APT_UNIT
from deploy.inventory.schema import Secret, StateSettings
from deploy.release.desired import Ending, Goal
from deploy.release.findings import FLEET_NAME
from deploy.wiring import checkout, fleet_status, history, hosts, releases, state
from deploy.wiring.hosts import Hosts
from tests.builders import make_policy
from tests.local_fleet import DIGESTS, LIMITS, local_fleet
from tests.local_host import serve

NAMES = ("n1", "n2", "n3")
HOSTS = StateSettings()
NO_PASSWORD = StateSettings(
    kind="etcd", endpoints=("https://127.0.0.1:1",), user="ops", password="etcd_password"
)
NO_ANSWER = StateSettings(kind="etcd", endpoints=("https://127.0.0.1:1",))


class Killed(BaseException):
    """
    The operator's process ends.
    """


@pytest.fixture
def fleet(monkeypatch, tmp_path):
    """
    Three hosts that serve b2, with b1 on record.
    """
    monkeypatch.delenv("SLIPWAY_ETCD_PASSWORD", raising=False)
    monkeypatch.setattr(fleet_status, "ROOT", tmp_path)
    monkeypatch.setattr(releases, "store", lambda: SimpleNamespace(versions=lambda fleet: {}))
    with local_fleet(*NAMES, serving=None) as hosts:
        for module in (releases, state):
            monkeypatch.setattr(module, "SystemClock", lambda: hosts.clock)
        hosts.serve("b1")
        hosts.serve("b2")
        yield hosts


def on(fleet, where=HOSTS, limit=NAMES):
    names = [SimpleNamespace(name=name) for name in NAMES if name in limit]
    document = SimpleNamespace(
        name="lab",
        hosts=names,
        release=make_policy(),
        hooks=(),
        notify=(),
        state=where,
        secrets={"etcd_password": Secret(env="SLIPWAY_ETCD_PASSWORD")},
        service=SimpleNamespace(start_timeout=LIMITS.start_s, tls=SimpleNamespace(is_on=False)),
    )
    return Hosts(document, fleet.clients, {})


def calls(fleet, work):
    """
    Return the verbs that each host was asked for by *work*.
    """
    before = {name: len(fleet[name].verbs()) for name in NAMES}
    work()
    return {name: fleet[name].verbs()[before[name] :] for name in NAMES}


@pytest.mark.parametrize(
    ("where", "named"),
    [(NO_PASSWORD, "etcd_password"), (NO_ANSWER, "https://127.0.0.1:1")],
    ids=["no password", "no answer"],
)
def test_a_rollback_needs_no_etcd(fleet, where, named):
    """
    It warns once, with the secret or the endpoint.
    """
    events = []

    outcome = releases.run_rollback(
        on(fleet, where), releases.make_rollback(on(fleet, where), None), events.append
    )

    assert (outcome.ending, outcome.error) == (Ending.ROLLED_BACK, None)
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)
    [warning] = [event for event in events if event.name == "state.unavailable"]
    assert named in warning.text


@pytest.mark.parametrize("where", [NO_PASSWORD, NO_ANSWER], ids=["no password", "no answer"])
def test_an_abort_needs_no_etcd(fleet, where):
    """
    The open release is read from the copy that the hosts have.
    """

    def report(event):
        if event.name == "canary.measured":
            raise Killed

    fleet.release_dying(report, Killed, "b3")
    fleet.clock.sleep(20.0)
    events = []

    outcome = releases.abort(on(fleet, where), events.append)

    assert (outcome.ending, outcome.error) == (Ending.REVERTED, None)
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)
    assert [event.name for event in events].count("state.unavailable") == 1


def run_task(monkeypatch, capsys, known, name, **flags):
    """
    Run a task of the command line on the hosts *known*; return its document.
    """
    monkeypatch.syspath_prepend(str(Path(__file__).parents[4]))
    tasks = importlib.import_module("tasks")
    monkeypatch.setattr(checkout, "fleet", lambda *_: known.fleet)
    monkeypatch.setattr(tasks, "with_sudo_password", lambda of: of)
    monkeypatch.setattr(hosts, "connect", lambda of: nullcontext(known))
    getattr(tasks, name)(MockContext(Config({"fleet": "lab"})), json=True, **flags)
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("task", ["abort", "pause"])
def test_the_tasks_that_take_back_need_no_etcd(fleet, monkeypatch, capsys, task):
    """
    As they are typed: also what they show before they ask.
    """

    def report(event):
        if event.name == "canary.measured":
            raise Killed

    fleet.release_dying(report, Killed, "b3")
    fleet.clock.sleep(20.0)
    document = run_task(monkeypatch, capsys, on(fleet, NO_PASSWORD), task, yes=True)

    assert document["outcome"] == {"abort": "reverted", "pause": "paused"}[task]
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)


@pytest.mark.parametrize(
    ("where", "error"),
    [(NO_PASSWORD, InventoryError), (NO_ANSWER, TransportError)],
    ids=["no password", "no answer"],
)
def test_going_forward_needs_etcd(fleet, where, error):
    """
    Negative control of the tests above.
    """

    def report(event):
        if event.name == "canary.measured":
            raise Killed

    fleet.release_dying(report, Killed, "b3")
    fleet.clock.sleep(20.0)

    with pytest.raises(error):
        releases.resume(on(fleet, where), lambda event: None)


@pytest.mark.parametrize(
    ("where", "named"),
    [(NO_PASSWORD, "etcd_password"), (NO_ANSWER, "https://127.0.0.1:1")],
    ids=["no password", "no answer"],
)
def test_the_status_has_a_state_in_etcd_as_unknown(fleet, where, named):
    def of_the_fleet(**where):
        _, findings = fleet_status.read(on(fleet, **where))
        return [finding for finding in findings if finding.host == FLEET_NAME]

    assert of_the_fleet() == [], "negative control"

    [finding] = of_the_fleet(where=where)
    assert finding.what.startswith("the desired state in etcd is unknown")
    assert named in finding.what


def test_a_rollback_is_planned_with_one_look_at_each_host(fleet):
    """
    One SSH command a host, and one to one of them, which sends the text of the desired state.
    """
    releases.run_rollback(on(fleet), releases.make_rollback(on(fleet), None), lambda event: None)
    fleet.serve("b2")

    verbs = calls(fleet, lambda: releases.make_rollback(on(fleet), None))

    assert {name: v.count("status") for name, v in verbs.items()} == dict.fromkeys(NAMES, 1)
    assert sum(map(len, verbs.values())) == len(NAMES) + 1


def test_a_rollback_looks_once_under_its_leases(fleet):
    """
    The leases are taken by the look of the plan, and what a host has to do is decided by the look
    under them.  Two more follow: as a slot starts, and at the end.
    """
    verbs = calls(
        fleet,
        lambda: releases.run_rollback(
            on(fleet), releases.make_rollback(on(fleet), None), lambda event: None
        ),
    )

    before = ["status", "lease.acquire", "status", "state.write", "journal.append"]
    for asked in verbs.values():
        assert [verb for verb in asked if verb != "state.read"][:5] == before
        assert asked.count("status") == 4, asked


def test_a_rollback_looks_again_where_another_operator_has_begun_since(fleet):
    """
    Its plan is older than the epoch of that operator, whose rollback has ended.
    """
    way = releases.make_rollback(on(fleet), None)
    other = releases.make_rollback(on(fleet), None)
    assert releases.run_rollback(on(fleet), other, lambda event: None).error is None

    def again():
        return releases.run_rollback(on(fleet), way, lambda event: None)

    verbs = calls(fleet, again)

    assert all(v.count("lease.acquire") == 2 for v in verbs.values()), verbs
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_the_status_is_one_look_at_each_host(fleet):
    releases.run_rollback(on(fleet), releases.make_rollback(on(fleet), None), lambda event: None)

    verbs = calls(fleet, lambda: fleet_status.read(on(fleet)))

    assert {name: v.count("status") for name, v in verbs.items()} == dict.fromkeys(NAMES, 1)
    assert sum(map(len, verbs.values())) == len(NAMES) + 1


def test_hosts_beyond_the_limit_are_looked_at_for_the_state_alone(fleet):
    """
    The desired state is that of the whole fleet.
    """
    verbs = calls(fleet, lambda: fleet_status.read(on(fleet, limit=("n1",))))

    assert {name: v.count("status") for name, v in verbs.items()} == dict.fromkeys(NAMES, 1)


@pytest.mark.parametrize("limit", [("n1",), NAMES])
def test_the_history_is_that_of_the_limit(fleet, monkeypatch, capsys, tmp_path, limit):
    """
    With --verify a host beyond it that does not answer is no error.
    """
    monkeypatch.setattr(history, "heads_file", lambda fleet: tmp_path / "heads" / "lab.json")
    beyond = [name for name in NAMES if name not in limit]
    for name in beyond:
        fleet[name].is_cut = True

    known = on(fleet, limit=limit)
    document = run_task(monkeypatch, capsys, known, "history", verify=True, limit=",".join(limit))

    assert tuple(document["heads"]) == limit


def test_a_full_disk_of_the_operator_hides_no_history(fleet, monkeypatch, capsys, tmp_path):
    """
    What was read is shown, and a broken journal has its own exit code.
    """
    monkeypatch.setattr(history, "heads_file", lambda fleet: tmp_path / "heads" / "lab.json")

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(history, "write_private", full)
    known = on(fleet, limit=NAMES)
    with pytest.raises(SystemExit) as ending:
        run_task(monkeypatch, capsys, known, "history")
    document = json.loads(capsys.readouterr().out)
    assert (ending.value.code, tuple(document["heads"])) == (1, NAMES)
    assert "No space left" in document["error"]["why"]

    path = fleet.system("n2").layout.journal
    path.write_bytes(path.read_bytes().replace(b'"seq": 1,', b'"seq": 7,', 1))
    with pytest.raises(SystemExit) as ending:
        run_task(monkeypatch, capsys, known, "history", verify=True)
    document = json.loads(capsys.readouterr().out)
    assert (ending.value.code, tuple(document["broken"])) == (27, ("n2",))


def test_a_host_that_did_not_answer_is_not_asked_again(fleet):
    fleet["n3"].is_cut = True

    verbs = calls(fleet, lambda: releases.make_rollback(on(fleet), None))

    assert verbs["n3"].count("status") == 1


def test_a_resume_without_the_bundle_names_the_checkout_that_has_it(fleet, monkeypatch):
    """
    Nothing had been staged, and this operator did not build the bundle: building another one here
    would not be the release that was approved.
    """

    def lacks(fleet, digest):
        raise UsageError(f"bundle {digest}: not found", why="the store has none", fix="build it")

    monkeypatch.setattr(releases, "checked_bundle", lacks)
    monkeypatch.setattr(releases, "wheels", lambda: None)
    plan = SimpleNamespace(bundle="b3", allow_older=False)

    with pytest.raises(UsageError) as caught:
        releases._stage_again(on(fleet), plan)(fleet.clients["n1"])

    assert caught.value.why == "n1 lacks it, and the store has none"
    assert "inv resume in the checkout that built it" in caught.value.fix
    assert "inv rollback" in caught.value.fix


def half_back(fleet):
    """
    Roll back with n3, which does not answer while it is planned, left out.
    """
    fleet["n3"].is_cut = True
    way = releases.make_rollback(on(fleet), None)
    fleet["n3"].is_cut = False
    outcome = releases.run_rollback(on(fleet), way, lambda event: None)
    assert isinstance(outcome.error, RollbackFailed)
    assert "n3" in outcome.error.what
    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}, {"b1": 100}, {"b2": 100}]


def test_a_resumed_rollback_brings_the_hosts_that_it_was_planned_without(fleet):
    """
    Without an error every host of the fleet serves the target.
    """
    half_back(fleet)

    outcome = releases.resume(on(fleet), lambda event: None)

    assert (outcome.ending, outcome.error) == (Ending.ROLLED_BACK, None)
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)
    assert all(current.pending is None for current in fleet.observed().values())
    assert fleet.stored().left_out == {}


def test_a_resumed_rollback_names_the_host_that_still_does_not_answer(fleet):
    """
    It stays open, so that the next one brings the host.
    """
    half_back(fleet)
    fleet["n3"].is_cut = True

    outcome = releases.resume(on(fleet), lambda event: None)

    assert isinstance(outcome.error, RollbackFailed)
    assert "n3" in outcome.error.what
    fleet["n3"].is_cut = False
    assert fleet.stored().left_out.keys() == {"n3"}
    again = releases.resume(on(fleet), lambda event: None)
    assert again.error is None
    assert fleet.serves("n3") == {"b1": 100}


@pytest.mark.parametrize("again", ["resume", "rollback"])
def test_a_rollback_that_goes_on_takes_the_traffic_off_a_host_that_stays(fleet, again):
    """
    It has no b1, and the others have arrived: what they left is what they served before.
    """
    system = fleet.system("n3")
    system.layout.journal.unlink()
    shutil.rmtree(system.layout.release(DIGESTS["b1"]))
    serve(system, DIGESTS["b2"], "v2", "blue")
    half_back(fleet)

    if again == "resume":
        outcome = releases.resume(on(fleet), lambda event: None)
    else:
        way = releases.make_rollback(on(fleet), None)
        outcome = releases.run_rollback(on(fleet), way, lambda event: None)

    assert isinstance(outcome.error, RollbackFailed)
    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}, {"b1": 100}, {}]


def test_nothing_goes_forward_while_packages_of_a_host_change(fleet):
    """
    A provisioning run that was lost goes on there: `resume` and `promote` name host and unit.
    """

    def report(event):
        if event.name == "canary.measured":
            raise Killed

    fleet.release_dying(report, Killed, "b3")
    fleet.clock.sleep(20.0)
    fleet.system("n2").units[APT_UNIT].run()
    before = [fleet.serves(name) for name in NAMES]

    for steer in (releases.resume, lambda on, report: releases.promote(on, report, is_full=True)):
        with pytest.raises(PreconditionError, match="n2") as refused:
            steer(on(fleet), lambda event: None)
        assert APT_UNIT in refused.value.why
        assert "inv provision --limit n2" in refused.value.fix
    assert [fleet.serves(name) for name in NAMES] == before

    fleet.system("n2").units[APT_UNIT].stop()
    assert releases.resume(on(fleet), lambda event: None).ending is not None


def test_a_rollback_does_not_wait_for_packages(fleet):
    fleet.system("n2").units[APT_UNIT].run()

    way = releases.make_rollback(on(fleet), None)
    outcome = releases.run_rollback(on(fleet), way, lambda event: None)

    assert (outcome.ending, outcome.error) == (Ending.ROLLED_BACK, None)
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_resume_names_hosts_that_differ_though_no_release_is_open(fleet):
    """
    As after a rollback of one host of two, which no majority has on record.
    """
    with pytest.raises(PreconditionError) as caught:
        releases.resume(on(fleet), lambda event: None)
    assert "hosts differ" not in caught.value.why  # negative control
    assert "inv status" in caught.value.fix

    serve(fleet.system("n2"), DIGESTS["b1"], "v1", "blue")

    with pytest.raises(PreconditionError) as caught:
        releases.resume(on(fleet), lambda event: None)
    assert 'hosts differ: "v2" on n1, n3; "v1" on n2' in caught.value.why
    assert caught.value.fix == "inv rollback --to v2 moves n2"
    way = releases.make_rollback(on(fleet), "v2")
    releases.run_rollback(on(fleet), way, lambda event: None)
    assert [fleet.serves(name) for name in NAMES] == [{"b2": 100}] * 3


def left_behind(fleet):
    """
    Leave an open release of b3 behind, which goes on without n3.
    """

    def report(event):
        if event.name == "canary.measured":
            raise Killed

    fleet.release_dying(report, Killed, "b3")
    fleet.clock.sleep(20.0)
    open_one = fleet.stored()
    return replace(open_one, left_out={"n3": "it did not answer"})


@pytest.mark.parametrize("reason", ["the error rate is too high", "aborted by you@desk"])
def test_a_release_that_was_reverted_is_not_resumed(fleet, reason):
    """
    Also where it left a host out: a gate refused it, or an operator.
    """
    back = left_behind(fleet).turned(Goal.BACK, reason)
    assert fleet.bring(back, owner="you", clients=fleet.operator()).ending is Ending.REVERTED
    assert fleet.stored().left_out, "control: a host was left out"

    with pytest.raises(PreconditionError, match="no release is open"):
        releases.resume(on(fleet), lambda event: None)

    assert [fleet.serves(name) for name in NAMES] == [{"b2": 100}] * 3
    serve(fleet.system("n3"), DIGESTS["b1"], "v1", "blue")
    _, findings = fleet_status.read(on(fleet))
    fixes = [finding.fix for finding in findings if finding.host == "n3"]
    assert fixes
    assert not any("inv resume" in fix for fix in fixes), fixes


@pytest.mark.parametrize("is_taken_back", [True, False])
def test_a_release_that_left_a_host_out_is_not_resumed_once_a_host_was_taken_back(
    fleet, is_taken_back
):
    """
    The rollback is on record on n1 alone: the others were away, and have the release on record.
    """
    policy = make_policy(max_unavailable=1, failure_budget=1)
    plan = fleet.plan("b3", policy)
    fleet.place("b3", "n3")
    fleet["n3"].is_cut = True
    assert fleet.release("b3", plan=plan, policy=policy).ending is Ending.PROMOTED
    if is_taken_back:
        fleet["n2"].is_cut = True
        way = releases.make_rollback(on(fleet), "v2")
        releases.run_rollback(on(fleet), way, lambda event: None)
        assert fleet.serves("n1") == {"b2": 100}
    fleet["n2"].is_cut = fleet["n3"].is_cut = False
    fleet.clock.sleep(60.0)
    assert fleet.stored().can_resume, "control"

    if not is_taken_back:
        assert releases.resume(on(fleet), lambda event: None).error is None
        assert [fleet.serves(name) for name in NAMES] == [{"b3": 100}] * 3
        return
    with pytest.raises(PreconditionError, match="no release is open") as caught:
        releases.resume(on(fleet), lambda event: None)

    assert "n1 was taken back since, by " in caught.value.why
    assert caught.value.fix == "inv rollback --to v2 moves n2"
    assert fleet.serves("n1") == {"b2": 100}


@pytest.fixture
def interrupted(fleet):
    """
    A release of b3 whose operator died in the canary; all hosts have it on record as going forward.
    """

    def report(event):
        if event.name == "canary.measured":
            raise Killed

    fleet.release_dying(report, Killed, "b3")
    fleet.clock.sleep(20.0)
    return fleet


def alone(fleet, monkeypatch, work):
    """
    Do *work* with n2 and n3 away from the moment when the leases are taken.
    """
    run = releases._run

    def cut(*args, **options):
        fleet["n2"].is_cut = fleet["n3"].is_cut = True
        try:
            return run(*args, **options)
        finally:
            fleet["n2"].is_cut = fleet["n3"].is_cut = False

    with monkeypatch.context() as patched:
        patched.setattr(releases, "_run", cut)
        return work()


FORWARD = {
    "resume": lambda on: releases.resume(on, lambda event: None),
    "promote": lambda on: releases.promote(on, lambda event: None, is_full=True),
}


@pytest.mark.parametrize("forward", FORWARD)
def test_an_abort_that_reached_a_minority_is_not_undone(interrupted, monkeypatch, forward):
    """
    The others have the release on record as it was; `inv abort` takes them back too.
    """
    fleet = interrupted
    alone(fleet, monkeypatch, lambda: releases.abort(on(fleet), lambda event: None))
    assert fleet.serves("n1") == {"b2": 100}
    assert fleet.stored().goal is Goal.FORWARD, "control: most hosts know of no abort"

    with pytest.raises(PreconditionError, match="does not go forward again") as caught:
        FORWARD[forward](on(fleet))

    assert "n1 was taken back since" in caught.value.why
    assert "aborted by" in caught.value.why
    assert caught.value.fix.startswith("inv abort ")
    assert fleet.serves("n1") == {"b2": 100}
    assert releases.abort(on(fleet), lambda event: None).error is None
    assert fleet.stored().ending is Ending.REVERTED
    assert [fleet.running(name) for name in NAMES] == [{"b2"}] * 3


@pytest.mark.parametrize("forward", FORWARD)
def test_an_abort_on_a_host_that_answers_late_is_not_undone(interrupted, monkeypatch, forward):
    """
    Under the leases every host has the full time of its call.
    """
    fleet = interrupted
    alone(fleet, monkeypatch, lambda: releases.abort(on(fleet), lambda event: None))
    look = hosts.look

    def late(clients, *, within_s=None, **options):
        seen, errors = look(clients, **options)
        if within_s is not None:
            errors["n1"] = TransportError("n1: no answer", why="late", fix="wait", host="n1")
            seen.pop("n1", None)
        return seen, errors

    monkeypatch.setattr(hosts, "look", late)

    with pytest.raises(PreconditionError, match="does not go forward again"):
        FORWARD[forward](on(fleet))

    assert fleet.serves("n1") == {"b2": 100}


def test_a_pause_that_reached_a_minority_is_resumed(interrupted, monkeypatch):
    """
    Negative control of the test above: that is what a pause is for.
    """
    fleet = interrupted
    alone(fleet, monkeypatch, lambda: releases.pause(on(fleet), lambda event: None))

    assert releases.resume(on(fleet), lambda event: None).ending is Ending.PROMOTED


def test_a_rollback_that_reached_a_minority_is_not_undone(interrupted, monkeypatch):
    fleet = interrupted
    way = releases.make_rollback(on(fleet), "v1")
    alone(fleet, monkeypatch, lambda: releases.run_rollback(on(fleet), way, lambda event: None))
    assert fleet.serves("n1") == {"b1": 100}

    with pytest.raises(PreconditionError, match="does not go forward again") as caught:
        releases.resume(on(fleet), lambda event: None)

    assert caught.value.fix.startswith(f"inv rollback --to {DIGESTS['b1'][:12]} ")
    assert fleet.serves("n1") == {"b1": 100}


@pytest.mark.parametrize("forward", FORWARD)
def test_a_release_that_a_gate_refused_is_not_gone_on_with(fleet, forward):
    """
    Its operator died on the way back.  The waves have passed: nothing would measure it again.
    """
    fleet.stable, fleet.errors_when_promoted_per_s = "b2", 4

    def report(event):
        if event.name == "action.started" and event.text == "take_back":
            raise Killed

    fleet.release_dying(report, Killed, "b3")
    fleet.clock.sleep(20.0)
    stored = fleet.stored()
    assert (stored.goal, stored.ending) == (Goal.BACK, None), "control"

    with pytest.raises(PreconditionError, match="does not go forward again") as caught:
        FORWARD[forward](on(fleet))

    assert "requests to the new slot failed" in caught.value.why
    assert releases.abort(on(fleet), lambda event: None).error is None
    assert [fleet.serves(name) for name in NAMES] == [{"b2": 100}] * 3


@pytest.mark.parametrize("other", ["abort", "release"])
@pytest.mark.parametrize("forward", FORWARD)
def test_what_another_operator_does_before_the_leases_are_taken_is_not_undone(
    interrupted, monkeypatch, forward, other
):
    """
    Between the look at what is open and the leases.
    """
    fleet = interrupted
    run = releases._run

    def beaten(*args, **options):
        monkeypatch.setattr(releases, "_run", run)
        if other == "abort":
            releases.abort(on(fleet), lambda event: None)
        else:
            assert fleet.release("b4").ending is Ending.PROMOTED
        return run(*args, **options)

    monkeypatch.setattr(releases, "_run", beaten)

    with pytest.raises(PreconditionError):
        FORWARD[forward](on(fleet))

    serves = {"b2": 100} if other == "abort" else {"b4": 100}
    assert [fleet.serves(name) for name in NAMES] == [serves] * 3


def test_hosts_that_are_lost_before_the_leases_do_not_keep_the_others_from_going_back(
    fleet, monkeypatch
):
    """
    Most of them were there when the rollback was planned.
    """
    way = releases.make_rollback(on(fleet), None)

    outcome = alone(
        fleet, monkeypatch, lambda: releases.run_rollback(on(fleet), way, lambda event: None)
    )

    assert isinstance(outcome.error, RollbackFailed)
    assert "n2, n3" in outcome.error.what
    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}, {"b2": 100}, {"b2": 100}]


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_host_that_served_the_target_when_a_rollback_was_planned_has_to_serve_it(fleet, is_lost):
    """
    The plan does nothing there.  Where it changed before the leases were taken, or does not answer,
    it is named, and a resumption brings it.
    """
    only = on(fleet, limit=("n3",))
    releases.run_rollback(only, releases.make_rollback(only, None), lambda event: None)
    way = releases.make_rollback(on(fleet), "v1")
    assert [host.host for host in way.hosts] == ["n1", "n2"], "control"
    if is_lost:
        fleet["n3"].is_cut = True
    else:
        serve(fleet.system("n3"), DIGESTS["b2"], "v2", "blue")

    outcome = releases.run_rollback(on(fleet), way, lambda event: None)

    assert isinstance(outcome.error, RollbackFailed)
    assert "n3" in outcome.error.what
    assert [fleet.serves(name) for name in NAMES[:2]] == [{"b1": 100}] * 2
    fleet["n3"].is_cut = False
    assert releases.resume(on(fleet), lambda event: None).error is None
    assert fleet.serves("n3") == {"b1": 100}


def test_what_serves_may_end_before_the_leases_are_taken(fleet):
    """
    A release that dies while the operator looks at the plan does not keep its hosts.
    """
    way = releases.make_rollback(on(fleet), None)
    for name in NAMES:
        fleet.system(name).unit_of("blue").fail()

    outcome = releases.run_rollback(on(fleet), way, lambda event: None)

    assert outcome.error is None
    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}] * 3
