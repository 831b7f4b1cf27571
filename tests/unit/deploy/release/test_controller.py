import json

import pytest

from deploy.errors import (
    CanaryRejected,
    DiskTooSmall,
    LeaseHeld,
    PreconditionError,
    ReleasePaused,
    ReleaseReverted,
    RollbackFailed,
    TransportError,
)
from deploy.host.protocol import LeaseAcquire
from deploy.release.desired import Ending
from deploy.transport.client import HostClient
from tests.builders import make_policy
from tests.local_fleet import DIGESTS
from tests.local_host import ANSWER_LOST, LOST_BEFORE, REFUSED, RUNS_LATE
from tests.recorded import differences, recorded
from tests.unit.deploy.release.conftest import NAMES


class SentNothing:
    names, size = (), 0


def release(fleet, *, report=None, **options):
    events = []
    outcome = fleet.release(report=report or events.append, **options)
    return outcome, events


def test_a_healthy_canary_is_promoted_everywhere(fleet):
    """
    Every host serves the new release from one slot, the old one is stopped, the lease is free.
    """
    outcome, _ = release(fleet)

    assert outcome.ending is Ending.PROMOTED
    assert outcome.error is None
    for name in NAMES:
        assert fleet.serves(name) == {"b2": 100}
        assert fleet.running(name) == {"b2"}
        assert fleet.good(name) == ["b1", "b2"]
        assert fleet.lease_owner(name) is None
        assert fleet.observed()[name].unfinished is None
        events = [step for step in fleet.events(name) if step != "state.write"]
        assert events == [
            "lease.acquire", "release.begin", "deadman.arm", "deadman.confirm", "release.end",
            "lease.release",
        ]  # fmt: skip


def test_the_documents_keep_their_keys_and_types(bare_fleet):
    """
    The recorded JSON of a first release, a promoted, a rejected and a paused one, evidence
    included.
    """
    fleet = bare_fleet
    documents = {"release-first": release(fleet, bundle="b1")}
    documents["release"] = release(fleet, bundle="b2")
    fleet.errors_per_s = 1
    documents["release-rejected"] = release(fleet, bundle="b3")
    fleet.requests_per_s = 0
    documents["release-paused"] = release(fleet, bundle="b4")

    for name, (outcome, _) in documents.items():
        document = json.loads(json.dumps(outcome.as_json()))
        assert differences(recorded(name), document) == [], name


def test_the_second_wave_starts_after_the_first_has_passed(fleet):
    """
    No later host takes the new release before then.
    """
    _, events = release(fleet)

    names = [(event.name, event.host) for event in events]
    passed = names.index(("canary.passed", None))
    assert names.index(("slot.started", "n1")) < passed < names.index(("slot.started", "n2"))


def test_the_old_slot_stays_warm_until_every_wave_has_passed(fleet):
    """
    So a rollback only shifts traffic and starts nothing, as long as the release can fail.
    """
    _, events = release(fleet)

    names = [event.name for event in events]
    last_verdict = max(i for i, name in enumerate(names) if name == "canary.passed")
    assert names.index("slot.retired") > last_verdict


@pytest.mark.parametrize(
    ("action", "ending", "error", "running"),
    [
        ("revert", Ending.REVERTED, CanaryRejected, {"b1"}),
        ("pause", Ending.PAUSED, ReleasePaused, {"b1", "b2"}),
    ],
)
def test_failing_requests_revert_or_pause_as_the_fleet_says(fleet, action, ending, error, running):
    """
    Above the error rate the gate's action is taken; in both cases the old release has the traffic.
    """
    fleet.errors_per_s = 1
    gates = {"http_request_error_rate": {"action": action}}

    outcome, _ = release(fleet, policy=make_policy(gates=gates))

    assert outcome.ending is ending
    assert isinstance(outcome.error, error)
    assert "canary requests failed" in outcome.reason
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)
    assert fleet.running("n1") == running
    assert fleet.running("n2") == {"b1"}


def test_a_canary_that_failed_does_not_start_at_the_next_boot(fleet):
    """
    Its unit is disabled and its server is in maint, like those of a canary that still ran.
    """

    def fail():
        if fleet.serves("n1").get("b2"):
            fleet.system("n1").unit_of("green").fail()

    fleet.on_sleep = fail

    outcome, _ = release(fleet)

    assert "the canary's unit failed on n1" in outcome.reason
    assert not fleet.system("n1").unit_of("green").enabled
    assert fleet.system("n1").proxy.servers["green"].admin == "maint"
    assert fleet.system("n1").unit_of("blue").enabled


