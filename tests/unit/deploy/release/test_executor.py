import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from deploy.release import steps
from deploy.release.events import Ending
from deploy.release.executor import ReleaseExecutor
from deploy.release.machine import State
from deploy.release.observe import parse_status
from deploy.release.plan import plan_release
from tests.builders import make_policy
from tests.fakes import FakeHost, FrozenClock, lost, refused

LIMITS = steps.Limits(start_s=90, drain_s=20, golden_s=60, keep=3)
NAMES = ("n1", "n2", "n3")


def make_fleet(serving="b1"):
    hosts = {name: FakeHost(name) for name in NAMES}
    for host in hosts.values():
        if serving:
            host.serve("blue", serving)
    return hosts


def traffic(hosts, *, requests=5, errors=0):
    """
    What live traffic does in each second of the clock: each canary answers and fails so many.
    """

    def on_sleep(seconds):
        for host in hosts.values():
            if host.running["green"] and host.weights["green"]:
                host.counters["green"]["requests"] += requests
                host.counters["green"]["errors"] += errors

    return on_sleep


def release(
    hosts, *, on_sleep=None, policy=None, bundle="b2", report=None, stage=None, recheck=None
):
    policy = policy or make_policy()
    events = []
    plan = plan_release(
        fleet="lab",
        bundle=bundle,
        version="v2",
        canary_pct=10,
        policy=policy,
        observed={name: parse_status(name, host._status()) for name, host in hosts.items()},
    )

    def stage_it(tool):
        tool.staged.add(bundle)
        return {"files": 1, "bytes": 10}

    executor = ReleaseExecutor(
        plan,
        release="r-v2",
        owner="me",
        tools=hosts,
        stage=stage or stage_it,
        policy=policy,
        limits=LIMITS,
        clock=FrozenClock(on_sleep or traffic(hosts)),
        report=report or events.append,
        recheck=recheck or (lambda: None),
    )
    return executor.run(), events


def serves(host):
    return {host.slots[slot]: pct for slot, pct in host.weights.items() if pct}


def test_a_healthy_canary_is_promoted_everywhere():
    """
    Every host serves the new release from one slot, the old one is stopped, the lease is free.
    """
    hosts = make_fleet()

    outcome, _ = release(hosts)

    assert outcome.ending is Ending.PROMOTED
    assert outcome.error is None
    for host in hosts.values():
        assert serves(host) == {"b2": 100}
        assert host.running == {"blue": False, "green": True}
        assert host.good[-1]["bundle"] == "b2"
        assert host.lease is None
        assert [step for step, _ in host.journal] == ["release.begin", "release.end"]


def test_the_second_wave_starts_after_the_first_was_judged():
    """
    No host of a later wave takes the new release before the canary of the first has passed.
    """
    hosts = make_fleet()

    _, events = release(hosts)

    names = [(event.name, event.host) for event in events]
    passed = names.index(("canary.passed", None))
    assert names.index(("slot.started", "n1")) < passed < names.index(("slot.started", "n2"))


def test_the_old_slot_stays_warm_until_every_wave_has_passed():
    """
    Going back is a shift of traffic, not a start, for as long as the release may be refused.
    """
    hosts = make_fleet()

    _, events = release(hosts)

    names = [event.name for event in events]
    last_verdict = max(i for i, name in enumerate(names) if name == "canary.passed")
    assert names.index("slot.retired") > last_verdict


def test_failing_requests_revert_or_pause_as_the_fleet_says():
    """
    Above the error rate the gate's action is taken; either way the old release has the traffic.
    """
    for action, ending, error in (
        ("revert", Ending.REVERTED, CanaryRejected),
        ("pause", Ending.PAUSED, ReleasePaused),
    ):
        hosts = make_fleet()
        gates = {"http_request_error_rate": {"action": action}}

        outcome, _ = release(
            hosts, on_sleep=traffic(hosts, errors=1), policy=make_policy(gates=gates)
        )

        assert outcome.ending is ending
        assert isinstance(outcome.error, error)
        assert "canary requests failed" in outcome.reason
        assert all(serves(host) == {"b1": 100} for host in hosts.values())
        assert hosts["n1"].running["green"] is (action == "pause")
        assert not hosts["n2"].slots["green"]


