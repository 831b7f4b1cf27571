"""
Reads the lists of all hosts, and brings one list to all of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deploy.api_keys.key_list import (
    WITNESSED_FROM,
    KeyList,
    agreed,
    merge,
    unwitnessed,
    with_states,
)
from deploy.errors import DeployError, FleetDiffers, TransportError
from deploy.host.protocol import ApiKey, KeysHeld, KeysRead, KeysWrite, KeysWritten
from deploy.transport.client import HostClient
from deploy.transport.parallel import on_each

WITHIN_S = 5.0  # for a host to answer one call; then it is left behind, and named
_ROUNDS = 10  # of operators who change the list at the same time


@dataclass(frozen=True, slots=True)
class HeldLists:
    """
    The lists of a fleet's hosts.

    Attributes:
        held: By host, of those that answered.
        errors: Of the others.
    """

    held: Mapping[str, KeysHeld]
    errors: Mapping[str, DeployError]

    @property
    def merged(self) -> KeyList:
        return _agreed(self.held, len(self.held) + len(self.errors))

    @property
    def disputed(self) -> dict[str, tuple[ApiKey, ...]]:
        """
        By host, what it alone says of keys: they are revoked, newer, or unknown elsewhere.
        """
        merged = self.merged
        found = {host: unwitnessed(KeyList.of(own), merged) for host, own in self.held.items()}
        return {host: keys for host, keys in found.items() if keys}

    @property
    def behind(self) -> tuple[str, ...]:
        """
        The hosts that answered and hold another list than the merged one.
        """
        merged = self.merged
        return tuple(host for host, held in self.held.items() if not _holds(held, merged))


@dataclass(frozen=True, slots=True)
class Spread:
    """
    What came of a change.

    Attributes:
        keys: The list as the hosts hold it now.
        hosts: Those that hold it.
        changed: Those of them that held another one before.
        missed: Why each other host may not hold it.
        disputed: By host, names of keys whose state one host alone holds; it stays there.
    """

    keys: KeyList
    hosts: tuple[str, ...]
    changed: tuple[str, ...]
    missed: Mapping[str, DeployError]
    disputed: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def error(self) -> FleetDiffers | None:
        """
        The error of a change that some hosts missed, or of hosts that do not agree.
        """
        if not self.missed:
            return disputed_error(self.disputed) if self.disputed else None
        return FleetDiffers(
            f"{', '.join(self.missed)}: may still have the earlier API keys",
            why="; ".join(f"{error.what}: {error.why}" for error in self.missed.values()),
            fix="inv keys.sync, or any later change of keys, brings them there once they answer",
        )


def read_lists(clients: Mapping[str, HostClient]) -> HeldLists:
    """
    Return the lists of all hosts that answer.

    Raises:
        DeployError: No host answers.
    """
    held: dict[str, KeysHeld] = {}

    def read(host: str) -> None:
        held[host] = clients[host].call(KeysRead(), timeout_s=WITHIN_S)

    errors = on_each(clients, read, within_s=WITHIN_S)
    answered = {host: held[host] for host in clients if host in held and host not in errors}
    if not answered:
        raise _nobody(errors)
    return HeldLists(answered, errors)


def change_keys(
    clients: Mapping[str, HostClient], lists: HeldLists, edit: Callable[[KeyList], KeyList]
) -> Spread:
    """
    Bring the edited list to all hosts.

    A host takes it only while it holds the list that was read there.  Where another operator was
    faster, both changes are merged, and the merged list is sent again.

    In a fleet of three or more hosts, what one host alone says of a key stays on that host, and
    there alone, unless *edit* changes that key.

    Args:
        edit: Returns the changed list; called once.  Returning its argument only spreads it.

    Raises:
        DeployError: No host took the change.
        FleetDiffers: Of three or more hosts fewer than two can be read, and nothing was changed;
            or at most half of them took the change.
    """
    size = len(clients)
    _check_witnesses(lists, size)
    held, errors, base = dict(lists.held), dict(lists.errors), lists.merged
    changed: set[str] = set()
    wanted = edit(base)
    is_edited = wanted != base
    settled = _settled(held, base, wanted)
    for _ in range(_ROUNDS):
        goals = {host: _goal(own, wanted, settled) for host, own in held.items()}
        todo = {
            host: KeysWrite(held[host].stamp, goal.version, goal.keys)
            for host, goal in goals.items()
            if goal.version and not _is_at(held[host], goal, wanted)
        }
        if not todo:
            break
        answers, lost = _write(clients, todo)
        changed |= {host for host, answer in answers.items() if answer.is_written}
        held |= {host: answer.held for host, answer in answers.items()}
        errors |= lost
        for host in lost:
            del held[host]
        wanted = merge([wanted, _agreed(held, size, settled)])
    goals = {host: _goal(own, wanted, settled) for host, own in held.items()}
    hosts = tuple(host for host, own in held.items() if _is_at(own, goals[host], wanted))
    errors |= {host: _contested(host) for host in held if host not in hosts}
    if not hosts:
        raise _nobody(errors)
    missed = {host: errors[host] for host in clients if host in errors}
    if is_edited and changed and size >= WITNESSED_FROM and 2 * len(hosts) <= size:
        raise _too_few(hosts, size, missed)
    # What came up during the change is another operator's, who tells it.
    disputed = {
        host: names
        for host, keys in lists.disputed.items()
        if host in held
        and (names := tuple(k.key_name for k in keys if k in unwitnessed(goals[host], wanted)))
    }
    order = tuple(host for host in hosts if host in changed)
    return Spread(wanted, hosts, order, missed, disputed)


def _check_witnesses(lists: HeldLists, size: int) -> None:
    readable = [host for host, own in lists.held.items() if own.damage is None]
    if size < WITNESSED_FROM or len(readable) >= 2:
        return
    others = [host for host in (*lists.held, *lists.errors) if host not in readable]
    raise FleetDiffers(
        f"{', '.join(others)}: no list of API keys can be read there; nothing was changed",
        why="what a single host says of the keys does not count in a fleet of three or more",
        fix="the same command again, once two hosts answer with a list or with none",
    )


def _settled(held: Mapping[str, KeysHeld], base: KeyList, wanted: KeyList) -> frozenset[ApiKey]:
    """
    Return the states of those keys that the operator changes: the change replaces them.
    """
    before = {key.key_name: key for key in base.keys}
    after = {key.key_name: key for key in wanted.keys}
    return frozenset(
        key
        for own in held.values()
        for key in own.keys
        if before.get(key.key_name) != after.get(key.key_name)
    )


def _agreed(
    held: Mapping[str, KeysHeld], size: int, settled: frozenset[ApiKey] = frozenset()
) -> KeyList:
    votes = [KeyList.of(own) for own in held.values() if own.damage is None]
    left = [KeyList(v.version, tuple(k for k in v.keys if k not in settled)) for v in votes]
    return agreed(left if settled else votes, size)


def _goal(own: KeysHeld, wanted: KeyList, settled: frozenset[ApiKey]) -> KeyList:
    """
    Return what one host shall hold: *wanted*, and what that host alone says.
    """
    alone = unwitnessed(KeyList.of(own), wanted)
    return with_states(wanted, (key for key in alone if key not in settled))


def _is_at(held: KeysHeld, goal: KeyList, wanted: KeyList) -> bool:
    if goal.keys != wanted.keys:  # a list of its own, whose version nobody compares
        return held.damage is None and held.keys == goal.keys
    return _holds(held, goal)


def _write(
    clients: Mapping[str, HostClient], todo: Mapping[str, KeysWrite]
) -> tuple[dict[str, KeysWritten], dict[str, DeployError]]:
    """
    Send each host its list; return the answers, and the errors of the other hosts.
    """
    answers: dict[str, KeysWritten] = {}  # of this round: a late thread changes no later one

    def write(host: str) -> None:
        answers[host] = clients[host].call(todo[host], timeout_s=WITHIN_S)

    lost = on_each(todo, write, within_s=WITHIN_S)
    return {host: answers[host] for host in todo if host not in lost}, lost


def _holds(held: KeysHeld, wanted: KeyList) -> bool:
    if held.damage is not None:
        return False
    return KeyList.of(held) == wanted


def _nobody(errors: Mapping[str, DeployError]) -> DeployError:
    if len(errors) == 1:
        return next(iter(errors.values()))
    kinds = {type(error) for error in errors.values()}
    kind = kinds.pop() if len(kinds) == 1 else TransportError
    return kind(
        f"{', '.join(errors)}: no host has the change",
        why="; ".join(f"{error.what}: {error.why}" for error in errors.values()),
        fix=next(iter(errors.values())).fix,
    )


def _too_few(hosts: tuple[str, ...], size: int, missed: Mapping[str, DeployError]) -> FleetDiffers:
    return FleetDiffers(
        f"{', '.join(hosts)} alone: {len(hosts)} of {size} hosts have the new API keys",
        why="a change counts on more than half of the hosts; "
        + "; ".join(f"{error.what}: {error.why}" for error in missed.values()),
        fix="the same command again, once more hosts answer; "
        "inv keys.rotate NAME, where it says that the name is taken",
    )


def disputed_error(disputed: Mapping[str, tuple[str, ...]]) -> FleetDiffers:
    """
    Return the error of keys whose state one host alone holds.
    """
    told = "; ".join(f"{host}: {', '.join(names)}" for host, names in disputed.items())
    return FleetDiffers(
        f"{told}: no second host holds this state of the API keys",
        why="a change reached too few hosts, others lost it, or the host lies; it is kept there "
        "and not spread",
        fix="inv keys.revoke NAME or inv keys.rotate NAME settles each",
    )


def _contested(host: str) -> DeployError:
    return DeployError(
        f"{host}: its API keys change all the time",
        why=f"other operators changed them {_ROUNDS} times meanwhile",
        fix="inv keys.list, then the command again",
        host=host,
    )