def test_a_canary_that_dies_after_its_verdict_is_taken_back(fleet):
    """
    HAProxy has it as UP for a second more, in which it gets no traffic beyond its share.
    """
    events, shares = [], []

    def report(event):
        events.append(event)
        if event.name == "canary.passed" and event.data == {"wave": 1}:
            fleet.system("n1").unit_of("green").fail()
        if event.name == "traffic.shifted":
            shares.append(event.data["weights"].get("v2"))

    outcome, _ = release(fleet, report=report)

    assert outcome.ending is Ending.REVERTED
    assert "green is not ready any more" in outcome.reason
    assert shares == [10]
    for name in NAMES:
        assert fleet.serves(name) == {"b1": 100}
        assert fleet.running(name) == {"b1"}


def test_a_release_that_loses_a_lease_says_so(fleet, monkeypatch):
    """
    In outcome, journal and error: not that the connection was lost, which the lost lease closed.
    """
    send = fleet["n1"].run

    def run(argv, **options):
        verb = argv[-1]
        if verb == "lease.renew" or (verb == "slot.start" and fleet.clock.sleep(60.0) is None):
            raise TransportError("n1: no answer", why="the connection was lost", fix="-", host="n1")
        return send(argv, **options)

    monkeypatch.setattr(fleet["n1"], "run", run)

    outcome, _ = release(fleet)

    assert outcome.ending is Ending.REVERTED
    assert outcome.reason.startswith("n1: the lease was lost: ")
    assert "it lives 15 s" in outcome.reason
    assert outcome.error.why == outcome.reason
    assert "release.lease_ttl" in outcome.error.fix
    assert fleet.last_event("n2", "release.end")["reason"] == outcome.reason


def test_a_canary_without_requests_pauses(fleet):
    """
    When its time is over; it is never promoted.
    """
    fleet.requests_per_s = 0

    outcome, _ = release(fleet)

    assert outcome.ending is Ending.PAUSED
    assert "0 of 20 requests" in outcome.reason
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_wrong_golden_answers_never_reach_traffic(fleet):
    """
    The release is reverted before it gets a request.
    """
    fleet.system("n1").bad_golden.add(DIGESTS["b2"])

    outcome, events = release(fleet)

    assert outcome.ending is Ending.REVERTED
    assert isinstance(outcome.error, ReleaseReverted)
    assert "golden" in outcome.reason
    assert not [event for event in events if event.data.get("weights", {}).get("v2")]
    assert fleet.running("n1") == {"b1"}


def test_a_first_release_needs_no_canary(bare_fleet):
    """
    There is no stable release to compare with: golden answers, then all the traffic.
    """
    outcome, _ = release(bare_fleet)

    assert outcome.ending is Ending.PROMOTED
    assert all(bare_fleet.serves(name) == {"b2": 100} for name in NAMES)


def test_releasing_the_serving_bundle_is_a_noop(fleet):
    """
    No host is changed, and no lease is taken.
    """
    outcome, _ = release(fleet, bundle="b1")

    assert outcome.ending is Ending.NOOP
    assert all(fleet.touched(name) == [] for name in NAMES)


def take_lease_of(fleet, name, owner="other", ttl_s=600.0):
    other = HostClient(fleet[name], actor=owner, sudo=False)
    other.release = "r-other"
    return other.call(LeaseAcquire(owner=owner, ttl_s=ttl_s))


def test_the_second_of_two_operators_is_refused(fleet):
    """
    Before it changes anything; it releases the leases that it took.
    """
    take_lease_of(fleet, "n2")

    with pytest.raises(LeaseHeld, match="n2"):
        release(fleet)

    assert fleet.lease_owner("n1") is None
    assert fleet.lease_owner("n2") == "other"
    assert all(fleet.running(name) == {"b1"} for name in NAMES)


def test_a_host_lost_before_a_change_still_serves_its_release(fleet):
    """
    The release stops and names the host; the host is unchanged, so it is not STUCK.
    """
    fleet["n2"].fail("slot.start", LOST_BEFORE, call=None)
    fleet["n2"].fail("traffic.set", LOST_BEFORE, call=None)

    outcome, _ = release(fleet)

    assert outcome.ending is Ending.REVERTED
    assert "n2" in outcome.reason
    assert isinstance(outcome.error, ReleaseReverted)
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)
    assert set(outcome.evidence["hosts"].values()) == {"reverted"}


