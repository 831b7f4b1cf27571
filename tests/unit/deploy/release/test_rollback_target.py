"""
Which release a rollback goes to, and that no single host decides or prevents it.
"""

import dataclasses
import shutil
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import (
    LeaseHeld,
    LeaseLost,
    NothingToRollBackTo,
    PreconditionError,
    RollbackFailed,
    TransportError,
    UsageError,
)
from deploy.host.protocol import LeaseAcquire, Unfinished
from deploy.release import rollback_target
from deploy.release.controller import Recheck
from deploy.release.events import Ending
from deploy.release.rollback import as_now, plan_rollback
from deploy.release.rollback_target import majority_unfinished
from tests.builders import make_good, make_observed, make_serving, make_settled, make_slot
from tests.local_fleet import DIGESTS, local_fleet
from tests.local_host import LOST_BEFORE, record_good, serve

NAMES = ("n1", "n2", "n3")
HONEST = [("b1", "v1"), ("b2", "v2")]
OLD, NEW = DIGESTS["b1"], DIGESTS["b2"]


def planned(plan):
    return {host.host: plan.target.bundle for host in plan.hosts}


@pytest.fixture
def fleet():
    """
    Three hosts that serve b2 and have b1 on record.
    """
    with local_fleet(*NAMES, serving=None) as hosts:
        hosts.serve("b1")
        hosts.serve("b2")
        yield hosts


def rollback(fleet, to=None, observed=None, recheck=Recheck, report=lambda event: None):
    events = []
    plan = plan_rollback(observed or fleet.observed(), to)
    outcome = fleet.roll_back(
        plan, report=lambda event: (events.append(event), report(event)), recheck=recheck
    )
    return outcome, events


# -- one host does not decide


def test_a_forged_record_moves_no_other_host():
    """
    n1 says that another release was good before; the others go where they agree, and n1 too, if
    it has that on record.
    """
    observed = {name: make_settled(name, good=HONEST) for name in NAMES}
    observed["n1"] = make_settled("n1", good=[("evil", "v1"), ("b2", "v2")])

    plan = plan_rollback(observed)

    assert planned(plan) == {"n2": "b1", "n3": "b1"}
    assert [left.host for left in plan.left_out] == ["n1"]
    assert "not n1 (it has no v1" in plan.reason


def test_the_first_host_alone_would_have_decided(monkeypatch):
    """
    Negative control: with the vote of the first host only, everybody follows what it claims.
    """
    good = [("b0", "v0"), ("b1", "v1"), ("b2", "v2")]
    claim = Unfinished("r-x", "slot.start", rollback_to="r-v0", epoch=99, bundle="b0")
    liar = make_settled("n1", good=good, unfinished=claim)
    others = {name: make_settled(name, good=good) for name in ("n2", "n3")}
    assert "b0" not in set(planned(plan_rollback({"n1": liar, **others})).values())

    first = lambda votes, recorded: next(iter(votes.values()))  # noqa: E731
    monkeypatch.setattr(rollback_target, "_majority", first)
    assert planned(plan_rollback({"n1": liar, **others})) == dict.fromkeys(NAMES, "b0")


def test_a_host_that_claims_an_unfinished_release_stops_no_other():
    """
    It cannot make the command a no-op for the others: most of them decide, and it is named.
    """
    observed = {name: make_settled(name, good=HONEST) for name in NAMES}
    observed["n3"] = make_settled("n3", good=HONEST, paused="r-v3")

    plan = plan_rollback(observed)

    assert planned(plan) == dict.fromkeys(NAMES, "b1")
    assert "n3: the last release has not ended there, unlike on most hosts" in plan.reason
    assert "--limit n3" in plan.reason


def test_a_host_that_claims_the_release_has_ended_stops_no_other():
    """
    The other way round: the release stopped in the middle on most hosts, and is dropped.
    """
    left = Unfinished("r-v3", "traffic.set", epoch=4, bundle="b3")
    observed = {name: make_settled(name, good=HONEST, unfinished=left) for name in NAMES}
    observed["n3"] = make_settled("n3", good=HONEST)

    plan = plan_rollback(observed)

    assert planned(plan) == {"n1": "b2", "n2": "b2"}
    assert "n3: the last release has ended there, unlike on most hosts" in plan.reason


