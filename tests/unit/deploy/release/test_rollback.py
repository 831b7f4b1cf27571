import dataclasses
from contextlib import suppress

import pytest

from deploy.errors import NothingToRollBackTo, RollbackFailed, UsageError
from deploy.host.deadman import pending, way_back
from deploy.host.protocol import HostError, JournalAppend, LeaseAcquire, Unfinished
from deploy.release.events import Ending
from deploy.release.rollback import plan_rollback
from tests.builders import make_observed, make_serving, make_settled
from tests.local_fleet import DIGESTS, local_fleet
from tests.local_host import LOST_BEFORE, REFUSED
from tests.recorded import differences, recorded

NAMES = ("n1", "n2")


@pytest.fixture
def make_fleet():
    """
    Return hosts that serve the last of *good*, with the others on record.
    """
    from contextlib import ExitStack

    with ExitStack() as stack:

        def make(good=("b1", "b2"), names=NAMES):
            fleet = stack.enter_context(local_fleet(*names, serving=None))
            for bundle in good:
                fleet.serve(bundle)
            return fleet

        yield make


def rollback(fleet, to=None, report=lambda event: None):
    return fleet.roll_back(plan_rollback(fleet.observed(), to), report=report)


def test_rolling_back_serves_the_release_before(make_fleet):
    """
    On every host, one slot serves the earlier release; the later one is stopped and off the record.
    """
    fleet = make_fleet()

    outcome = rollback(fleet)

    assert outcome.ending is Ending.ROLLED_BACK
    assert outcome.error is None
    assert differences(recorded("rollback"), outcome.as_json()) == []
    for name in NAMES:
        assert fleet.serves(name) == {"b1": 100}
        assert fleet.running(name) == {"b1"}
        assert fleet.good(name) == ["b1"]
        assert fleet.lease_owner(name) is None
        assert fleet.observed()[name].unfinished is None


def test_rolling_back_twice_goes_back_twice_and_then_says_so(make_fleet):
    """
    Each rollback goes further back, until no release remains; two never alternate.
    """
    fleet = make_fleet(good=("b1", "b2", "b3"))

    rollback(fleet)
    rollback(fleet)

    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)
    with pytest.raises(NothingToRollBackTo, match="no earlier release"):
        rollback(fleet)


class Killed(BaseException):
    """
    The operator's process ends.
    """


def rollback_killed(fleet, verb, when, to=None):
    """
    Roll back with a process that is killed before or after the first *verb* at n1; then wait until
    the hosts have gone back by themselves.  Return whether the verb was called at all.
    """
    send, called = fleet["n1"].run, []

    def run(argv, **options):
        if argv[-1] != verb or called:
            return send(argv, **options)
        called.append(verb)
        if when == "after":
            send(argv, **options)
        raise Killed

    def die():
        fleet.clock.cancel_all()
        for client in fleet.clients.values():
            client.fence = None

    fleet["n1"].run = run
    way = plan_rollback(fleet.observed(), to)
    with suppress(Killed):
        fleet.roll_back(way, at_death=die)
    fleet["n1"].run = send
    fleet.clock.sleep(40.0)
    for name in NAMES:
        with suppress(HostError):
            way_back.check(fleet.system(name))
    return bool(called)


def assert_one_version(fleet, name):
    """
    One slot has all the traffic; the other one is stopped, also at the next boot.
    """
    system = fleet.system(name)
    [serving] = [slot for slot, weight in system.proxy.weights.items() if weight]
    other = "green" if serving == "blue" else "blue"
    assert system.proxy.weights[serving] == 100
    assert (system.unit_of(serving).active, system.unit_of(serving).enabled) == ("active", True)
    assert (system.unit_of(other).active, system.unit_of(other).enabled) == ("inactive", False)
    assert pending.read(system) is None


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("verb", "is_canary_open"),
    [
        ("deadman.arm", False),
        ("deadman.arm", True),
        ("slot.stop", True),
        ("slot.start", False),
        ("slot.start", True),
        ("traffic.set", False),
        ("traffic.set", True),
    ],
)
def test_a_killed_rollback_leaves_each_host_on_one_version(make_fleet, verb, when, is_canary_open):
    """
    Within the lease and the next check: what served, or the target once it was ready.
    """
    fleet = make_fleet(good=("b1", "b2"))
    if is_canary_open:

        def report(event):
            if event.name == "canary.measured":
                raise Killed

        fleet.release_dying(report, Killed, "b3")
        fleet.clock.sleep(20.0)  # its leases are over, and the hosts have not looked yet

    assert rollback_killed(fleet, verb, when, to=DIGESTS["b1"])
    for name in NAMES:
        assert_one_version(fleet, name)
    assert rollback(fleet, to=DIGESTS["b1"]).ending in (Ending.ROLLED_BACK, Ending.NOOP)
    assert {tuple(fleet.serves(name)) for name in NAMES} == {("b1",)}