def test_a_command_that_runs_after_its_connection_was_lost_is_refused(fleet):
    """
    The way back takes a new lease first, so that the host refuses a command of the old one.
    """
    fleet["n1"].fail("slot.start", RUNS_LATE)

    outcome, _ = release(fleet)

    assert outcome.ending is Ending.REVERTED
    assert fleet.running("n1") == {"b1"}
    assert fleet["n1"].verbs().count("lease.acquire") == 2


def test_a_host_that_stays_lost_is_stuck_and_named(fleet):
    """
    Negative control of the test above: it may have started the release.
    """

    def cut(event):
        if event.name == "lease.acquired":
            fleet["n2"].fail("slot.start", ANSWER_LOST)
        if event.name == "host.failed":
            fleet["n2"].is_cut = True

    outcome, _ = release(fleet, report=cut)

    assert isinstance(outcome.error, RollbackFailed)
    assert "n2" in outcome.error.what
    assert outcome.evidence["hosts"]["n2"] == "stuck"
    assert outcome.evidence["hosts"]["n1"] == "reverted"


def test_a_host_that_returns_in_time_is_reverted(fleet):
    """
    The revert is retried for a lease's time to live, with a new lease.
    """
    stopped_s = None

    def cut(event):
        nonlocal stopped_s
        if event.name == "canary.measured" and event.host is None and stopped_s is None:
            fleet["n1"].is_cut = True
            stopped_s = fleet.clock.monotonic_s()

    def heal():
        if stopped_s is not None and fleet.clock.monotonic_s() > stopped_s + 8:
            fleet["n1"].is_cut = False

    fleet.on_sleep = heal

    outcome, _ = release(fleet, report=cut)

    assert outcome.ending is Ending.REVERTED
    assert set(outcome.evidence["hosts"].values()) == {"reverted"}
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)
    assert fleet.running("n1") == {"b1"}


def test_a_host_lost_while_retiring_does_not_undo_the_release(fleet):
    """
    All gates have passed and all hosts serve the new release: it stands, and the host is named.
    """
    fleet["n3"].fail("slot.stop", LOST_BEFORE, call=None)

    outcome, _ = release(fleet)

    assert outcome.ending is Ending.PROMOTED
    assert isinstance(outcome.error, TransportError)
    assert "n3" in outcome.error.what
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)


def test_an_internal_error_while_retiring_does_not_undo_the_release(fleet, monkeypatch):
    """
    No live host is reverted: the release is promoted, and the error names its host.
    """
    from deploy.release import host_commands

    def broken(client, slot, limits):
        raise ZeroDivisionError

    monkeypatch.setattr(host_commands, "stop", broken)

    outcome, _ = release(fleet)

    assert outcome.ending is Ending.PROMOTED
    assert "ZeroDivisionError" in str(outcome.error)
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)


def test_an_internal_error_on_one_host_is_that_hosts_failure(fleet):
    """
    The other hosts finish their step, and all are reverted.
    """

    def stage(client):
        if client.host == "n2":
            raise ZeroDivisionError
        fleet.place("b2", client.host)
        return SentNothing()

    outcome, _ = release(fleet, stage=stage)

    assert outcome.ending is Ending.REVERTED
    assert "n2: an internal error" in outcome.reason
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_an_interrupted_canary_is_reverted(fleet):
    """
    By Control-C.
    """

    def interrupt():
        fleet.on_sleep = lambda: None
        raise KeyboardInterrupt

    fleet.on_sleep = interrupt

    outcome, _ = release(fleet)

    assert outcome.ending is Ending.REVERTED
    assert "interrupted" in outcome.reason
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_interrupting_while_old_slots_drain_undoes_nothing(fleet):
    """
    Every gate has passed: the release stands, and the command names what is unfinished.
    """

    def report(event):
        if event.name == "slot.retired":
            raise KeyboardInterrupt

    outcome, _ = release(fleet, report=report)

    assert outcome.ending is Ending.PROMOTED
    assert outcome.error is not None
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)


def test_a_release_over_a_dead_one_takes_all_its_traffic(fleet):
    """
    Without a canary; the dead slot is stopped.
    """
    for name in NAMES:
        fleet.system(name).unit_of("blue").fail()

    outcome, _ = release(fleet)

    assert outcome.ending is Ending.PROMOTED
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)


def test_a_change_between_plan_and_lease_is_refused(fleet):
    """
    Another operator released meanwhile: nothing is changed.
    """

    def changed():
        raise PreconditionError("x", why="another plan", fix="y")

    with pytest.raises(PreconditionError):
        release(fleet, recheck=changed)

    for name in NAMES:
        assert fleet.lease_owner(name) is None
        assert fleet.events(name) == ["lease.acquire", "lease.release"]


