"""
Any sequence of commands and misfortunes on three hosts that run the real host program.

After each command every host that answers serves one version that the history allows, and a plain
rollback has a way or a true reason.
"""

import shutil
from contextlib import ExitStack, suppress

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deploy.errors import DeployError, NothingToRollBackTo
from deploy.host.layout import HAPROXY_UNIT, SLOTS
from deploy.release.desired import Ending, Goal
from deploy.release.rollback_target import vote_of
from tests.fleet_operator import FleetOperator
from tests.local_fleet import DIGESTS, NAMES, local_fleet
from tests.local_host import LOST_BEFORE

HOSTS = ("n1", "n2", "n3")
a_host = st.sampled_from(HOSTS)
a_slot = st.sampled_from(SLOTS)


def reinstall(fleet, name):
    """
    Empty a host, as a new disk does; provisioning has been there.
    """
    system = fleet.system(name)
    layout = system.layout
    for slot in SLOTS:
        system.unit_of(slot).__init__()
        server = system.proxy.servers[slot]
        server.admin, server.own_weight, server.health = "maint", 100, 2
    for path in (layout.releases, layout.slot_links, layout.state / "journal.d"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (
        layout.journal,
        layout.lease,
        layout.desired,
        layout.pending,
        layout.went_back,
        layout.counter,
        layout.haproxy_state,
    ):
        path.unlink(missing_ok=True)


class FleetMachine(RuleBasedStateMachine):
    """
    Attributes:
        served: Bundles that any host may serve: released as good, or served at the start.
        is_whole: Nothing was broken since the last command that succeeded everywhere.
    """

    def __init__(self):
        super().__init__()
        self.stack = ExitStack()
        self.fleet = self.stack.enter_context(local_fleet(*HOSTS, serving=None))
        self.operator = FleetOperator(self.fleet)
        self.next = 1
        self.served = set()
        self.broken = set()  # hosts where a command may leave something, and says so

    def teardown(self):
        self.stack.close()

    @initialize(count=st.integers(1, 2))
    def first_releases(self, count):
        for _ in range(count):
            self.released(is_good=True)
        assert all(self.fleet.serves(name) == {f"b{count}": 100} for name in HOSTS)

    # -- commands

    def new_bundle(self):
        bundle = f"b{self.next}"
        self.next += 1
        self.operator.in_store.add(bundle)
        return bundle

    @precondition(lambda self: self.next < 10)
    @rule(is_good=st.booleans())
    def released(self, is_good):
        bundle = self.new_bundle()
        self.fleet.errors_per_s = 0 if is_good else 5
        outcome = None
        with suppress(DeployError):
            outcome = self.operator.release(bundle)
        self.fleet.errors_per_s = 0
        if outcome is not None and outcome.ending is Ending.PROMOTED:
            self.served.add(bundle)
        if outcome is not None and outcome.error is None:
            self.broken.clear()
            assert all(self.fleet.serves(name) == {bundle: 100} for name in HOSTS)

    @precondition(lambda self: self.next < 10)
    @rule(after=st.integers(2, 25))
    def released_and_killed(self, after):
        bundle = self.new_bundle()
        with suppress(DeployError):
            self.operator.release_killed(bundle, after)
        if any(self.fleet.serves(name) == {bundle: 100} for name in HOSTS):
            self.served.add(bundle)  # it was killed when all were told to keep it

    @rule(has_store=st.booleans())
    def rolled_back(self, has_store):
        store = set(self.operator.in_store)
        if not has_store:
            self.operator.in_store.clear()
        try:
            self.roll_back(None)
        finally:
            self.operator.in_store = store

    @precondition(lambda self: self.served)
    @rule(data=st.data())
    def rolled_back_to(self, data):
        bundle = data.draw(st.sampled_from(sorted(self.served)))
        self.roll_back(data.draw(st.sampled_from([bundle.replace("b", "v"), DIGESTS[bundle][:9]])))

    def roll_back(self, to):
        readable, _ = self.operator.seen()
        try:
            way, outcome = self.operator.rollback(to)
        except NothingToRollBackTo:
            if to is None:
                self.check_reason(readable)
            return
        except DeployError:
            assert self.broken or len(readable) < len(HOSTS)
            return
        if outcome is None or outcome.error is None:
            left_out = {left.host for left in way.left_out}
            target = NAMES[way.target.bundle]
            for name in set(HOSTS) - left_out:
                assert self.fleet.serves(name) == {target: 100}, way.reason
                assert self.fleet.observed_one(name).unfinished is None
            self.broken -= set(HOSTS) - left_out
        else:
            assert self.broken or way.left_out, outcome.error

    def check_reason(self, readable):
        """
        A rollback is refused only where the hosts that have a record do not agree, or have no
        earlier one.
        """
        votes = [vote_of(current) for current in readable.values() if current.good]
        wanted = [vote for vote in votes if vote is not None]
        assert not wanted or any(2 * wanted.count(v) <= len(wanted) for v in wanted)

    @rule(goal=st.sampled_from([Goal.FORWARD, Goal.BACK]))
    def went_on(self, goal):
        outcome = None
        with suppress(DeployError):
            bundle = NAMES[self.operator.stored().plan.bundle]
            outcome = self.operator.go_on(goal)
        if outcome is not None and outcome.ending is Ending.PROMOTED:
            self.served.add(bundle)
        if outcome is not None and outcome.error is None and goal is Goal.FORWARD:
            # Where nothing serves and the bundle cannot come from anywhere, it is no error.
            left_out = outcome.evidence.get("left_out", {})
            for name in HOSTS:
                serves = self.fleet.serves(name)
                assert serves == {bundle: 100} or (name in left_out and not serves), name

    # -- misfortunes

    @rule(name=a_host)
    def rolled_back_without(self, name):
        """
        A way back while one host does not answer.
        """
        self.fleet[name].is_cut = True
        with suppress(DeployError):
            self.operator.rollback()
        self.fleet[name].is_cut = False
        self.operator.wait()
        self.broken.add(name)

    @rule(name=a_host, verb=st.sampled_from(["slot.start", "traffic.set", "good.rollback"]))
    def rolled_back_in_part(self, name, verb):
        """
        A way back that fails on one host, and the next one, which goes to the same place.
        """
        fleet = self.fleet
        fleet[name].fail(verb, LOST_BEFORE, call=None)
        first = None
        with suppress(DeployError):
            first, outcome = self.operator.rollback()
        fleet[name].faults.clear()
        if first is None or outcome is None or outcome.error is None:
            return
        self.operator.wait()
        with suppress(NothingToRollBackTo):
            second = self.operator.plan_back()
            assert second.target.bundle == first.target.bundle, (first.reason, second.reason)
        self.broken.add(name)

    @rule(name=a_host)
    def reinstalled(self, name):
        """
        It joins again with the next release, or with a way back that has its bundle in the store.
        """
        reinstall(self.fleet, name)
        self.broken.add(name)

    @rule(name=a_host)
    def gave_up(self, name):
        system = self.fleet.system(name)
        for slot, weight in system.proxy.weights.items():
            if weight:
                system.unit_of(slot).fail()
                self.broken.add(name)

    @rule(name=a_host)
    def proxy_stopped(self, name):
        system = self.fleet.system(name)
        system.units[HAPROXY_UNIT].stop()
        system.proxy.is_running = False
        self.broken.add(name)

    @rule(name=a_host)
    def run_removed(self, name):
        if self.fleet.system(name).layout.run.is_dir():
            self.fleet.system(name).remove_run()
            self.broken.add(name)

    @rule(name=a_host, slot=a_slot)
    def masked(self, name, slot):
        self.fleet.system(name).unit_of(slot).is_masked = True
        self.broken.add(name)

    @rule(name=a_host)
    def unmasked(self, name):
        for slot in SLOTS:
            self.fleet.system(name).unit_of(slot).is_masked = False

    # -- what always holds

    @invariant()
    def every_host_serves_one_version_of_the_history(self):
        for name in HOSTS:
            serves = self.fleet.serves(name)
            assert len(serves) <= 1, (name, serves)
            assert set(serves) <= self.served, (name, serves)

    @invariant()
    def no_lease_is_left(self):
        assert [name for name in HOSTS if self.fleet.observed_one(name).lease_owner] == []


TestFleetMachine = FleetMachine.TestCase
TestFleetMachine.settings = settings(
    max_examples=15,
    stateful_step_count=8,
    phases=(Phase.generate,),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# -- the traps, one by one


@pytest.fixture
def machine():
    made = FleetMachine()
    yield made
    made.teardown()


def serving(machine):
    return [machine.fleet.serves(name) for name in HOSTS]


def test_a_retired_release_is_refused_and_the_next_way_back_works(machine):
    """
    keep: 3, five releases, --to the first.
    """
    for _ in range(5):
        machine.released(is_good=True)
    with pytest.raises(NothingToRollBackTo, match="v1") as caught:
        machine.operator.rollback("v1")
    assert "v5" in caught.value.why
    assert serving(machine) == [{"b5": 100}] * 3

    machine.roll_back(None)
    assert serving(machine) == [{"b4": 100}] * 3


@pytest.mark.parametrize(("has_store", "last"), [(True, {"b1": 100}), (False, {})])
def test_a_host_that_joined_in_the_last_release_prevents_nothing(machine, has_store, last):
    """
    It gets the bundle from the store; without it its traffic is taken off, since it serves what
    the others leave.
    """
    machine.released(is_good=True)
    reinstall(machine.fleet, "n3")
    machine.released(is_good=True)
    assert serving(machine) == [{"b2": 100}] * 3
    if not has_store:
        machine.operator.in_store.clear()

    way, outcome = machine.operator.rollback()

    assert serving(machine) == [{"b1": 100}, {"b1": 100}, last]
    assert (outcome.error is None) is has_store
    assert "n3" in way.reason


def test_a_host_that_a_way_back_was_planned_without_is_brought_by_a_resumption(machine):
    """
    A resumption without an error has brought the whole fleet.
    """
    machine.released(is_good=True)
    machine.released(is_good=True)
    machine.rolled_back_without("n3")
    assert serving(machine) == [{"b1": 100}, {"b1": 100}, {"b2": 100}]

    outcome = machine.operator.go_on(Goal.FORWARD)

    assert outcome.error is None
    assert serving(machine) == [{"b1": 100}] * 3


def test_an_empty_host_is_not_said_to_serve(machine):
    machine.released(is_good=True)
    machine.operator.in_store.clear()
    reinstall(machine.fleet, "n3")

    way = machine.operator.plan_back("v1")

    assert way.is_noop
    assert "every host" not in way.reason
    assert "not n3" in way.reason


def test_a_name_of_one_digit_is_no_digest(machine):
    """
    The digest of what serves begins with 1.
    """
    machine.released(is_good=True)
    with pytest.raises(NothingToRollBackTo, match="no release 1 "):
        machine.operator.rollback("1")


def test_a_version_like_a_way_back_is_a_version(machine):
    """
    The operator is killed in the canary of the next release.
    """
    fleet = machine.fleet
    fleet.serve("b1", version="v2.0-back-to-basics")
    machine.served.add("b1")
    machine.next = 2
    machine.released_and_killed(after=8)
    machine.roll_back(None)
    assert serving(machine) == [{"b1": 100}] * 3


def test_a_release_that_is_held_leaves_no_host_with_it(machine):
    """
    Nothing served on n1 before, so nothing does now: the release was not found good.
    """
    machine.first_releases(2)
    reinstall(machine.fleet, "n1")
    machine.released(is_good=False)
    assert serving(machine) == [{}, {"b2": 100}, {"b2": 100}]


def test_a_way_back_that_failed_is_gone_on_with(machine):
    for _ in range(3):
        machine.released(is_good=True)
    machine.rolled_back_in_part("n2", "slot.start")
    machine.roll_back(None)
    assert serving(machine) == [{"b2": 100}] * 3