def test_silence_pauses():
    """
    A canary that nobody asked is paused when the time is up, never promoted.
    """
    hosts = make_fleet()

    outcome, _ = release(hosts, on_sleep=traffic(hosts, requests=0))

    assert outcome.ending is Ending.PAUSED
    assert "0 of 20 requests" in outcome.reason
    assert all(serves(host) == {"b1": 100} for host in hosts.values())


def test_wrong_golden_answers_never_reach_traffic():
    """
    A release whose golden answers differ is reverted before it gets a request.
    """
    hosts = make_fleet()
    hosts["n1"].bad_golden.add("b2")

    outcome, events = release(hosts)

    assert outcome.ending is Ending.REVERTED
    assert isinstance(outcome.error, ReleaseReverted)
    assert "golden" in outcome.reason
    assert not [event for event in events if event.data.get("weights", {}).get("v2")]
    assert not hosts["n1"].running["green"]


def test_a_first_release_needs_no_canary():
    """
    Where nothing serves there is nothing to compare with: golden answers, then all the traffic.
    """
    hosts = make_fleet(serving=None)

    outcome, _ = release(hosts)

    assert outcome.ending is Ending.PROMOTED
    assert all(serves(host) == {"b2": 100} for host in hosts.values())


def test_releasing_what_serves_does_nothing():
    """
    Outcome noop; no host is touched, not even for a lease.
    """
    hosts = make_fleet()

    outcome, _ = release(hosts, bundle="b1")

    assert outcome.ending is Ending.NOOP
    assert all(host.calls == [] for host in hosts.values())


def test_two_operators_at_once():
    """
    The second is refused before it touches anything, and gives back what it had taken.
    """
    hosts = make_fleet()
    hosts["n2"].lease = {"owner": "somebody", "fence": 7}

    with pytest.raises(LeaseHeld, match="x"):
        release(hosts)

    assert hosts["n1"].lease is None
    assert hosts["n2"].lease["owner"] == "somebody"
    assert all(not host.staged - {"b1"} for host in hosts.values())


def test_a_host_lost_before_it_was_touched_is_no_trouble():
    """
    The release stops, names the host, and nobody is needed: the host serves what it served.
    """
    hosts = make_fleet()

    def stage_loses(event):
        if event.name == "lease.acquired":
            hosts["n2"].fail_at = {"slot.start": lost("n2")}
            hosts["n2"].fail_at["traffic.set"] = lost("n2")

    outcome, _ = release(hosts, report=stage_loses)

    assert outcome.ending is Ending.REVERTED
    assert "n2" in outcome.reason
    assert serves(hosts["n1"]) == serves(hosts["n3"]) == {"b1": 100}
    assert isinstance(outcome.error, RollbackFailed), "it may have started: a person looks"
    assert outcome.evidence["hosts"]["n2"] is State.STUCK
    assert outcome.evidence["hosts"]["n1"] is State.REVERTED


def test_a_host_lost_while_retiring_does_not_undo_the_release():
    """
    All gates have passed and all hosts serve the new release: it stands, and the host is named.
    """
    hosts = make_fleet()
    hosts["n3"].fail_at["slot.stop"] = lost("n3")

    outcome, _ = release(hosts)

    assert outcome.ending is Ending.PROMOTED
    assert isinstance(outcome.error, TransportError)
    assert "n3" in outcome.error.what
    assert all(serves(host) == {"b2": 100} for host in hosts.values())


def test_interrupting_goes_back():
    """
    Control-C in the middle of a canary reverts it.
    """
    hosts = make_fleet()

    def interrupt(seconds):
        raise KeyboardInterrupt

    outcome, _ = release(hosts, on_sleep=interrupt)

    assert outcome.ending is Ending.REVERTED
    assert "interrupted" in outcome.reason
    assert all(serves(host) == {"b1": 100} for host in hosts.values())


