"""
SSH through fabric, with a deadline on everything and strict host keys.
"""

import contextlib
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import paramiko
from fabric import Config, Connection

from deploy.errors import CommandFailed, DeployError, TransportError
from deploy.foreign_text import says
from deploy.inventory.schema import Host, Ssh
from deploy.transport.base import OUTPUT_MAX, Completed
from deploy.transport.conversation import OutputTooLong, converse
from deploy.transport.known_hosts import RecordedKeys, Verdict
from deploy.transport.private_key import check_private_key

_CHUNK = 256 * 1024


class Closable(Protocol):
    def close(self) -> None: ...


class SshTransport:
    """
    One host over one SSH connection, opened at first use.

    A command without an answer in time closes the connection: the host is cut off, frozen or too
    busy, and neither paramiko nor fabric bounds each of its waits.  While other commands use the
    connection, only the command's own channel is closed: a slow answer to one is no loss of the
    others, which have deadlines of their own.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._count_lock = threading.Lock()
        self._in_progress = 0  # commands that use the connection
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
        self._open()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes | None = None,
        check: bool = True,
        output_max: int = OUTPUT_MAX,
    ) -> Completed:
        command = shlex.join(argv)
        # Ends the command on the host too, when this side has given up.
        bounded = f"timeout --kill-after=5 {timeout_s + 5:.0f} {command}"
        started_s = time.monotonic()
        transport = self._open()
        with self._deadline(transport, timeout_s, command) as give_up_on:
            channel = transport.open_session(timeout=timeout_s)
            give_up_on.append(channel)
            with channel:
                self.commands += 1
                out, err, status = converse(
                    channel, bounded, [stdin] if stdin else [], limit_bytes=output_max
                )
        done = Completed(tuple(argv), status, out, err, time.monotonic() - started_s)
        if check and status != 0:
            said = " / ".join((err or out).strip().split("\n")[-8:])
            raise CommandFailed(
                f"{self.host}: `{_short(command)}` failed",
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
        transport = self._open()
        with self._deadline(transport, timeout_s, f"put {remote}") as give_up_on:
            channel = transport.open_session(timeout=timeout_s)
            give_up_on.append(channel)
            with channel, local.open("rb") as file:
                self.commands += 1
                bounded = f"timeout {timeout_s + 5:.0f} {shlex.join(argv)}"
                parts = iter(lambda: file.read(_CHUNK), b"")
                _, err, status = converse(channel, bounded, parts, limit_bytes=OUTPUT_MAX)
        if status != 0:
            raise CommandFailed(
                f"{self.host}: could not write {remote}",
                why=f"exit status {status}; {says(self.host, err)}",
                fix="check the free space and the mount of that path on the host",
                host=self.host,
            )

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it may be half open; the socket goes anyway
                connection.close()

    def _open(self) -> paramiko.Transport:
        with self._lock:
            known = self._connection  # close() of another thread takes no lock
            if known is not None and known.is_connected:
                found: paramiko.Transport | None = known.client.get_transport()
                if found is not None and found.is_active():
                    return found
            self.close()
            connection = connect(self._host)
            self._connection = connection
            transport: paramiko.Transport | None = connection.client.get_transport()
            if transport is None:
                raise TransportError(
                    f"{self.host}: the connection was closed",
                    why="another part of this run gave the host up",
                    fix="inv status shows whether the host answers",
                    host=self.host,
                )
            return transport

    @contextlib.contextmanager
    def _deadline(
        self, transport: paramiko.Transport, timeout_s: float, command: str
    ) -> Iterator[list[Closable]]:
        """
        Bound a command; the caller appends what to give up for it, its channel, to the list.

        At the deadline the connection is closed, so that the next command opens a new one.  While
        other commands use the connection, only the channel of this one is closed.
        """
        fired = threading.Event()
        channels: list[Closable] = []

        def give_up() -> None:
            fired.set()
            with self._count_lock:
                is_alone = self._in_progress <= 1
            if channels and not is_alone:
                channels[0].close()
            else:
                transport.close()

        timer = threading.Timer(timeout_s, give_up)
        timer.daemon = True
        timer.start()
        with self._count_lock:
            self._in_progress += 1
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
            with self._count_lock:
                self._in_progress -= 1
        if fired.is_set():
            raise TransportError(
                f"{self.host}: no answer to `{_short(command)}`",
                why=f"no answer within {timeout_s:.0f} s",
                fix="see whether the host is up: inv status; it may have run the command",
                host=self.host,
            )


def connect(host: Host) -> Connection:
    """
    Return an open connection to *host*, through its jump host if it has one.

    Raises:
        HostKeyMismatch: The key is not the recorded one, or none is recorded.
        TransportError: The host cannot be reached or refuses the key.
    """
    ssh = host.ssh
    gateway = None
    if ssh.jump is not None:
        hop = ssh.jump
        jump = ssh.model_copy(update={"user": hop.user, "port": hop.port, "jump": None})
        gateway = _opened(f"{host.name} (jump host {hop.address})", hop.address, jump, None)
    return _opened(host.name, host.address, ssh, gateway)


def _opened(label: str, address: str, ssh: Ssh, gateway: Connection | None) -> Connection:
    kwargs: dict[str, Any] = {
        "banner_timeout": ssh.connect_timeout,
        "auth_timeout": ssh.connect_timeout,
        "channel_timeout": ssh.connect_timeout,
    }
    recorded = RecordedKeys(label, address, ssh.port, ssh.known_hosts)
    kwargs["disabled_algorithms"] = {"keys": recorded.unwanted}
    if ssh.key is not None:
        check_private_key(ssh.key, label)
        kwargs |= {"key_filename": str(ssh.key), "look_for_keys": False, "allow_agent": False}
    connection = Connection(
        address,
        user=ssh.user,
        port=ssh.port,
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
        raise TransportError(
            f"{label}: the host refuses the key",
            why=f"{ssh.user}@{address}:{ssh.port}: {_words(error)}",
            fix="put the public key into the host's authorized_keys, or set ssh.user and ssh.key",
            host=label,
        ) from error
    except paramiko.SSHException as error:
        if "no acceptable host key" in str(error):
            shown = f"{address} has no key of a recorded type"
            raise recorded.refusal(Verdict.OTHER, shown) from error
        raise _unreachable(label, address, ssh, error) from error
    except Exception as error:  # a server can make paramiko raise errors of any class
        raise _unreachable(label, address, ssh, error) from error
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


def _unreachable(label: str, address: str, ssh: Ssh, error: BaseException) -> TransportError:
    return TransportError(
        f"{label}: cannot connect",
        why=f"{ssh.user}@{address}:{ssh.port}: {_words(error)}",
        fix="is it up, and is its address right?  ping it, then: inv status",
        host=label,
    )


def _words(error: BaseException) -> str:
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        return ", ".join(sorted({str(e) for e in error.errors.values()}))
    if isinstance(error, TimeoutError):
        return "no answer (timed out)"
    return str(error) or type(error).__name__


def _short(command: str) -> str:
    return command if len(command) <= 120 else command[:117] + "..."
