"""
Releases that another operator ends, holds, goes on with or takes over.
"""

from dataclasses import replace

import pytest

from deploy.errors import CommandFailed, LeaseHeld, LeaseLost, RollbackFailed, TransportError
from deploy.host.deadman import way_back
from deploy.host.protocol import StateRead, Status
from deploy.release.desired import Desired, Ending, Goal, Ruling
from deploy.release.plan import FLEET
from deploy.release.rollback import implied_target, plan_rollback
from tests.builders import make_policy
from tests.local_fleet import DIGESTS
from tests.local_host import LOST_BEFORE, REFUSED
from tests.unit.deploy.release.conftest import NAMES


class Killed(BaseException):
    """
    The operator's process ends here, and nothing more of it runs.
    """


def die_at(fleet, event_name, count=1):
    """
    Release b2 with an operator who dies at an event; return the desired state that is left.
    """
    left = [count]

    def die(event):
        if event.name == event_name:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

    keepers = fleet.release_dying(die, Killed)
    assert keepers, "it died"
    return fleet.stored()


def open_desired(fleet, goal, **changes):
    stored = fleet.stored()
    return replace(stored, goal=goal, actor="you@desk", **changes)


def bring(fleet, desired, **options):
    return fleet.bring(desired, owner="you", clients=fleet.operator(), **options)


def wait_for_leases(fleet):
    fleet.clock.sleep(make_policy().lease_ttl + 1)


def test_a_desired_state_is_read_back_as_it_was_written(fleet):
    """
    With plan, policy and verdicts, from the hosts.
    """
    fleet.release()

    stored = fleet.stored()

    assert stored == fleet.controller.desired
    assert stored.ending is Ending.PROMOTED
    assert stored.plan.digest == fleet.controller.desired.plan.digest
    assert [ruling.verdict for ruling in stored.rulings] == ["pass"] * len(stored.rulings)


def test_an_operator_who_died_in_the_canary_is_followed_by_another(fleet):
    """
    The other reads plan, policy and verdicts from the hosts, and ends the release as planned.
    """
    stored = die_at(fleet, "canary.measured")
    assert stored.goal is Goal.FORWARD
    assert fleet.serves("n1") == {"b1": 90, "b2": 10}
    wait_for_leases(fleet)

    outcome = bring(fleet, open_desired(fleet, Goal.FORWARD), stage=fleet.stage("b2"))

    assert outcome.ending is Ending.PROMOTED
    assert outcome.error is None
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)
    assert outcome.release == "r-v2"


@pytest.mark.parametrize(
    "event", ["host.staged", "slot.started", "traffic.shifted", "canary.passed"]
)
def test_a_release_of_a_dead_operator_is_aborted_by_another(fleet, event):
    die_at(fleet, event)
    wait_for_leases(fleet)

    outcome = bring(fleet, open_desired(fleet, Goal.BACK, reason="aborted by you@desk"))

    assert outcome.ending is Ending.REVERTED
    assert outcome.error is None, "it was asked for"
    for name in NAMES:
        assert fleet.serves(name) == {"b1": 100}
        assert fleet.running(name) == {"b1"}
        assert fleet.observed()[name].pending is None


@pytest.mark.parametrize("goal", [Goal.BACK, Goal.HELD])
@pytest.mark.parametrize("event", ["host.confirmed", "slot.retired"])
def test_a_release_that_hosts_have_confirmed_is_taken_back_all_the_same(fleet, event, goal):
    """
    Where the old slot was stopped it starts again first.  The release is not on record as good any
    more: no rollback leads to it, and no later release takes it for what serves.
    """
    die_at(fleet, event)
    wait_for_leases(fleet)
    assert fleet.good("n1") == ["b1", "b2"], "control"

    outcome = bring(fleet, open_desired(fleet, goal, reason="taken back by you@desk"))

    assert outcome.error is None
    for name in NAMES:
        assert fleet.serves(name) == {"b1": 100}
        assert fleet.good(name) == ["b1"]
        assert fleet.observed_one(name).kept.bundle == DIGESTS["b1"]
        assert fleet.running(name) == ({"b1"} if goal is Goal.BACK else {"b1", "b2"})


@pytest.mark.parametrize("goal", [Goal.BACK, Goal.HELD])
def test_a_record_that_was_not_forgotten_at_once_is_forgotten_then(fleet, goal):
    """
    The host has stopped the slot, and its record fails once.
    """
    die_at(fleet, "host.confirmed")
    wait_for_leases(fleet)
    fleet["n1"].fail("good.rollback", LOST_BEFORE)

    outcome = bring(fleet, open_desired(fleet, goal))

    assert outcome.error is None
    assert fleet.good("n1") == ["b1"]


