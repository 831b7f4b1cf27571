import pytest

from deploy.errors import NothingToRollBackTo, PreconditionError, RollbackFailed
from deploy.release import steps
from deploy.release.events import Ending
from deploy.release.observe import parse_status
from deploy.release.rollback import plan_rollback, roll_back
from tests.builders import make_observed, make_policy, make_serving, make_settled
from tests.fakes import FakeHost, FrozenClock, lost

LIMITS = steps.Limits(start_s=90, drain_s=20, golden_s=60, keep=3)


def make_fleet(good=("b1", "b2")):
    hosts = {name: FakeHost(name) for name in ("n1", "n2")}
    for host in hosts.values():
        for bundle in good:
            host.serve("blue", bundle, version=bundle.replace("b", "v"))
    return hosts


def rollback(hosts, to=None):
    seen = {name: parse_status(name, host._status()) for name, host in hosts.items()}
    return roll_back(
        plan_rollback(seen, to),
        release="r-back",
        owner="me",
        tools=hosts,
        policy=make_policy(),
        limits=LIMITS,
        clock=FrozenClock(),
        report=lambda event: None,
    )


def serves(host):
    return {host.slots[slot]: pct for slot, pct in host.weights.items() if pct}


def test_rolling_back_serves_the_release_before():
    """
    One slot serves the earlier release on every host; the later one is stopped and off the record.
    """
    hosts = make_fleet()

    outcome = rollback(hosts)

    assert outcome.ending is Ending.ROLLED_BACK
    assert outcome.error is None
    for host in hosts.values():
        assert serves(host) == {"b1": 100}
        assert host.running == {"blue": False, "green": True}
        assert [good["bundle"] for good in host.good] == ["b1"]
        assert host.lease is None


def test_rolling_back_twice_goes_back_twice_and_then_says_so():
    """
    Two rollbacks never swap two releases for ever: each goes further back, until none is left.
    """
    hosts = make_fleet(good=("b1", "b2", "b3"))

    rollback(hosts)
    rollback(hosts)

    assert all(serves(host) == {"b1": 100} for host in hosts.values())
    with pytest.raises(NothingToRollBackTo, match="no earlier release"):
        rollback(hosts)


def test_an_interrupted_release_is_dropped():
    """
    With a release in the middle, rolling back keeps the release on record and stops the other.
    """
    hosts = make_fleet(good=("b1",))
    for host in hosts.values():
        host.staged.add("b9")
        host.slots["green"], host.running["green"] = "b9", True
        host.weights = {"blue": 90, "green": 10}

    outcome = rollback(hosts)

    assert outcome.ending is Ending.ROLLED_BACK
    for host in hosts.values():
        assert serves(host) == {"b1": 100}
        assert host.running == {"blue": True, "green": False}


def test_a_release_that_stopped_on_one_host_is_dropped_there_only():
    """
    The hosts that it had not reached stay at what they serve; they don't go further back.
    """
    canary = make_serving("green", "b2", "v2", weight_pct=0)
    seen = {
        "n1": make_observed("n1", make_serving(), canary, good=make_settled().good, paused="r-v2"),
        "n2": make_settled("n2", good=[("b0", "v0"), ("b1", "v1")]),
    }

    made = plan_rollback(seen)

    assert [(host.host, host.target.bundle, host.to_slot) for host in made.hosts] == [
        ("n1", "b1", "blue")
    ]


def test_a_release_that_only_began_is_ended():
    """
    An operator killed while staging left a beginning without an end, and nothing else to undo.
    """
    left = make_observed("n1", make_serving(), good=make_settled().good, unfinished="r-v2 at stage")

    made = plan_rollback({"n1": left})

    assert [(host.to_slot, host.is_warm) for host in made.hosts] == [("blue", True)]