def leave_canary(fleet, bundle="b9"):
    """
    Leave every host as after an operator's death in the canary of *bundle*.
    """
    fleet.place(bundle)
    for name in NAMES:
        system = fleet.system(name)
        system.layout.slot_link("green").symlink_to(system.layout.release(DIGESTS[bundle]))
        system.unit_of("green").run()
        blue, green = (system.proxy.servers[slot] for slot in ("blue", "green"))
        blue.own_weight, green.admin, green.own_weight = 90, "ready", 10


def test_an_interrupted_release_is_dropped(make_fleet):
    """
    A rollback keeps the release on record, and stops the unfinished one.
    """
    fleet = make_fleet(good=("b1",))
    leave_canary(fleet)

    outcome = rollback(fleet)

    assert outcome.ending is Ending.ROLLED_BACK
    for name in NAMES:
        assert fleet.serves(name) == {"b1": 100}
        assert fleet.running(name) == {"b1"}


def test_a_version_named_like_a_rollback_is_a_release(make_fleet):
    """
    The target of an interrupted rollback is a field of the journal, not part of a name.
    """
    fleet = make_fleet(good=("b1",))
    leave_canary(fleet)
    for client in fleet.clients.values():
        client.release = "20260101T000000-v2.0-back-to-basics"
        client.fence = client.call(LeaseAcquire(owner="gone", ttl_s=1.0)).fence
        client.call(JournalAppend("release.begin", {"bundle": DIGESTS["b9"]}))
    fleet.clock.sleep(2)
    assert fleet.observed()["n1"].unfinished is not None

    rollback(fleet)

    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_a_release_that_stopped_on_one_host_of_two_has_to_be_decided():
    """
    It alone would drop the release, the other one would go further back; each way has a name.
    """
    canary = make_serving("green", "b2", "v2", weight_pct=0)
    observed = {
        "n1": make_observed("n1", make_serving(), canary, good=make_settled().good, paused="r-v2"),
        "n2": make_settled("n2", good=[("b0", "v0"), ("b1", "v1")]),
    }

    with pytest.raises(NothingToRollBackTo, match="do not agree") as caught:
        plan_rollback(observed)
    assert "v1 (b1) on n1; v0 (b0) on n2; n1 says that r-v2 waits" in caught.value.why

    for plan in (plan_rollback(observed, "v1"), plan_rollback({"n1": observed["n1"]})):
        assert [(h.host, plan.target.bundle, h.to_slot) for h in plan.hosts] == [
            ("n1", "b1", "blue")
        ]


def test_a_release_that_only_began_is_ended():
    """
    An operator killed while staging left only a beginning in the journal.
    """
    left = make_observed(
        "n1", make_serving(), good=make_settled().good, unfinished=Unfinished("r-v2", "stage")
    )

    rollback_plan = plan_rollback({"n1": left})

    assert [(host.to_slot, host.clear_first) for host in rollback_plan.hosts] == [("blue", False)]


def test_an_interrupted_rollback_keeps_its_target():
    """
    The bad release is still the last on record; a second rollback must not restore it.
    """
    good = [("b1", "v1"), ("b2", "v2")]
    done = make_observed(
        "n1",
        make_serving("blue", "b1", "v1"),
        good=make_settled(good=good[:1]).good,
        unfinished=Unfinished("r-back", "release.begin", rollback_to="r-v1"),
    )
    left = make_observed(
        "n2",
        make_serving("blue", "b2", "v2"),
        make_serving("green", "b1", "v1", weight_pct=0),
        good=make_settled(good=good).good,
        unfinished=Unfinished("r-back", "release.begin", rollback_to="r-v1"),
    )

    rollback_plan = plan_rollback({"n1": done, "n2": left})

    assert [(h.host, rollback_plan.target.bundle, h.to_slot) for h in rollback_plan.hosts] == [
        ("n1", "b1", "blue"),
        ("n2", "b1", "green"),
    ]


def test_an_interrupted_rollback_goes_on_where_release_ids_differ():
    """
    Hosts that got the same bundles in releases of their own go on to the same bundle.
    """
    good = make_settled(good=[("b1", "v1"), ("b2", "v2")]).good
    later = tuple(dataclasses.replace(one, release=f"{one.release}-later") for one in good)
    observed = {
        "n1": make_observed(
            "n1",
            make_serving("blue", "b2", "v2"),
            good=good,
            unfinished=Unfinished("r-back", "slot.start", rollback_to="r-v1"),
        ),
        "n2": make_observed(
            "n2",
            make_serving("blue", "b2", "v2"),
            good=later,
            unfinished=Unfinished("r-back", "slot.start", rollback_to="r-v1-later"),
        ),
    }

    plan = plan_rollback(observed)

    assert [(host.host, host.to_release) for host in plan.hosts] == [
        ("n1", "r-v1"),
        ("n2", "r-v1-later"),
    ]