def test_a_tie_is_refused_with_the_list():
    observed = {
        "n1": make_settled("n1", good=[("b1", "v1"), ("b2", "v2")]),
        "n2": make_settled("n2", good=[("b0", "v0"), ("b2", "v2")]),
    }
    with pytest.raises(NothingToRollBackTo, match="do not agree") as caught:
        plan_rollback(observed)
    assert caught.value.why == "v1 (b1) on n1; v0 (b0) on n2"
    assert "--to" in caught.value.fix


def test_one_name_for_two_bundles_is_decided_by_most():
    """
    A host may call anything v1; where no bundle has more than half, the digest has to be named.
    """
    forged = make_settled("n1", good=[("evil", "v1"), ("b2", "v2")])
    honest = {name: make_settled(name, good=HONEST) for name in ("n2", "n3")}

    assert planned(plan_rollback({"n1": forged, **honest}, "v1")) == {"n2": "b1", "n3": "b1"}
    with pytest.raises(NothingToRollBackTo, match="do not agree"):
        plan_rollback({"n1": forged, "n2": honest["n2"]}, "v1")


releases = st.lists(
    st.sampled_from(["b1", "b2", "b3", "b4"]), min_size=1, max_size=4, unique=True
).map(lambda bundles: [(bundle, bundle.replace("b", "v")) for bundle in bundles])


@given(
    releases,
    releases,
    st.sampled_from([None, "r-v1", "r-v3"]),
    st.sampled_from([None, "b1", "b3", "b9"]),
    st.booleans(),
    st.sampled_from([None, "b1", "b2"]),
)
def test_no_single_host_changes_where_three_agreeing_hosts_go(
    honest, forged, rollback_to, bundle, paused, going
):
    """
    Whatever it has on record, or says is unfinished: each of the others goes where they would go
    without it, in the middle of a way back as well.
    """
    left = going and Unfinished("r-b", "slot.start", going.replace("b", "r-v"), 3, going)
    others = {name: make_settled(name, good=honest, unfinished=left) for name in NAMES}
    liar = make_settled(
        "n0",
        good=forged,
        paused="r-x" if paused else None,
        unfinished=Unfinished("r-x", "slot.start", rollback_to, 9, bundle) if bundle else None,
    )

    def outcome(observed):
        try:
            return planned(plan_rollback(observed))
        except NothingToRollBackTo:
            return {}

    alone, beside = outcome(others), outcome({"n0": liar, **others})
    assert {name: beside.get(name) for name in others} == {n: alone.get(n) for n in others}


# -- names


def test_a_version_comes_before_a_digest():
    """
    "1" is a version here, and the digest of what serves begins with it.
    """
    good = [(OLD, "v1"), (DIGESTS["b3"], "1"), (NEW, "v2")]
    observed = {"n1": make_settled("n1", good=[*good[:2], (OLD[:-1] + "f", "34")])}
    assert planned(plan_rollback(observed, "1")) == {"n1": DIGESTS["b3"]}


@pytest.mark.parametrize("to", ["1", "1111111"])
def test_fewer_than_8_digits_are_no_digest(to):
    with pytest.raises(NothingToRollBackTo, match=f"no release {to} "):
        plan_rollback({"n1": make_settled("n1", good=[(OLD, "v1"), (NEW, "v2")])}, to)


def test_8_digits_are_a_digest_and_must_name_one_bundle():
    other = OLD[:-1] + "f"
    observed = {"n1": make_settled("n1", good=[(OLD, "v1"), (NEW, "v2")])}
    assert planned(plan_rollback(observed, OLD[:8])) == {"n1": OLD}

    observed = {"n1": make_settled("n1", good=[(OLD, "v1"), (other, "v0"), (NEW, "v2")])}
    with pytest.raises(UsageError, match="2 bundles"):
        plan_rollback(observed, OLD[:8])
    assert planned(plan_rollback(observed, OLD)) == {"n1": OLD}


def test_a_version_with_the_words_of_a_rollback_is_a_name():
    good = [("b1", "v2.0-back-to-basics"), ("b2", "v2")]
    assert planned(plan_rollback({"n1": make_settled("n1", good=good)})) == {"n1": "b1"}


