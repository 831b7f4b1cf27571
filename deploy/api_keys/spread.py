"""
Reads the lists of all hosts, and brings one list to all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deploy.api_keys.key_list import WITNESSED_FROM, KeyList, agreed, merge
from deploy.errors import DeployError, FleetDiffers, TransportError
from deploy.host.protocol import KeysHeld, KeysRead, KeysWrite
from deploy.release.parallel import on_each
from deploy.transport.client import HostClient

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
        return agreed(map(KeyList.of, self.held.values()))

    @property
    def behind(self) -> tuple[str, ...]:
        """
        The hosts that answered and hold another list than the merged one.
        """
        return tuple(host for host, held in self.held.items() if not _holds(held, self.merged))


@dataclass(frozen=True, slots=True)
class Spread:
    """
    What came of a change.

    Attributes:
        keys: The list as the hosts hold it now.
        hosts: Those that hold it.
        changed: Those of them that held another one before.
        missed: Why each other host may not hold it.
    """

    keys: KeyList
    hosts: tuple[str, ...]
    changed: tuple[str, ...]
    missed: Mapping[str, DeployError]

    @property
    def error(self) -> FleetDiffers | None:
        """
        The error of a change that some hosts missed.
        """
        if not self.missed:
            return None
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

    Args:
        edit: Returns the changed list; called once.  Returning its argument only spreads it.

    Raises:
        DeployError: No host took the change.
        FleetDiffers: One host alone of three or more took it, so it does not count.
    """
    held, errors = dict(lists.held), dict(lists.errors)
    changed: set[str] = set()
    wanted = edit(lists.merged)
    for _ in range(_ROUNDS):
        todo = [host for host, own in held.items() if not _holds(own, wanted)]
        if not todo:
            break
        lost = _write(clients, todo, wanted, held, changed)
        errors |= lost
        for host in lost:
            del held[host]
        wanted = merge([wanted, agreed(map(KeyList.of, held.values()))])
    hosts = tuple(host for host, own in held.items() if _holds(own, wanted))
    errors |= {host: _contested(host) for host in held if host not in hosts}
    if not hosts:
        raise _nobody(errors)
    missed = {host: errors[host] for host in clients if host in errors}
    if len(hosts) == 1 and len(clients) >= WITNESSED_FROM and hosts[0] in changed:
        raise _alone(hosts[0], missed)
    return Spread(wanted, hosts, tuple(host for host in hosts if host in changed), missed)


def _write(
    clients: Mapping[str, HostClient],
    hosts: list[str],
    wanted: KeyList,
    held: dict[str, KeysHeld],
    changed: set[str],
) -> dict[str, DeployError]:
    def write(host: str) -> None:
        request = KeysWrite(held[host].stamp, wanted.version, wanted.keys)
        result = clients[host].call(request, timeout_s=WITHIN_S)
        held[host] = result.held
        if result.is_written:
            changed.add(host)

    return on_each(hosts, write, within_s=WITHIN_S)


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


def _alone(host: str, missed: Mapping[str, DeployError]) -> FleetDiffers:
    return FleetDiffers(
        f"{host} alone has the new API keys",
        why="what a single host holds does not count; "
        + "; ".join(f"{error.what}: {error.why}" for error in missed.values()),
        fix="the same command again, once more hosts answer",
    )


def _contested(host: str) -> DeployError:
    return DeployError(
        f"{host}: its API keys change all the time",
        why=f"other operators changed them {_ROUNDS} times meanwhile",
        fix="inv keys.list, then the command again",
        host=host,
    )