@pytest.mark.parametrize("was_ready", [True, False])
def test_a_slot_that_was_not_ready_before_prevents_no_way_back(fleet, was_ready):
    """
    It was retired, and does not start again.  One that was ready keeps the users on the new slot.
    """
    for name in NAMES:
        fleet.system(name).runtimes["blue"].is_ready = was_ready
    die_at(fleet, "slot.retired")
    wait_for_leases(fleet)
    for name in NAMES:
        fleet.system(name).unit_of("blue").starts = "exit"

    outcome = bring(fleet, open_desired(fleet, Goal.BACK))

    assert (outcome.error is None) is not was_ready
    assert fleet.serves("n1") == ({"b2": 100} if was_ready else {"b1": 100})


def test_a_held_release_keeps_the_new_slots_warm_and_goes_on(fleet):
    die_at(fleet, "canary.passed")
    wait_for_leases(fleet)

    held = bring(fleet, open_desired(fleet, Goal.HELD, reason="paused by you@desk"))
    assert held.ending is Ending.PAUSED
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)
    assert fleet.running("n1") == {"b1", "b2"}
    assert fleet.observed()["n1"].pending is None, "one version serves: nothing is to be undone"

    outcome = bring(fleet, open_desired(fleet, Goal.FORWARD, ending=None), stage=fleet.stage("b2"))
    assert outcome.ending is Ending.PROMOTED
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)


@pytest.mark.parametrize("count", [1, 4])
def test_a_pause_that_is_interrupted_drops_nothing(fleet, count):
    """
    ^C ends the command.  The hosts go back by themselves, and the release can be gone on with.
    """
    die_at(fleet, "canary.measured")
    wait_for_leases(fleet)
    left = [count]

    def interrupt(event):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with pytest.raises((RollbackFailed, KeyboardInterrupt)):
        bring(fleet, open_desired(fleet, Goal.HELD, reason="paused by you@desk"), report=interrupt)

    assert fleet.stored().goal is not Goal.BACK
    assert fleet.stored().can_resume


def test_an_operator_lets_a_canary_without_traffic_pass(fleet):
    fleet.requests_per_s = 0
    assert fleet.release().ending is Ending.PAUSED
    stored = open_desired(fleet, Goal.FORWARD, ending=None, reason="", rulings=())
    while (wave := stored.next_wave) is not None:
        stored = stored.ruled(Ruling(wave, (), "pass", "operator", "let through", 0, 0, 0, 0.0))

    outcome = bring(fleet, stored, stage=fleet.stage("b2"))

    assert outcome.ending is Ending.PROMOTED
    assert {wave["gate"] for wave in outcome.evidence["waves"]} == {"operator"}


def test_a_second_operator_is_refused_without_steal(fleet):
    die_at(fleet, "canary.measured")

    with pytest.raises(LeaseHeld, match="n1"):
        bring(fleet, open_desired(fleet, Goal.FORWARD))
    assert fleet.serves("n1") == {"b1": 90, "b2": 10}, "nothing was touched"


def test_an_abort_takes_over_and_the_first_operator_ends(fleet):
    """
    With a newer epoch; the first one touches nothing more, and says who has taken over.
    """
    outcomes = []

    def abort(event):
        if event.name == "canary.measured" and not outcomes:
            desired = open_desired(fleet, Goal.BACK, reason="aborted")
            outcomes.append(bring(fleet, desired, steal=True))

    with pytest.raises(LeaseLost, match="taken over"):
        fleet.release(report=abort)

    assert outcomes[0].ending is Ending.REVERTED
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)
    assert fleet.stored().ending is Ending.REVERTED


def test_a_release_needs_more_than_half_of_the_fleet(fleet):
    """
    The two sides of a cut network can never both release; a way back needs no majority.
    """
    plan = fleet.plan()
    for name in ("n2", "n3"):
        fleet[name].is_cut = True

    with pytest.raises(TransportError, match="1 of 3 hosts"):
        fleet.release(plan=plan)
    assert fleet.serves("n1") == {"b1": 100}

    fleet[name].is_cut = False
    fleet["n2"].is_cut = False
    fleet.release()
    for name in ("n2", "n3"):
        fleet[name].is_cut = True
    readable = {"n1": fleet.observed_one("n1")}
    assert fleet.roll_back(plan_rollback(readable)).ending is Ending.ROLLED_BACK
    assert fleet.serves("n1") == {"b1": 100}


