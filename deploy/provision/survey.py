"""
Reads the facts of all hosts at once, each over one SSH connection and with one command.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

from deploy.errors import DeployError, TransportError
from deploy.foreign_text import visible
from deploy.host.protocol import FactQuery, Facts
from deploy.inventory.schema import Host
from deploy.provision.probe import read_facts
from deploy.provision.report import EventKind, ProvisionEvent
from deploy.transport.ssh import SshTransport

_CONNECTIONS_MAX = 64
_LOGINS_MAX = 8  # sshd drops new logins when it has ten unfinished ones (MaxStartups)

Answer = Facts | DeployError | None  # None: the host has no Python
# Returns what to ask the host in place of its first query; None: its facts are complete.
FollowUp = Callable[[str, Facts], FactQuery | None]


class Survey:
    """
    Connects to *hosts* in the background, and asks them when the queries are known.

    Attributes:
        commands: Commands sent, by host.
    """

    def __init__(self, hosts: Sequence[Host], report: Callable[[ProvisionEvent], None]) -> None:
        self._report = report
        self._transports = {host.name: SshTransport(host) for host in hosts}
        self._queries: Future[tuple[bytes, Mapping[str, FactQuery], FollowUp]] = Future()
        self._logins = threading.BoundedSemaphore(_LOGINS_MAX)
        self._todo: queue.SimpleQueue[Host] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[ProvisionEvent | tuple[str, Answer]] = queue.SimpleQueue()
        for host in hosts:
            self._todo.put(host)
        for _ in hosts[:_CONNECTIONS_MAX]:
            # Daemons: a name server that does not answer must not hold up the end of the program.
            threading.Thread(target=self._work, daemon=True).start()

    @property
    def commands(self) -> dict[str, int]:
        return {name: transport.commands for name, transport in self._transports.items()}

    def ask(
        self,
        packed_program: bytes,
        queries: Mapping[str, FactQuery],
        end_s: float,
        follow_up: FollowUp = lambda _name, _facts: None,
    ) -> Iterator[tuple[str, Answer]]:
        """
        Yield the name and the answer of each host, in the order of the answers.

        Args:
            queries: Query of each host, by name.
            end_s: Deadline on the monotonic clock; hosts without an answer then are not yielded.
            follow_up: Called with the facts of each host, for a second command.
        """
        self._queries.set_result((packed_program, queries, follow_up))
        left = len(self._transports)
        while left:
            try:
                result = self._results.get(timeout=max(0.0, end_s - time.monotonic()))
            except queue.Empty:
                return
            if isinstance(result, ProvisionEvent):
                self._report(result)
            else:
                left -= 1
                yield result

    def transport(self, name: str) -> SshTransport:
        """
        Return the connection to a host that has answered, until `close`.
        """
        return self._transports[name]

    def close(self) -> None:
        """
        Close all connections; threads that wait for a host end.
        """
        self._queries.cancel()
        while not self._todo.empty():
            with contextlib.suppress(queue.Empty):
                self._todo.get_nowait()
        for transport in self._transports.values():
            transport.close()

    def _work(self) -> None:
        while True:
            try:
                host = self._todo.get_nowait()
            except queue.Empty:
                return
            answer: Answer
            try:
                answer = self._read(host)
            except DeployError as error:
                answer = error
            except Exception as error:
                answer = unreadable(host.name, error)
            self._results.put((host.name, answer))

    def _read(self, host: Host) -> Answer:
        transport = self._transports[host.name]
        self._results.put(ProvisionEvent(host.name, EventKind.CONNECTING))
        with self._logins:
            transport.connect()
        packed_program, queries, follow_up = self._queries.result()
        self._results.put(ProvisionEvent(host.name, EventKind.LOOKING))

        def ask(query: FactQuery) -> Facts | None:
            return read_facts(
                transport,
                sudo=host.ssh.user != "root",
                packed_program=packed_program,
                query=query,
                timeout_s=host.ssh.command_timeout,
            )

        facts = ask(queries[host.name])
        more = follow_up(host.name, facts) if facts is not None else None
        return facts if more is None else ask(more)


def unreadable(host: str, error: Exception) -> TransportError:
    """
    Return *error*, of any class, as the failure of *host* alone.
    """
    return TransportError(
        f"{host}: the facts of the host could not be read",
        why=f"{type(error).__name__}: {visible(str(error))}",
        fix=f"inv provision --limit {host}; if it fails again, this is a defect of slipway",
        host=host,
    )