def test_an_interrupted_rollback_continues_on_real_hosts(make_fleet):
    """
    One host has switched already: the next rollback takes the other one to the same release, and
    not further back.
    """
    fleet = make_fleet(good=("b1", "b2", "b3"))

    fleet["n2"].fail("traffic.set", LOST_BEFORE, call=None)

    def interrupt(event):
        if event.name == "host.failed":
            raise KeyboardInterrupt

    with pytest.raises(RollbackFailed, match="interrupted"):
        rollback(fleet, report=interrupt)
    fleet["n2"].faults.clear()

    rollback(fleet)

    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)


def test_rolling_back_to_the_serving_release_is_a_noop(make_fleet):
    """
    Two bad releases cannot revert into each other: a serving target is reported, not repeated.
    """
    fleet = make_fleet()

    outcome = rollback(fleet, to="v2")

    assert outcome.ending is Ending.NOOP
    assert all(fleet.touched(name) == [] for name in NAMES)


@pytest.mark.parametrize("to", ["v1", "r-v1", DIGESTS["b1"][:12]])
def test_to_accepts_a_version_a_release_or_a_bundle(make_fleet, to):
    fleet = make_fleet(good=("b1", "b2", "b3"))

    rollback(fleet, to=to)

    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_an_unknown_target_lists_the_recorded_releases(make_fleet):
    with pytest.raises(NothingToRollBackTo) as caught:
        rollback(make_fleet(), to="v7")
    assert "v1" in caught.value.why
    assert "v2" in caught.value.why


def test_a_rollback_without_a_recorded_release_is_refused():
    with pytest.raises(NothingToRollBackTo, match="no release to roll back to"):
        plan_rollback({"n1": make_observed("n1")})


@pytest.mark.parametrize("how", [LOST_BEFORE, REFUSED])
def test_a_lost_host_is_named_and_the_others_roll_back(make_fleet, how):
    fleet = make_fleet()
    fleet["n2"].fail("slot.start", how, call=None)
    fleet["n2"].fail("traffic.set", how, call=None)

    outcome = rollback(fleet)

    assert isinstance(outcome.error, RollbackFailed)
    assert "n2" in outcome.error.what
    assert fleet.serves("n1") == {"b1": 100}
    assert fleet.serves("n2") == {"b2": 100}, "it keeps what served before"


def test_one_failure_on_a_host_is_repeated(make_fleet):
    fleet = make_fleet()
    fleet["n2"].fail("slot.start", LOST_BEFORE)

    outcome = rollback(fleet)

    assert outcome.error is None
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_a_rollback_that_failed_on_a_host_is_finished_by_the_next(make_fleet):
    fleet = make_fleet()
    fleet["n2"].fail("slot.start", LOST_BEFORE, call=None)
    assert rollback(fleet).error is not None
    fleet["n2"].faults.clear()

    # The record of the others says that they are back: the target is named.
    outcome = rollback(fleet, to="v1")

    assert outcome.error is None
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_a_dead_unit_does_not_stop_a_rollback(make_fleet):
    """
    A dead release is the usual reason to roll back.
    """
    fleet = make_fleet()
    for name in NAMES:
        fleet.system(name).unit_of("blue").fail()

    outcome = rollback(fleet)

    assert outcome.error is None
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_a_warm_target_is_not_started_again():
    blue, green = make_serving(weight_pct=0), make_serving("green", "b9", "v9", weight_pct=100)
    observed = make_observed("n1", blue, green, good=make_settled().good)

    rollback_plan = plan_rollback({"n1": observed})

    assert not rollback_plan.hosts[0].clear_first
    assert rollback_plan.hosts[0].to_slot == "blue"


def test_a_lost_end_is_no_failure(make_fleet):
    """
    The host has gone back, and what it lacks is a line: the most of the hosts have it.
    """
    fleet = make_fleet(good=("b1", "b2", "b3"), names=("n1", "n2", "n3"))
    events = []

    def report(event):
        events.append(event)
        if event.name == "slot.retired" and event.host == "n2":
            fleet["n2"].fail("journal.append", LOST_BEFORE, call=2)

    outcome = rollback(fleet, report=report)

    assert outcome.error is None
    assert ("journal.unwritten", "n2") in [(event.name, event.host) for event in events]
    assert fleet.observed()["n2"].unfinished is not None
    rollback(fleet)
    assert all(fleet.serves(name) == {"b1": 100} for name in ("n1", "n2", "n3"))


def test_an_empty_target_is_refused(make_fleet):
    """
    It would match every release.
    """
    with pytest.raises(UsageError, match="--to"):
        rollback(make_fleet(), to="")