def test_a_lost_host_within_the_budget_does_not_end_the_release(fleet):
    """
    It is named, goes back by itself, and is brought by the next resumption.
    """
    fleet["n3"].fail("slot.start", "lost before", call=None)
    policy = make_policy(max_unavailable=1)

    outcome = fleet.release(policy=policy)

    assert outcome.ending is Ending.PROMOTED
    assert "n3" in outcome.error.what
    assert [fleet.serves(name) for name in NAMES[:2]] == [{"b2": 100}] * 2
    assert list(fleet.stored().left_out) == ["n3"]

    fleet["n3"].faults.clear()
    again = open_desired(fleet, Goal.FORWARD, left_out={}, ending=None)
    assert bring(fleet, again, stage=fleet.stage("b2")).error is None
    assert all(fleet.serves(name) == {"b2": 100} for name in NAMES)


@pytest.mark.parametrize("later", [(), range(3, 20)], ids=["goes back", "fails again"])
def test_a_host_that_failed_within_the_budget_is_taken_back_beside_the_release(fleet, later):
    """
    At once: nobody measures its canary any more.  Where that fails too its lease is renewed no
    longer, so that the host goes back by itself, also while the release goes on.
    """
    for call in (2, *later):  # the first gives the canary its share
        fleet["n1"].fail("traffic.set", REFUSED, call=call)
    went_on, ended = [], []

    def report(event):
        if event.host == "n2" and event.name == "slot.started":
            went_on.append(fleet.serves("n1"))
        if event.name == "host.confirmed":
            ended.append(fleet.lease_owner("n1"))

    policy = make_policy(
        failure_budget=1, lease_ttl="15s", canary={"duration": "30s", "give_up_after": "60s"}
    )
    outcome = fleet.release(report=report, policy=policy)

    assert outcome.ending is Ending.PROMOTED
    assert list(outcome.evidence["left_out"]) == ["n1"]
    assert went_on == [{"b1": 90, "b2": 10} if later else {"b1": 100}]
    assert (ended[0] is None) is bool(later)
    way_back.check(fleet.system("n1"))
    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}, {"b2": 100}, {"b2": 100}]


def test_a_wave_whose_hosts_are_lost_within_the_budget_is_not_waited_for(fleet):
    """
    There is nothing to measure on it.  The next wave has a canary and a verdict of its own.
    """
    fleet["n1"].fail("slot.start", LOST_BEFORE, call=None)

    outcome = fleet.release(policy=make_policy(max_unavailable=1))

    assert fleet.controller._plan.waves[0] == ("n1",), "control"
    assert outcome.ending is Ending.PROMOTED
    assert [(ruling.wave, ruling.hosts) for ruling in fleet.stored().rulings] == [
        (2, ("n2", "n3")),
        (FLEET, ("n2", "n3")),
    ]
    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}, {"b2": 100}, {"b2": 100}]


def test_without_a_budget_a_lost_host_ends_the_release(fleet):
    """
    Negative control of the test above.
    """
    fleet["n3"].fail("slot.start", "lost before", call=None)
    assert fleet.release().ending is Ending.REVERTED


def test_a_host_that_fails_users_after_its_promotion_takes_all_back(fleet):
    """
    Promoted hosts stay measured until the end.
    """
    fleet.errors_when_promoted_per_s = 4

    outcome = fleet.release()

    assert outcome.ending is Ending.REVERTED
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_the_digest_of_a_plan_has_the_policy_in_it(fleet):
    gates = [{"http_request_error_rate": {"max": limit}} for limit in ("1%", "90%")]
    digests = {fleet.plan(policy=make_policy(gates=one)).digest for one in gates}
    assert len(digests) == 2


def test_one_host_with_a_desired_state_of_its_own_decides_nothing(fleet):
    """
    What most hosts hold counts; the text of one host is not read.
    """
    fleet.release()
    stored = fleet.stored()
    system = fleet.system("n1")
    system.layout.desired.write_text('{"epoch": 900, "number": 9, "text": "{}"}')

    assert fleet.stored() == stored
    assert fleet.clients["n1"].call(StateRead()).stamp.epoch == 900, "control: it says so"


