"""
Connections to the hosts of a fleet.
"""

import resource
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from deploy.errors import DeployError, TransportError
from deploy.inventory.schema import Fleet
from deploy.leases.owner import actor
from deploy.release import host_commands
from deploy.release.observe import Observed, look, observe
from deploy.transport.client import HostClient
from deploy.transport.session import SessionTransport
from deploy.transport.ssh import SshTransport

_GOLDEN_S = 60.0
_STATUS_S = 20.0
_OTHER_FILES = 256  # beside the connections


@dataclass(frozen=True)
class Hosts:
    """
    A fleet with a connection to each of its hosts.

    Attributes:
        clients: Of the whole fleet, whose hosts hold its desired state; also of hosts that were
            not selected.
    """

    fleet: Fleet
    clients: Mapping[str, HostClient]
    transports: Mapping[str, SshTransport]

    def seen(self) -> dict[str, Observed | DeployError]:
        """
        Return what every selected host looks like, or why it could not be read.
        """
        return observe(self.selected.values(), timeout_s=_STATUS_S)

    def observed(self) -> dict[str, Observed]:
        """
        Return what every host looks like.

        Raises:
            DeployError: One or more hosts could not be read; all are named.
        """
        readable, errors = self._read()
        if errors:
            raise _unreadable(errors, readable)
        return readable

    def readable(
        self, within_s: float | None = None
    ) -> tuple[dict[str, Observed], dict[str, DeployError]]:
        """
        Return what the hosts that can be read look like, and the errors of the others.

        Args:
            within_s: A host that has not answered by then cannot be read.  If that is all of them,
                each gets its full time: the link or the machine is slow.

        Raises:
            DeployError: No host could be read; all are named.
        """
        readable, errors = self._read(within_s)
        if errors and not readable and within_s is not None:
            readable, errors = self._read()
        if errors and not readable:
            raise _unreadable(errors, readable)
        return readable, errors

    def holders(self) -> tuple[str, ...]:
        """
        Return who holds leases of the hosts that answer.
        """
        seen, _ = look(self.clients, timeout_s=_STATUS_S, within_s=2.0)
        return tuple(sorted({s.lease_owner for s in seen.values() if s.lease_owner}))

    def _read(
        self, within_s: float | None = None
    ) -> tuple[dict[str, Observed], dict[str, DeployError]]:
        return look(self.selected, timeout_s=_STATUS_S, within_s=within_s)

    def others(self) -> dict[str, Observed]:
        """
        Return what the hosts that were not selected look like, as far as they answer within 2 s.
        """
        clients = {name: one for name, one in self.clients.items() if name not in self.selected}
        return look(clients, timeout_s=_STATUS_S, within_s=2.0)[0] if clients else {}

    @property
    def selected(self) -> dict[str, HostClient]:
        """
        Return the clients of the hosts that the command is for.
        """
        return {host.name: self.clients[host.name] for host in self.fleet.hosts}

    @property
    def limits(self) -> host_commands.Limits:
        policy, service = self.fleet.release, self.fleet.service
        return host_commands.Limits(
            start_s=service.start_timeout,
            drain_s=policy.drain_timeout,
            golden_s=_GOLDEN_S,
            keep=policy.keep,
        )


@contextmanager
def connect(of: Fleet) -> Iterator[Hosts]:
    """
    Yield connections to the hosts of *of*; they are opened at first use and closed at the end.
    """
    everyone = (*of.hosts, *of.others)
    allow_open_files(2 * len(everyone) + _OTHER_FILES)
    sudo = {host.name: host.ssh.user != "root" for host in everyone}
    transports = {host.name: SessionTransport(host, sudo=sudo[host.name]) for host in everyone}
    clients = {
        name: HostClient(transport, actor=actor(), sudo=sudo[name])
        for name, transport in transports.items()
    }
    try:
        yield Hosts(of, clients, transports)
    finally:
        for transport in transports.values():
            transport.close()


def allow_open_files(count: int) -> None:
    """
    Let this process have *count* open files, or as many as it may: a host takes up to two, its
    connection and that to its jump host, and many systems begin with a limit of 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _unreadable(errors: Mapping[str, DeployError], readable: Collection[str]) -> DeployError:
    """
    Return one error for all hosts that could not be read; errors of one kind keep their kind.
    """
    if len(errors) == 1:
        return next(iter(errors.values()))
    kinds = {type(error) for error in errors.values()}
    kind = kinds.pop() if len(kinds) == 1 else TransportError
    fixes = dict.fromkeys(error.fix for error in errors.values())
    if issubclass(kind, TransportError):
        fixes = {
            f"bring them back, or go on without: --limit {','.join(readable) or 'HOSTS'}": None
        }
    return kind(
        f"{', '.join(errors)}: cannot be read",
        why="; ".join(f"{error.what}: {error.why}" for error in errors.values()),
        fix="; ".join(fixes),
    )