def test_a_retired_release_is_refused_with_what_is_still_there(fleet):
    """
    Before anything is touched; the next plain rollback works.
    """
    for bundle in ("b3", "b4", "b5"):
        fleet.serve(bundle)
    for name in NAMES:
        layout = fleet.system(name).layout
        for bundle in ("b1", "b2"):
            shutil.rmtree(layout.release(DIGESTS[bundle]))

    with pytest.raises(NothingToRollBackTo) as caught:
        rollback(fleet, to="v1")
    assert "n1 has v5 (r-v5), v4 (r-v4), v3 (r-v3)" in caught.value.why
    assert all(fleet.touched(name) == [] for name in NAMES)

    outcome, _ = rollback(fleet)
    assert outcome.error is None
    assert all(fleet.serves(name) == {"b4": 100} for name in NAMES)


# -- one host does not prevent it


def test_a_host_that_joined_later_goes_back_to_a_bundle_that_it_has(fleet):
    """
    It was staged there and never served; most of the hosts have it on record.
    """
    new = fleet.system("n3")
    new.layout.journal.unlink()
    record_good(new, NEW, "v2")

    outcome, _ = rollback(fleet)

    assert outcome.error is None
    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}] * 3
    assert fleet.good("n3") == ["b1"]


def test_a_host_that_joined_later_is_named_and_the_others_go_back(fleet):
    """
    The release before is not on it, nor in the store.  It serves what the others leave, so its
    traffic is taken off, now that others serve.
    """
    new = fleet.system("n3")
    new.layout.journal.unlink()
    record_good(new, NEW, "v2")
    shutil.rmtree(new.layout.release(OLD))

    outcome, _ = rollback(fleet)

    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}, {"b1": 100}, {}]
    assert fleet.running("n3") == {"b2"}
    assert isinstance(outcome.error, RollbackFailed)
    assert "n3" in outcome.error.what
    assert "n1" not in outcome.error.what
    assert "--limit n3" in outcome.error.fix
    assert outcome.evidence["left_out"]["n3"].startswith("it has no v1 on record")


def joined(fleet, name="n3", serves="b3"):
    """
    Let a host be as one that joined later: it has and serves one release only.
    """
    system = fleet.system(name)
    system.layout.journal.unlink()
    for bundle in ("b1", "b2"):
        shutil.rmtree(system.layout.release(DIGESTS[bundle]))
    serve(system, DIGESTS[serves], serves.replace("b", "v"))


def test_a_host_that_joined_later_gets_the_bundle_from_the_store(fleet):
    """
    Staged there first; afterwards the way back is on its record like on the others'.
    """
    joined(fleet, serves="b3")
    plan = plan_rollback(fleet.observed(), None, {}, {OLD: "v1"})
    assert "n3: it gets the bundle from this machine" in plan.reason
    assert plan.allow_older

    outcome = fleet.roll_back(plan)

    assert outcome.error is None
    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}] * 3
    assert fleet.good("n3") == ["b1"]


def test_a_host_that_serves_something_else_keeps_it(fleet):
    """
    Its users have no other host: only what the fleet leaves is taken off.
    """
    joined(fleet, serves="b3")

    outcome, _ = rollback(fleet)

    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}, {"b1": 100}, {"b3": 100}]
    assert outcome.error.exit_code == 9
    assert "n3" in outcome.error.what


def test_the_last_host_is_never_taken_out_of_traffic(fleet):
    """
    Where no other host serves the target, also the bad release serves on.
    """
    for name in NAMES:
        fleet[name].fail("slot.start", LOST_BEFORE, call=None)
    joined(fleet, serves="b2")

    outcome, _ = rollback(fleet)

    assert outcome.error is not None
    assert [fleet.serves(name) for name in NAMES] == [{"b2": 100}] * 3


def test_a_failed_way_back_changes_nothing_of_the_next(fleet):
    """
    n3 does not start; when it does, the next rollback brings it where the others are.
    """
    fleet.serve("b3")
    fleet["n3"].fail("slot.start", LOST_BEFORE, call=None)
    first, _ = rollback(fleet)
    assert first.error is not None
    assert [fleet.serves(name) for name in NAMES] == [{"b2": 100}, {"b2": 100}, {"b3": 100}]
    fleet["n3"].faults.clear()

    second, _ = rollback(fleet)

    assert second.error is None
    assert [fleet.serves(name) for name in NAMES] == [{"b2": 100}] * 3
    third, _ = rollback(fleet)
    assert third.error is None
    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}] * 3