def test_a_host_cannot_use_up_the_epochs(fleet):
    """
    One that claims a very large epoch refuses its own lease only.
    """
    system = fleet.system("n3")
    lease = system.layout.lease
    lease.write_text(
        '{"fence": 1, "owner": null, "release": null, "expires_at": 0, "expires_steady_s": 0, '
        f'"boot_id": "x", "epoch": {2**53}}}'
    )
    assert fleet.clients["n3"].call(Status()).epoch == 2**53

    outcome = fleet.release(policy=make_policy(max_unavailable=1))

    assert outcome.ending is Ending.PROMOTED
    assert fleet.controller.desired.epoch < 10
    assert list(outcome.evidence["left_out"]) == ["n3"]


def test_a_rollback_after_a_dead_operator_goes_where_the_release_came_from(fleet):
    """
    Also where some hosts have recorded the new release as good already.
    """
    stored = die_at(fleet, "host.confirmed")
    assert implied_target(stored) == DIGESTS["b1"]
    assert implied_target(None) is None
    assert implied_target(replace(stored, ending=Ending.PROMOTED)) is None


def test_a_failed_way_back_does_not_change_what_the_next_one_does(fleet):
    """
    It stays open, and the next plain rollback goes to the same release.
    """
    fleet.release()
    fleet["n2"].fail("slot.start", "refused", call=None)

    outcome = fleet.roll_back(plan_rollback(fleet.observed()))

    assert outcome.error.exit_code == 9
    assert [fleet.serves(name) for name in NAMES] == [{"b1": 100}, {"b2": 100}, {"b1": 100}]
    assert implied_target(fleet.stored()) == DIGESTS["b1"]
    fleet["n2"].faults.clear()
    again = plan_rollback(fleet.observed(), implied_target(fleet.stored()))
    assert fleet.roll_back(again).error is None
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)
    assert implied_target(fleet.stored()) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"release": 7}', "[" * 9999])
def test_a_desired_state_of_another_form_is_one_error(text):
    from deploy.errors import PreconditionError
    from deploy.release.desired_text import from_text

    with pytest.raises(PreconditionError, match="cannot be read"):
        from_text(text, 1, 1)


def test_a_desired_state_that_contradicts_itself_is_refused(fleet):
    from deploy.errors import PreconditionError
    from deploy.release.desired_text import from_text, to_text

    plan = fleet.plan()
    desired = Desired("r", "me", Goal.FORWARD, plan)
    assert from_text(to_text(desired), 0, 0) == desired
    for wrong in (
        replace(desired, plan=replace(plan, hosts=plan.hosts[:1])),
        replace(desired, rulings=(Ruling(9, (), "pass", "all", "", 0, 0, 0, 0.0),)),
        replace(desired, plan=replace(plan, policy={**plan.policy, "keep": 0})),
    ):
        with pytest.raises(PreconditionError):
            from_text(to_text(wrong), 0, 0)


class RecordedHooks:
    """
    Stands for the operator's programs: notes the phases, and refuses one.
    """

    def __init__(self, refuses=None):
        self.seen, self.refuses = [], refuses

    def before(self, phase, document):
        assert document["actions"]
        self.seen.append(f"before {phase}")
        if phase == self.refuses:
            raise CommandFailed("hook: it refuses", why="exit status 1", fix="look at it")

    def after(self, phase, document):
        self.seen.append(f"after {phase}")

    def going_back(self):
        self.seen.append("going back")

    def close(self):
        self.seen.append("close")


def test_hooks_run_between_the_phases(fleet):
    """
    In the order of the plan; each wave has its own start, canary and promotion.
    """
    hooks = RecordedHooks()
    fleet.release(hooks=hooks, policy=make_policy(waves=["100%"]))

    phases = ["stage", "start", "canary", "promote", "bake", "confirm", "retire"]
    between = [f"{when} {phase}" for phase in phases for when in ("before", "after")]
    assert hooks.seen == ["before release", *between, "after release", "close"]


@pytest.mark.parametrize("phase", ["release", "stage", "start", "canary", "promote", "confirm"])
def test_a_hook_that_refuses_takes_the_release_back(fleet, phase):
    hooks = RecordedHooks(phase)

    if phase == "release":
        with pytest.raises(CommandFailed):
            fleet.release(hooks=hooks)
    else:
        assert fleet.release(hooks=hooks).ending is Ending.REVERTED
        assert hooks.seen[-2:] == ["after revert", "close"]
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)
    assert all(fleet.running(name) == {"b1"} for name in NAMES)


def test_a_way_back_asks_no_hook(fleet):
    fleet.release()
    hooks = RecordedHooks("rollback")

    assert fleet.roll_back(plan_rollback(fleet.observed()), hooks=hooks).error is None
    assert hooks.seen == ["going back", "after rollback", "close"]
