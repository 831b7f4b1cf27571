"""
SSH through fabric, with a deadline on everything and strict host keys.
"""

import contextlib
import itertools
import logging
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import paramiko
from fabric import Config, Connection
from paramiko.auth_strategy import AuthFailure

from deploy.errors import CommandFailed, DeployError, TransportError
from deploy.foreign_text import says
from deploy.inventory.schema import Hop, Host, Ssh
from deploy.transport.base import OUTPUT_MAX, Completed
from deploy.transport.conversation import (
    OutputTooLong,
    SessionRefused,
    converse,
    open_session,
)
from deploy.transport.known_hosts import RecordedKeys, Verdict
from deploy.transport.private_key import Identities
from deploy.transport.sudo import ATTEMPTS, as_sent, sudo_refusal

_CHUNK = 256 * 1024

# paramiko logs what it also raises, with tracebacks; without a handler Python prints them.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


@dataclass(eq=False)
class Link:
    """
    One connection, and how much of it is in use.

    Attributes:
        users: Commands and calls in progress.
        sessions: Open sessions of SSH; a session of calls is one, also while it has none.
        sessions_max: Sessions that sshd has room for; None: it has refused none so far.
    """

    connection: Connection
    transport: paramiko.Transport
    users: int = 0
    sessions: int = 0
    sessions_max: int | None = None

    @property
    def has_room(self) -> bool:
        return self.sessions_max is None or self.sessions < self.sessions_max


class Closable(Protocol):
    def close(self) -> None: ...