def test_a_host_that_does_not_answer_at_all_changes_nothing_of_the_next(fleet):
    """
    It hears nothing of the first way back, not even its beginning.
    """
    fleet.serve("b3")
    lost = TransportError("n3: no answer", why="no route", fix="-", host="n3")
    observed = {name: state for name, state in fleet.observed().items() if name != "n3"}
    fleet["n3"].is_cut = True
    outcome = fleet.roll_back(plan_rollback(observed, None, {"n3": lost}))
    assert outcome.error is not None
    fleet["n3"].is_cut = False

    outcome, _ = rollback(fleet)

    assert outcome.error is None
    assert [fleet.serves(name) for name in NAMES] == [{"b2": 100}] * 3


def test_a_few_hosts_bring_their_record_to_no_other():
    """
    A release that one host of three calls good is not started on the others, unless the operator
    names it and means the same bundle: the store says which.
    """
    observed = {name: make_settled(name, good=[("b2", "v2")]) for name in ("n2", "n3")}
    observed["n1"] = make_settled("n1", good=[("evil", "v1"), ("b2", "v2")])

    for to in (None, "r-v1", "v1"):
        plan = plan_rollback(observed, to, {}, {"evil": "v0"})
        assert planned(plan) == {"n1": "evil"}
        assert [left.host for left in plan.left_out] == ["n2", "n3"]
        assert not any(left.stop_traffic for left in plan.left_out)
    named = plan_rollback(observed, "v1", {}, {"evil": "v1"})
    assert planned(named) == dict.fromkeys(NAMES, "evil")


def test_a_version_of_few_hosts_is_not_named_by_the_digits_that_it_is_spelled_with():
    """
    The digest begins with the version, which has fewer than 8 digits: the operator named no digest.
    """
    evil = DIGESTS["b3"]
    observed = {name: make_settled(name, good=[("b2", "v2")]) for name in ("n2", "n3")}
    observed["n1"] = make_settled("n1", good=[(evil, "3"), ("b2", "v2")])

    assert planned(plan_rollback(observed, "3", {}, {evil: "v3"})) == {"n1": evil}
    by_digest = plan_rollback(observed, evil[:8], {}, {evil: "v3"})
    assert planned(by_digest) == dict.fromkeys(NAMES, evil), "control"


def test_a_release_id_comes_before_a_version():
    """
    Of a release that is named like the version of another one.
    """
    good = (make_good("b1", "v1", "x"), make_good("b3", "x", "r-x"), make_good("b2", "v2"))
    observed = make_settled("n1", good=HONEST)
    plan = plan_rollback({"n1": dataclasses.replace(observed, good=good)}, "x")
    assert planned(plan) == {"n1": "b1"}


def test_a_version_of_two_bundles_is_ambiguous():
    good = [(OLD, "v1"), (DIGESTS["b3"], "v1"), (NEW, "v2")]
    observed = {name: make_settled(name, good=good) for name in NAMES}
    with pytest.raises(UsageError, match="2 bundles on n1, n2, n3") as caught:
        plan_rollback(observed, "v1")
    assert OLD in caught.value.why
    assert planned(plan_rollback(observed, OLD[:8])) == dict.fromkeys(NAMES, OLD)


def test_one_host_makes_no_name_ambiguous_for_the_others():
    forged = make_settled("n1", good=[("evil", "v1"), ("b1", "v1"), ("b2", "v2")])
    observed = {name: make_settled(name, good=HONEST) for name in ("n2", "n3")}
    assert planned(plan_rollback({"n1": forged, **observed}, "v1")) == dict.fromkeys(NAMES, "b1")