def test_an_interrupted_rollback_goes_on_to_where_it_was_going():
    """
    The bad release is still the last on record: asking again must not bring it back.
    """
    good = [("b1", "v1"), ("b2", "v2")]
    done = make_observed(
        "n1",
        make_serving("blue", "b1", "v1"),
        good=make_settled(good=good[:1]).good,
        unfinished="20260101T000000-back-to-v1 at release.begin",
    )
    left = make_observed(
        "n2",
        make_serving("blue", "b2", "v2"),
        make_serving("green", "b1", "v1", weight_pct=0),
        good=make_settled(good=good).good,
        unfinished="20260101T000000-back-to-v1 at release.begin",
    )

    made = plan_rollback({"n1": done, "n2": left})

    assert [(h.host, h.target.bundle, h.to_slot) for h in made.hosts] == [
        ("n1", "b1", "blue"),
        ("n2", "b1", "green"),
    ]


def test_an_unreadable_haproxy_is_named_and_not_guessed_at():
    unknown = make_observed("n2", make_serving(weight_pct=None), good=make_settled().good)
    with pytest.raises(PreconditionError, match="n2"):
        plan_rollback({"n1": make_settled("n1"), "n2": unknown})


def test_a_host_that_never_had_a_good_release_holds_nobody_up():
    seen = {
        "n1": make_settled("n1", good=[("b1", "v1"), ("b2", "v2")]),
        "n2": make_observed("n2"),
    }
    assert [host.host for host in plan_rollback(seen).hosts] == ["n1"]


def test_going_back_to_what_serves_is_a_noop():
    """
    Two bad releases cannot revert into each other: the target that runs is reported, not redone.
    """
    hosts = make_fleet()

    outcome = rollback(hosts, to="v2")

    assert outcome.ending is Ending.NOOP
    assert all(host.calls == [] for host in hosts.values())


def test_to_names_a_version_a_release_or_a_bundle():
    for to in ("v1", "r-v1", "b1"):
        hosts = make_fleet(good=("b1", "b2", "b3"))
        rollback(hosts, to=to)
        assert all(serves(host) == {"b1": 100} for host in hosts.values())


def test_an_unknown_target_lists_what_is_on_record():
    with pytest.raises(NothingToRollBackTo) as caught:
        rollback(make_fleet(), to="v7")
    assert "v1" in caught.value.why
    assert "v2" in caught.value.why


def test_no_release_on_record():
    with pytest.raises(NothingToRollBackTo, match="no release to roll back to"):
        plan_rollback({"n1": make_observed("n1")})


def test_hosts_that_disagree_are_asked_about():
    seen = {
        "n1": make_settled("n1", good=[("b1", "v1"), ("b2", "v2")]),
        "n2": make_settled("n2", good=[("b0", "v0"), ("b2", "v2")]),
    }
    with pytest.raises(NothingToRollBackTo, match="do not agree"):
        plan_rollback(seen)


def test_a_lost_host_is_named_and_the_others_go_back():
    hosts = make_fleet()
    hosts["n2"].fail_at["slot.start"] = lost("n2")

    outcome = rollback(hosts)

    assert isinstance(outcome.error, RollbackFailed)
    assert "n2" in outcome.error.what
    assert serves(hosts["n1"]) == {"b1": 100}
    assert serves(hosts["n2"]) == {"b2": 100}, "it keeps what served before"


def test_a_dead_unit_does_not_stop_a_rollback():
    """
    The usual reason to roll back is that what serves does not.
    """
    hosts = make_fleet()
    for host in hosts.values():
        host.running["blue"] = False
        host.failed_units.add("blue")

    outcome = rollback(hosts)

    assert outcome.error is None
    assert all(serves(host) == {"b1": 100} for host in hosts.values())


def test_a_warm_target_is_not_started_again():
    blue, green = make_serving(weight_pct=0), make_serving("green", "b9", "v9", weight_pct=100)
    seen = make_observed("n1", blue, green, good=make_settled().good)

    made = plan_rollback({"n1": seen})

    assert made.hosts[0].is_warm
    assert made.hosts[0].to_slot == "blue"