class SshTransport:
    """
    One host over one SSH connection, opened at first use.

    A command without an answer in time closes the connection: the host is cut off, frozen or too
    busy, and neither paramiko nor fabric bounds each of its waits.  While other commands use the
    connection, only the command's own channel is closed: a slow answer to one is no loss of the
    others, which have deadlines of their own.

    Where sshd refuses a second session (MaxSessions), commands that run at once get a connection
    each: the renewal of a lease cannot wait for the start of a slot.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._links: list[Link] = []
        self._lock = threading.Lock()
        self._count_lock = threading.Lock()
        self.commands = 0  # run over this transport, for reports

    @property
    def host(self) -> str:
        return self._host.name

    def connect(self) -> None:
        """
        Connect now, where `run` and `put` would connect at their first use.

        Raises:
            HostKeyMismatch: The host key is not the recorded one, or none is recorded.
            TransportError: The host cannot be reached or refuses the key.
        """
        self._count(self._open(), users=-1, sessions=-1)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes | None = None,
        check: bool = True,
        output_max: int = OUTPUT_MAX,
    ) -> Completed:
        sent, before = as_sent(argv, self._host.ssh)
        command = shlex.join(sent)
        # Ends the command on the host too, when this side has given up.
        bounded = f"timeout --kill-after=5 {timeout_s + 5:.0f} {command}"
        started_s = time.monotonic()
        content = before + (stdin or b"")
        with (
            self._channel(timeout_s, shlex.join(argv)) as channel,
            ATTEMPTS.attempt(self.host, before),
        ):
            out, err, status = converse(
                channel, bounded, [content] if content else [], limit_bytes=output_max
            )
            if (refusal := sudo_refusal(self._host, argv, status, err)) is not None:
                raise refusal
        done = Completed(tuple(argv), status, out, err, time.monotonic() - started_s)
        if check and status != 0:
            said = " / ".join((err or out).strip().split("\n")[-8:])
            raise CommandFailed(
                f"{self.host}: `{_short(shlex.join(argv))}` failed",
                why=f"exit status {status}; {says(self.host, said)}",
                fix=f"run it on the host: inv lab.ssh {self.host}, or ssh {self._host.address}",
                host=self.host,
            )
        return done

    def put(self, local: Path, remote: str, *, timeout_s: float, mode: int = 0o644) -> None:
        # `cat` over one channel: paramiko's SFTP waits for an answer to each 32 KiB it writes.
        part = f"{remote}.part"
        script = (
            f"umask 077 && cat > {shlex.quote(part)} && chmod {mode:o} {shlex.quote(part)}"
            f" && mv -f {shlex.quote(part)} {shlex.quote(remote)}"
        )
        argv = ["sh", "-c", script]
        if self._host.ssh.user != "root":
            argv = ["sudo", "-n", *argv]
        sent, before = as_sent(argv, self._host.ssh)
        with (
            self._channel(timeout_s, f"put {remote}") as channel,
            ATTEMPTS.attempt(self.host, before),
            local.open("rb") as file,
        ):
            bounded = f"timeout {timeout_s + 5:.0f} {shlex.join(sent)}"
            parts = itertools.chain([before], iter(lambda: file.read(_CHUNK), b""))
            _, err, status = converse(channel, bounded, parts, limit_bytes=OUTPUT_MAX)
            if (refusal := sudo_refusal(self._host, argv, status, err)) is not None:
                raise refusal
        if status != 0:
            raise CommandFailed(
                f"{self.host}: could not write {remote}",
                why=f"exit status {status}; {says(self.host, err)}",
                fix="check the free space and the mount of that path on the host",
                host=self.host,
            )

    def close(self) -> None:
        links, self._links = self._links, []
        for link in links:
            _close_way(link.connection)

    def _open(self) -> Link:
        """
        Return a connection with room for a session, counted as in use; connect if there is none.
        """
        with self._lock:
            links = self._links  # close() of another thread takes no lock
            for link in tuple(links):
                if not link.transport.is_active():
                    self._drop(link)
            with self._count_lock:
                for link in links:
                    if link.has_room:
                        link.users += 1
                        link.sessions += 1
                        return link
            connection = connect(self._host)
            transport: paramiko.Transport | None = connection.client.get_transport()
            if transport is None:
                raise TransportError(
                    f"{self.host}: the connection was closed",
                    why="another part of this run gave the host up",
                    fix="inv status shows whether the host answers",
                    host=self.host,
                )
            link = Link(connection, transport, users=1, sessions=1)
            # What sshd has refused once it refuses on each connection.
            limits = [known.sessions_max for known in links if known.sessions_max is not None]
            link.sessions_max = min(limits, default=None)
            self._links.append(link)
            return link

    def _drop(self, link: Link) -> None:
        with contextlib.suppress(ValueError):
            self._links.remove(link)
        _close_way(link.connection)

    @contextlib.contextmanager
    def _channel(self, timeout_s: float, command: str) -> Iterator[paramiko.Channel]:
        """
        Yield a channel for *command* whose use ends at the deadline.
        """
        end_s = time.monotonic() + timeout_s
        while True:
            link = self._open()
            left_s = max(0.1, end_s - time.monotonic())
            try:
                with self._deadline(link, left_s, timeout_s, command) as give_up_on:
                    channel = self._new_channel(link, left_s)
                    if channel is not None:
                        give_up_on.append(channel)
                        with channel:
                            self.commands += 1
                            yield channel
                        return
            finally:
                self._count(link, users=-1, sessions=-1)

    def _count(self, link: Link, *, users: int = 0, sessions: int = 0) -> None:
        with self._count_lock:
            link.users += users
            link.sessions += sessions

    def _new_channel(self, link: Link, timeout_s: float) -> paramiko.Channel | None:
        """
        Return a new channel; None: sshd has no room for it, but will on another connection.
        """
        with self._count_lock:
            others = link.sessions - 1
        try:
            return open_session(link.transport, timeout_s, is_alone=others == 0)
        except SessionRefused:
            if others == 0:
                raise
            with self._count_lock:
                link.sessions_max = others
            return None

    @contextlib.contextmanager
    def _deadline(
        self, link: Link, left_s: float, timeout_s: float, command: str
    ) -> Iterator[list[Closable]]:
        """
        Bound a command; the caller appends what to give up for it, its channel, to the list.

        At the deadline the connection is closed, so that the next command opens a new one.  While
        other commands use the connection, only the channel of this one is closed.

        Args:
            left_s: Time until then; *timeout_s* is the whole deadline, for the error.
        """
        fired = threading.Event()
        channels: list[Closable] = []

        def give_up() -> None:
            fired.set()
            with self._count_lock:
                is_alone = link.users <= 1
            if channels and not is_alone:
                channels[0].close()
            else:
                link.transport.close()

        timer = threading.Timer(left_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield channels
        except OutputTooLong as error:
            raise TransportError(
                f"{self.host}: no valid answer to `{_short(command)}`",
                why=f"the host sent {error}; its channel was closed",
                fix=f"look for what prints there: ssh {self._host.address}; it may have run the "
                "command",
                host=self.host,
            ) from error
        except DeployError:
            raise
        except Exception as error:  # paramiko raises here what its reader met: of any class
            why = (
                f"no answer within {timeout_s:.0f} s"
                if fired.is_set()
                else f"the connection was lost ({_words(error)})"
            )
            raise TransportError(
                f"{self.host}: no answer to `{_short(command)}`",
                why=why,
                fix="see whether the host is up: inv status; it may have run the command",
                host=self.host,
            ) from error
        finally:
            timer.cancel()
        if fired.is_set():
            raise TransportError(
                f"{self.host}: no answer to `{_short(command)}`",
                why=f"no answer within {timeout_s:.0f} s",
                fix="see whether the host is up: inv status; it may have run the command",
                host=self.host,
            )


def connect(host: Host) -> Connection:
    """
    Return an open connection to *host*, through its jump hosts.

    Raises:
        HostKeyMismatch: The key is not the recorded one, or none is recorded.
        TransportError: The host cannot be reached or refuses the key.
    """
    hops = route_of(host)
    gateways = open_hops(host, hops[:-1])
    try:
        return _opened(host.name, hops[-1], host.ssh, gateways[-1] if gateways else None)
    except BaseException:
        _close(gateways)
        raise


def open_hops(host: Host, hops: Sequence[Hop]) -> list[Connection]:
    """
    Return connections to the jump hosts *hops* on the way to *host*, each through the one before.

    Raises:
        TransportError: As for `connect`; none is left open.
    """
    gateways: list[Connection] = []
    try:
        for hop in hops:
            label = f"{host.name} (jump host {hop.address})"
            gateways.append(_opened(label, hop, host.ssh, gateways[-1] if gateways else None))
    except BaseException:
        _close(gateways)
        raise
    return gateways


def _close(gateways: Sequence[Connection]) -> None:
    for gateway in reversed(gateways):
        gateway.close()


def _close_way(connection: Connection) -> None:
    """
    Close *connection* and those to its jump hosts, which fabric leaves open.
    """
    way: Connection | None = connection
    while way is not None:
        with contextlib.suppress(Exception):  # it may be half open; the socket goes anyway
            way.close()
        way = way.gateway


def route_of(host: Host) -> tuple[Hop, ...]:
    """
    Return the connections that lead to *host*, the host's own last.
    """
    if host.route:
        return host.route
    ssh = host.ssh
    return (
        *(_hop(ssh, jump.user, jump.address, jump.port) for jump in ssh.jump or ()),
        _hop(ssh, ssh.user, host.address, ssh.port),
    )


def _hop(ssh: Ssh, user: str, address: str, port: int) -> Hop:
    return Hop.model_construct(
        user=user,
        address=address,
        port=port,
        keys=(ssh.key,) if ssh.key is not None else (),
        only_keys=ssh.key is not None,
        known_hosts=(ssh.known_hosts,),
        known_as=(address, port),
    )


def _opened(label: str, hop: Hop, ssh: Ssh, gateway: Connection | None) -> Connection:
    address = hop.address
    kwargs: dict[str, Any] = {
        "banner_timeout": ssh.connect_timeout,
        "auth_timeout": ssh.connect_timeout,
        "channel_timeout": ssh.connect_timeout,
    }
    recorded = RecordedKeys(label, *hop.known_as, hop.known_hosts)
    kwargs["disabled_algorithms"] = {"keys": recorded.unwanted}
    kwargs["transport_factory"] = recorded.transport_factory
    identities = Identities(label, hop) if hop.keys else None
    if identities is not None:
        kwargs["auth_strategy"] = identities
    connection = Connection(
        address,
        user=hop.user,
        port=hop.port,
        config=Config(lazy=True),  # the fleet file decides, not ~/.ssh/config
        gateway=gateway,
        connect_timeout=int(max(1, ssh.connect_timeout)),
        connect_kwargs=kwargs,
    )
    # Fabric accepts unknown hosts by default.
    connection.client.set_missing_host_key_policy(recorded)
    try:
        with _bounded(gateway, 3 * ssh.connect_timeout):
            connection.open()
    except DeployError:  # of the recorded keys
        raise
    except paramiko.AuthenticationException as error:
        if (lost := _lost(error)) is not None:
            raise _lost_while_offering(label, hop, error, lost) from error
        raise TransportError(
            f"{label}: the host refuses the key",
            why=f"{hop.user}@{address}:{hop.port}: {_words(error)}",
            fix="put the public key into the host's authorized_keys, or set ssh.user and ssh.key",
            host=label,
        ) from error
    except paramiko.SSHException as error:
        if "no acceptable host key" in str(error):
            shown = f"{address} has no key of a recorded type"
            raise recorded.refusal(Verdict.OTHER, shown) from error
        raise _unreachable(label, hop, error) from error
    except Exception as error:  # a server can make paramiko raise errors of any class
        raise _unreachable(label, hop, error) from error
    finally:
        if identities is not None:
            identities.close()
    transport = connection.client.get_transport()
    assert transport is not None
    transport.set_keepalive(int(max(1, ssh.keepalive)))
    sock = transport.sock
    if isinstance(sock, socket.socket):
        # Nagle against delayed acknowledgements: 54 ms a command with it, 8 ms without.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


@contextlib.contextmanager
def _bounded(gateway: Connection | None, timeout_s: float) -> Iterator[None]:
    """
    Close *gateway* after *timeout_s*: its channels open without a deadline of their own.
    """
    if gateway is None:
        yield
        return
    timer = threading.Timer(timeout_s, gateway.client.get_transport().close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _lost(error: paramiko.AuthenticationException) -> Exception | None:
    """
    Return how the connection was lost while keys were offered; None: they were refused.
    """
    results = [one.result for one in error.result] if isinstance(error, AuthFailure) else []
    others = [one for one in results if not isinstance(one, paramiko.AuthenticationException)]
    return next((one for one in others if isinstance(one, Exception)), None)


def _lost_while_offering(
    label: str, hop: Hop, error: paramiko.AuthenticationException, lost: Exception
) -> TransportError:
    results = [one.result for one in error.result] if isinstance(error, AuthFailure) else []
    refused = sum(isinstance(one, paramiko.AuthenticationException) for one in results)
    if refused < 2:
        return _unreachable(label, hop, lost)
    return TransportError(
        f"{label}: the host closes the connection after {refused} keys",
        why=f"{hop.user}@{hop.address}:{hop.port}: it refused each ({_words(lost)}); sshd takes as "
        "many as MaxAuthTries says, 6 by default",
        fix="set ssh.key to the one of this host: then no other is offered; or take others out of "
        "the SSH agent: ssh-add -d",
        host=label,
    )


def _unreachable(label: str, hop: Hop, error: BaseException) -> TransportError:
    return TransportError(
        f"{label}: cannot connect",
        why=f"{hop.user}@{hop.address}:{hop.port}: {_words(error)}",
        fix="is it up, and is its address right?  ping it, then: inv status",
        host=label,
    )


def _words(error: BaseException) -> str:
    if isinstance(error, AuthFailure):
        return "; ".join(str(one.result) for one in error.result) or "no key to offer"
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        return ", ".join(sorted({str(e) for e in error.errors.values()}))
    if isinstance(error, TimeoutError):
        return "no answer (timed out)"
    return str(error) or type(error).__name__


def _short(command: str) -> str:
    return command if len(command) <= 120 else command[:117] + "..."