@pytest.mark.parametrize(
    "changes",
    [{"is_ready": False}, {"unit": "failed"}, {"unit": "activating"}, {"weight_pct": 90}],
)
def test_a_host_serves_already_only_when_it_does(changes):
    """
    Ready, running and with all the traffic; control: an unchanged one does.
    """
    good = [make_good(*names) for names in HONEST]
    serving = make_serving("blue", "b2", "v2")
    assert planned(plan_rollback({"n1": make_observed("n1", serving, good=good)}, "v2")) == {}

    green = {"weight_pct": 10} if changes.get("weight_pct") else {}
    blue = make_serving("blue", "b2", "v2", **changes)
    observed = make_observed("n1", blue, make_slot("green", **green), good=good)
    assert planned(plan_rollback({"n1": observed}, "v2")) == {"n1": "b2"}


def test_the_word_of_most_hosts_on_what_has_not_ended():
    """
    Release, epoch and target as fields, the same on more than half of the hosts.
    """
    said = Unfinished("r-back", "slot.start", "r-v1", 7, "b1")
    others = dataclasses.replace(said, step="traffic.set"), dataclasses.replace(said, bundle="b9")
    observed = {
        name: make_settled(name, good=HONEST, unfinished=unfinished)
        for name, unfinished in zip(NAMES, (said, *others), strict=True)
    }
    assert majority_unfinished(observed) == said

    observed["n2"] = make_settled("n2", good=HONEST)
    assert majority_unfinished(observed) is None


def test_an_empty_host_is_named_and_no_error():
    """
    Nothing serves there, so nothing has to go back.
    """
    observed = {"n1": make_settled("n1", good=HONEST), "n2": make_observed("n2")}
    plan = plan_rollback(observed)
    assert [host.host for host in plan.hosts] == ["n1"]
    assert [(left.host, left.error) for left in plan.left_out] == [("n2", None)]
    assert "not n2" in plan.reason


def test_an_empty_host_does_not_serve_what_the_others_serve():
    """
    --to of what serves: the host without it is named, not counted as serving it.
    """
    observed = {"n1": make_settled("n1", good=HONEST), "n2": make_observed("n2")}
    plan = plan_rollback(observed, "v2")
    assert plan.is_noop
    assert "n1: v2 serves already" in plan.reason
    assert "not n2 (it has no v2 on record, only: none; " in plan.reason


def test_a_host_that_serves_another_release_is_an_error_where_nothing_else_is_to_do():
    observed = {
        "n1": make_settled("n1", good=HONEST),
        "n2": make_settled("n2", good=[("b3", "v3")]),
    }
    with pytest.raises(NothingToRollBackTo, match="n2: it cannot go back to v2"):
        plan_rollback(observed, "v2")


def test_a_haproxy_that_does_not_answer_is_brought_back_first(fleet):
    """
    The shares of that host are unknown; that is no reason to leave it out.
    """
    stopped, removed = fleet.system("n2"), fleet.system("n3")
    stopped.proxy.is_running = False
    removed.remove_run()

    outcome, events = rollback(fleet)

    assert outcome.error is None
    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}] * 3
    assert {e.host for e in events if e.name == "host.revived"} == {"n2", "n3"}
    assert all(slot.is_ready for slot in [fleet.observed()["n3"].stable])


def test_a_host_that_does_not_answer_is_named_and_the_others_go_back(fleet):
    lost = TransportError("n2: no answer", why="no route", fix="-", host="n2")
    observed = {name: state for name, state in fleet.observed().items() if name != "n2"}
    plan = plan_rollback(observed, None, {"n2": lost})

    assert planned(plan) == {"n1": OLD, "n3": OLD}
    assert "not n2 (n2: no answer: no route)" in plan.reason
    with pytest.raises(TransportError):
        plan_rollback({}, None, {"n2": lost})


def hold_lease(fleet, name):
    fleet.clients[name].release = "r-other"
    fleet.clients[name].call(LeaseAcquire(owner="mallory", ttl_s=3600.0))


def test_a_host_that_holds_its_lease_for_ever_vetoes_nothing(fleet):
    """
    The others go back, and it is named with the owner that it claims.
    """
    hold_lease(fleet, "n2")

    outcome, events = rollback(fleet)

    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}, {"b2": 100}, {"b1": 100}]
    assert isinstance(outcome.error, RollbackFailed)
    assert outcome.error.what.endswith("could not roll back n2")
    assert "mallory" in outcome.error.why
    assert ("host.failed", "n2") in [(event.name, event.host) for event in events]
    assert fleet.touched("n2").count("traffic.set") == 0


