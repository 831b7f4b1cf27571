"""
What is done in a world, and what must be true of it in the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

from deploy.errors import NothingToRollBackTo, PreconditionError, RollbackFailed
from tests.local_fleet import DIGESTS
from tests.local_host import place_release
from tests.simulation.faults import FAULTS, OUT_S, TTL_S
from tests.simulation.invariants import SETTLE_S, Invariants
from tests.simulation.operators import CANARY_PCT, Command, deterministic
from tests.simulation.world import DEADMAN_S, Violation, world_of

_BRINGS = {"promoted": "b2", "rolled_back": "b1"}  # what every host serves, without an error


@dataclass(frozen=True)
class Scenario:
    """
    Attributes:
        hosts: Their names.
        does: What the operator ann does; a command that nothing disturbs.
        prepare: What was done before, without faults.
        is_bad: Every request to the new release fails.
        ends: How it ends where nothing happens.
        has_etcd: The desired state is in an etcd, and not on the hosts.
    """

    name: str
    hosts: tuple[str, ...]
    does: Callable[[Command], object]
    prepare: Callable[[object], object] = lambda world: None
    is_bad: bool = False
    ends: str = "promoted: b2/b2"
    has_etcd: bool = False


def _release(command):
    return command.release(DIGESTS["b2"], "v2")


def _rollback(command):
    return command.rollback(steal=False, to="v1")


def _released(world):
    done = Command(world, "amy").release(DIGESTS["b2"], "v2")
    assert done.ending == "promoted", done.reason
    assert done.error is None, done.error


def _interrupted(world):
    """
    Leave an open release behind, of an operator who was killed during the canary.
    """
    killed = Command(world, "amy", max_unavailable=2)

    def kill(point, delivery):
        if (point.when, point.verb) == ("answer", "measure"):
            killed.operator.is_dead = True

    world.at_boundary = kill
    killed.release(DIGESTS["b2"], "v2")
    world.at_boundary = lambda point, delivery: None
    world.pass_s(TTL_S + DEADMAN_S + SETTLE_S)
    assert killed.ending is None, killed.ending


def _half_back(world):
    """
    Leave an open rollback behind: one host answered too late to be planned, the other was cut off
    as it was told.
    """
    _released(world)
    rollback = Command(world, "eva")
    late = set()

    def disturb(point, delivery):
        if (point.when, point.verb, point.host) == ("answer", "status", "n1") and not late:
            late.add("n1")
            FAULTS["slow"](world, point, delivery)
        if (point.when, point.verb, point.host) == ("answer", "state.write", "n2"):
            FAULTS["cut_off"](world, point, delivery)
            world.at_boundary = lambda point, delivery: None

    world.at_boundary = disturb
    rollback.rollback(steal=False, to="v1")
    world.at_boundary = lambda point, delivery: None
    world.pass_s(OUT_S + TTL_S + DEADMAN_S)
    assert isinstance(rollback.error, RollbackFailed), rollback.reason
    assert rollback.stored().left_out.keys() == {"n1"}


def _resume(command):
    return command.resume()


def _resume_alone(command):
    """
    Go on with it from the side of a cut network that has one host of three.
    """
    desired = command.stored()
    for name in ("n2", "n3"):
        command.world.hosts[name].cut_until_s = command.world.now_s + 40.0
        command.world.stops_at(command.world.now_s + 40.0)
    return command.bring(desired)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("release", ("n1", "n2"), _release),
        Scenario("rejected", ("n1", "n2"), _release, is_bad=True, ends="reverted: b1/b1"),
        Scenario("rollback", ("n1", "n2"), _rollback, prepare=_released, ends="rolled_back: b1/b1"),
        Scenario("etcd", ("n1", "n2"), _release, has_etcd=True),
        Scenario(
            "etcd_rollback",
            ("n1", "n2"),
            _rollback,
            prepare=_released,
            ends="rolled_back: b1/b1",
            has_etcd=True,
        ),
        Scenario(
            "etcd_resume",
            ("n1", "n2"),
            _resume,
            prepare=_half_back,
            ends="rolled_back: b1/b1",
            has_etcd=True,
        ),
        Scenario("three", ("n1", "n2", "n3"), _release, ends="promoted: b2/b2/b2"),
        Scenario(
            "alone",
            ("n1", "n2", "n3"),
            _resume_alone,
            prepare=_interrupted,
            ends="refused: b1/b1/b1",
        ),
    )
}


def play(scenario, explorer):
    """
    Do *scenario* once, with the faults of *explorer*, and return how it ended, in words.

    Raises:
        Violation: An invariant did not hold.
    """
    with world_of(*scenario.hosts, serving=DIGESTS["b1"], has_etcd=scenario.has_etcd) as world:
        for host in world.hosts.values():
            host.is_watching = False
            for bundle, version in (("b2", "v2"), ("b3", "v3")):
                place_release(host, DIGESTS[bundle], version)
            host.disk.sync_all()
            host.is_watching = True
        if scenario.is_bad:
            world.errors.add(DIGESTS["b2"])
        with deterministic(world):
            scenario.prepare(world)
            for operator in world.operators:
                operator.is_dead = True
            invariants = Invariants(world, [DIGESTS["b2"], DIGESTS["b3"]], CANARY_PCT)
            if scenario.prepare in (_released, _half_back):
                invariants.new.discard(DIGESTS["b2"])
            world.invariants = invariants
            ending = _play(scenario, explorer, world, invariants)
            if not explorer.points and ending != scenario.ends:
                raise Violation(f"undisturbed it ended {ending}, not {scenario.ends}")
            return ending


def _play(scenario, explorer, world, invariants):
    explorer.begin(world)
    command = Command(world, "ann")
    world.commands.append(command)
    scenario.does(command)
    world.stops_at(world.now_s)
    explorer.operators_over(world)
    _settle(world)
    invariants.check_converged("after lease + 5 s without an operator")
    invariants.check_rejected()
    if command.error is None and len(world.commands) == 1 and command.ending in _BRINGS:
        invariants.check_all_serve(DIGESTS[_BRINGS[command.ending]])
    explorer.end_of_faults(world)
    alone = _fleet(world)
    last = explorer.choose(("rollback", "resume"))
    fresh = Command(world, "zoe")
    if last == "rollback":
        fresh.rollback()
        if isinstance(fresh.error, NothingToRollBackTo) and len(set(alone.values())) == 1:
            fresh.error = None  # nothing good is older
        elif fresh.error is not None and "--to" in fresh.error.fix:
            # One host of two says one thing and one another: the operator names it.
            fresh = Command(world, "ida").rollback(to="v1")
    else:
        fresh.resume()
        is_refused = isinstance(fresh.error, PreconditionError)
        if is_refused and "was taken back" in fresh.error.what:
            # A gate, a loss or another operator: the operator goes on with the way back.
            _, named, rest = fresh.error.fix.partition("inv rollback --to ")
            again = Command(world, "ida")
            fresh = again.rollback(to=rest.split()[0]) if named else again.abort()
        elif is_refused and "no release is open" in fresh.error.what:
            if "hosts differ" not in fresh.error.why:
                return f"{command.ending}: {_words(alone)}"
            # The rollback of one host of two is on record nowhere: the operator does as it says.
            _, named, rest = fresh.error.fix.partition("inv rollback --to ")
            if not named:
                raise Violation(f"no way to one release: {fresh.error}")
            fresh = Command(world, "ida").rollback(to=rest.split()[0])
        if fresh.ending in ("reverted", "paused") and not isinstance(fresh.error, RollbackFailed):
            fresh.error = None  # it went on, and was refused
    if fresh.error is not None:
        raise Violation(f"{last} of a fresh operator: {fresh.ending}: {fresh.error}")
    world.pass_s(TTL_S + DEADMAN_S + SETTLE_S)
    invariants.check_converged(f"after {last}")
    invariants.check_one_version()
    return f"{command.ending}: {_words(alone)}"


def _settle(world):
    """
    Let time pass until lease + 5 s after the last fault, or after the last operator.
    """
    world.stops_at(world.now_s)
    while world.now_s < (until_s := world.quiet_s + TTL_S + DEADMAN_S + SETTLE_S):
        world.pass_s(min(5.0, until_s - world.now_s))


def _fleet(world):
    names = {digest: name for name, digest in DIGESTS.items()}
    return {
        name: "+".join(sorted(names[bundle] for bundle in host.shares()))
        for name, host in world.hosts.items()
    }


def _words(fleet):
    return "/".join(fleet.values())