def test_interrupting_while_old_slots_drain_undoes_nothing():
    """
    Every gate has passed: the release stands, and the command says what is not finished.
    """
    hosts = make_fleet()

    def report(event):
        if event.name == "slot.retired":
            raise KeyboardInterrupt

    outcome, _ = release(hosts, report=report)

    assert outcome.ending is Ending.PROMOTED
    assert outcome.error is not None
    assert all(serves(host) == {"b2": 100} for host in hosts.values())


def test_a_release_onto_a_dead_one_takes_all_its_traffic():
    """
    Where what serves is dead, the new release gets all the traffic and the dead slot is stopped.
    """
    hosts = make_fleet()
    for host in hosts.values():
        host.running["blue"] = False
        host.failed_units.add("blue")

    outcome, _ = release(hosts)

    assert outcome.ending is Ending.PROMOTED
    assert all(serves(host) == {"b2": 100} for host in hosts.values())


def test_a_world_that_changed_before_the_lease_is_refused():
    """
    Somebody else released between the plan and the lease: nothing is touched.
    """
    hosts = make_fleet()

    def changed():
        raise PreconditionError("x", why="another plan", fix="y")

    with pytest.raises(PreconditionError):
        release(hosts, recheck=changed)

    assert all(host.lease is None and not host.journal for host in hosts.values())


def test_a_full_disk_keeps_its_own_kind():
    """
    Nothing was started, so the error is the host's: its kind and exit code tell scripts why.
    """
    hosts = make_fleet()

    def stage(tool):
        raise DiskTooSmall(f"{tool.host}: x", why="2 GiB free", fix="y", host=tool.host)

    outcome, _ = release(hosts, stage=stage)

    assert outcome.ending is Ending.REVERTED
    assert isinstance(outcome.error, DiskTooSmall)
    assert all(serves(host) == {"b1": 100} for host in hosts.values())


def test_a_bug_of_ours_takes_users_back_first():
    """
    An error nobody foresaw reverts like a failure, and keeps its traceback.
    """
    hosts = make_fleet()

    def bug(seconds):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        release(hosts, on_sleep=bug)

    assert all(serves(host) == {"b1": 100} for host in hosts.values())
    assert not hosts["n1"].running["green"]


def test_a_leftover_canary_is_cleared_first():
    """
    A release that died in the middle left a slot with traffic; the next one takes it back first.
    """
    hosts = make_fleet()
    hosts["n1"].staged.add("b9")
    hosts["n1"].slots["green"], hosts["n1"].running["green"] = "b9", True
    hosts["n1"].weights = {"blue": 90, "green": 10}

    outcome, events = release(hosts)

    assert outcome.ending is Ending.PROMOTED
    assert "slot.cleared" in [event.name for event in events]
    assert serves(hosts["n1"]) == {"b2": 100}


VERBS = ("slot.start", "golden", "traffic.set", "traffic.set#2", "traffic.drain", "slot.stop",
         "measure", "measure#3", "good.record")  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(VERBS), st.sampled_from([lost, refused]))
def test_whatever_fails_no_host_is_left_mixed(name, verb, kind):
    """
    After any one failure each host gives all its traffic to one release, and the end says which:
    promoted hosts serve the new one, reverted hosts the old one; only a stuck host may differ.
    """
    hosts = make_fleet()
    hosts[name].fail_at[verb] = kind(name)

    outcome, _ = release(hosts)

    wanted = {"b2": 100} if outcome.ending is Ending.PROMOTED else {"b1": 100}
    for other, host in hosts.items():
        if outcome.evidence["hosts"][other] is not State.STUCK:
            assert serves(host) == wanted, (other, outcome)
        assert sum(host.weights.values()) == 100, "a request would find nobody"
    stuck = [h for h, state in outcome.evidence["hosts"].items() if state is State.STUCK]
    assert stuck in ([], [name])
    assert isinstance(outcome.error, RollbackFailed) == bool(stuck)