def test_a_host_that_is_slow_holds_up_no_other(fleet):
    """
    n1 starts its slot only when the others have ended; if they waited for it, they never would.
    """
    transport, retired, waited = fleet["n1"], [], []
    both = threading.Event()
    run = transport.run

    def slow(argv, **rest):
        if "slot.start" in argv:
            waited.append(both.wait(300))
        return run(argv, **rest)

    def report(event):
        if event.name == "slot.retired":
            retired.append(event.host)
            if {"n2", "n3"} <= set(retired):
                both.set()

    transport.run = slow
    outcome, _ = rollback(fleet, report=report)

    assert waited == [True]
    assert outcome.error is None


def test_another_operator_on_most_of_the_hosts_is_not_disturbed(fleet):
    """
    More than half of the leases are held: nothing is touched.
    """
    hold_lease(fleet, "n1")
    hold_lease(fleet, "n2")

    with pytest.raises(LeaseHeld):
        rollback(fleet)
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)
    assert fleet.lease_owner("n3") is None


def test_a_host_that_is_lost_at_its_lease_vetoes_nothing(fleet):
    fleet["n3"].fail("lease.acquire", LOST_BEFORE, call=None)

    outcome, _ = rollback(fleet)

    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}, {"b1": 100}, {"b2": 100}]
    assert "n3" in outcome.error.what


def test_a_host_that_changes_under_the_leases_is_left_and_named(fleet):
    """
    A host that shows another state each time cannot keep the others from going back.
    """

    def now():
        other = make_settled("n1", good=[(OLD, "v1"), (DIGESTS["b3"], "v3")])
        seen = {**fleet.observed(), "n1": other}
        return Recheck(as_now(fleet.controller.desired.plan, plan_rollback(seen, OLD)))

    outcome, _ = rollback(fleet, recheck=now)

    assert [fleet.serves(name) for name in NAMES] == [{"b2": 100}, {"b1": 100}, {"b1": 100}]
    assert "n1" in outcome.error.what


def test_the_look_under_the_leases_shows_an_operator_who_has_begun_since(fleet):
    def now():
        seen = fleet.observed()
        for name in ("n1", "n2"):  # one alone does not end a release
            seen[name] = dataclasses.replace(seen[name], epoch=seen[name].epoch + 1)
        return Recheck({}, seen)

    with pytest.raises(LeaseLost):
        rollback(fleet, recheck=now)
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)


def test_a_change_of_most_hosts_stops_the_rollback(fleet):
    def now():
        good = [(OLD, "v1"), (DIGESTS["b3"], "v3")]
        now = plan_rollback({name: make_settled(name, good=good) for name in NAMES}, OLD)
        return Recheck(as_now(fleet.controller.desired.plan, now))

    with pytest.raises(PreconditionError, match="not any more"):
        rollback(fleet, recheck=now)
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)


def test_a_slot_that_changes_its_readiness_does_not_leave_its_host_out(fleet):
    """
    Between plan and lease: the serving slot cannot prevent its own replacement so.
    """
    for name in NAMES:
        fleet.system(name).runtimes["blue"].is_ready = False
    observed = fleet.observed()
    fleet.system("n1").runtimes["blue"].is_ready = True

    outcome, _ = rollback(
        fleet,
        observed=observed,
        recheck=lambda: Recheck(
            as_now(fleet.controller.desired.plan, plan_rollback(fleet.observed(), OLD))
        ),
    )

    assert outcome.error is None
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_serving_hosts_of_one_bundle_under_other_ids_agree():
    """
    Votes are for bundles: release ids and versions are a host's own words.
    """
    observed = {
        "n1": make_settled("n1", good=[("b1", "v1"), ("b2", "v2")]),
        "n2": make_settled("n2", good=[("b1", "v1-again"), ("b2", "v2")]),
        "n3": make_settled("n3", good=[("b1", "v1"), ("b2", "v2")]),
    }
    plan = plan_rollback(observed)
    assert planned(plan) == dict.fromkeys(NAMES, "b1")
    assert plan.target.version == "v1"


def test_rolling_back_ends(fleet):
    outcome, _ = rollback(fleet)
    assert outcome.ending is Ending.ROLLED_BACK
    assert "left_out" not in outcome.evidence
