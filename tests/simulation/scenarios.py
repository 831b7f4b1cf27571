"""
What is done in a world, and what must be true of it in the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.local_fleet import DIGESTS
from tests.local_host import place_release
from tests.simulation.faults import TTL_S
from tests.simulation.invariants import SETTLE_S, Invariants
from tests.simulation.operators import CANARY_PCT, Command, deterministic
from tests.simulation.world import DEADMAN_S, world_of


@dataclass(frozen=True)
class Scenario:
    """
    Attributes:
        hosts: Their names.
        does: What the operator ann does; a command that nothing disturbs.
        prepare: What was done before, without faults.
        is_bad: Every request to the new release fails.
    """

    name: str
    hosts: tuple[str, ...]
    does: Callable[[Command], object]
    prepare: Callable[[object], object] = lambda world: None
    is_bad: bool = False


def _release(command):
    return command.release(DIGESTS["b2"], "v2")


def _rollback(command):
    return command.rollback(steal=False, to="v1")


def _released(world):
    done = Command(world, "amy").release(DIGESTS["b2"], "v2")
    assert done.ending == "promoted", done.reason
    assert done.error is None, done.error


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("release", ("n1", "n2"), _release),
        Scenario("rejected", ("n1", "n2"), _release, is_bad=True),
        Scenario("rollback", ("n1", "n2"), _rollback, prepare=_released),
        Scenario("three", ("n1", "n2", "n3"), _release),
    )
}


def play(scenario, explorer):
    """
    Do *scenario* once, with the faults of *explorer*, and return how it ended, in words.

    Raises:
        Violation: An invariant did not hold.
    """
    with world_of(*scenario.hosts, serving=DIGESTS["b1"]) as world:
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
            if scenario.prepare is _released:
                invariants.new.discard(DIGESTS["b2"])
            world.invariants = invariants
            return _play(scenario, explorer, world, invariants)


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
    explorer.end_of_faults(world)
    alone = _fleet(world)
    last = explorer.choose(("rollback", "resume"))
    fresh = Command(world, "zoe")
    if last == "rollback":
        fresh.rollback()
        is_refused = type(fresh.error).__name__ == "NothingToRollBackTo"
        if is_refused and len(set(alone.values())) == 1:
            fresh.error = None  # nothing good is older
    else:
        fresh.resume()
        if type(fresh.error).__name__ == "PreconditionError" and "is open" in fresh.error.what:
            return f"{command.ending}: {_words(alone)}"  # inv rollback is the way then
        if type(fresh.error).__name__ in ("CanaryRejected", "ReleasePaused"):
            fresh.error = None
    if fresh.error is not None:
        raise AssertionError(f"{last} of a fresh operator: {fresh.ending}: {fresh.error}")
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