def test_a_full_disk_keeps_its_own_kind(fleet):
    """
    Nothing was started, so the release ends with the host's error kind and exit code.
    """

    def stage(client):
        raise DiskTooSmall(f"{client.host}: x", why="2 GiB free", fix="y", host=client.host)

    outcome, _ = release(fleet, stage=stage)

    assert outcome.ending is Ending.REVERTED
    assert isinstance(outcome.error, DiskTooSmall)
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_an_internal_error_reverts_before_it_is_raised(fleet):
    """
    It keeps its traceback.
    """

    def bug():
        fleet.on_sleep = lambda: None
        raise ZeroDivisionError

    fleet.on_sleep = bug

    with pytest.raises(ZeroDivisionError):
        release(fleet)

    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)
    assert fleet.running("n1") == {"b1"}


def test_a_leftover_canary_is_cleared_first(fleet):
    """
    A slot of an interrupted release still has traffic; the next release drains it first.
    """
    system = fleet.system("n1")
    fleet.place("b9", "n1")
    system.layout.slot_link("green").symlink_to(system.layout.release(DIGESTS["b9"]))
    system.unit_of("green").run()
    blue, green = (system.proxy.servers[slot] for slot in ("blue", "green"))
    blue.own_weight, green.admin, green.own_weight = 90, "ready", 10

    outcome, events = release(fleet)

    assert outcome.ending is Ending.PROMOTED
    assert "slot.cleared" in [event.name for event in events]
    assert fleet.serves("n1") == {"b2": 100}


def test_a_lease_lost_in_the_middle_stops_the_release(fleet):
    """
    Another operator took one host: that host is not changed any more, and the others are reverted.
    """

    def steal(event):
        if event.name == "canary.measured":
            fleet.system("n1").layout.lease.unlink()
            take_lease_of(fleet, "n1")

    outcome, _ = release(fleet, report=steal)

    assert outcome.ending is Ending.REVERTED
    assert "n1" in outcome.reason
    assert isinstance(outcome.error, RollbackFailed)
    assert "other holds the lease" in str(outcome.evidence["errors"]["n1"])
    assert fleet.serves("n1") == {"b1": 90, "b2": 10}, "it is the other operator's now"
    assert fleet.serves("n2") == {"b1": 100}


CALLS = (("slot.start", None), ("golden", None), ("traffic.set", None), ("traffic.set", 2),
         ("traffic.drain", None), ("slot.stop", None), ("measure", None), ("measure", 3),
         ("good.record", None))  # fmt: skip
A_CANARY_AND_ANOTHER = NAMES[:2]  # n3 is released beside n2, in the same wave


@pytest.fixture
def patient(monkeypatch):
    """
    A way back that is tried three times within the time to live of a lease, and not 15 times.
    """
    monkeypatch.setattr("deploy.release.controller._PAUSE_S", 5.0)


@pytest.mark.parametrize("how", [LOST_BEFORE, REFUSED, RUNS_LATE])
@pytest.mark.parametrize(("verb", "call"), CALLS)
@pytest.mark.parametrize("name", A_CANARY_AND_ANOTHER)
@pytest.mark.usefixtures("patient")
def test_whatever_fails_no_host_is_left_mixed(fleet, name, verb, call, how):
    """
    One call of a verb, or each of them, fails on one host: each host gives all its traffic to one
    release, promoted hosts to the new one and the others to the old one, and no host is STUCK.
    """
    fleet[name].fail(verb, how, call)

    outcome, _ = release(fleet)

    assert_settled(fleet, outcome)


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("verb", sorted({verb for verb, _ in CALLS}))
@pytest.mark.parametrize("name", A_CANARY_AND_ANOTHER)
def test_whatever_answer_is_lost_no_host_is_left_mixed(fleet, name, verb, call):
    """
    Like the test above, but the host did the work and only its answer was lost.
    """
    fleet[name].fail(verb, ANSWER_LOST, call)

    outcome, _ = release(fleet)

    assert_settled(fleet, outcome)


def assert_settled(fleet, outcome):
    bundle = "b2" if outcome.ending is Ending.PROMOTED else "b1"
    states = {"live", "promoted"} if bundle == "b2" else {"reverted"}
    for name in NAMES:
        assert fleet.serves(name) == {bundle: 100}, (name, outcome)
        assert outcome.evidence["hosts"][name] in states, (name, outcome)
        assert fleet.lease_owner(name) is None
        assert fleet.observed()[name].unfinished is None
        if bundle == "b1":
            assert fleet.running(name) == {"b1"}
            assert not fleet.system(name).unit_of("green").enabled
    assert not isinstance(outcome.error, RollbackFailed)
