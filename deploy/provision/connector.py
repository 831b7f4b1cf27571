"""
pyinfra's connection to a host, with a deadline on every step and a watch for silent hosts.

pyinfra's own SSH connector waits without end for a host that is cut off or frozen.  This one
connects as the rest of this toolkit does, and bounds each command: here by closing the connection,
on the host by `timeout`.
"""

import contextlib
import io
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import gevent
import paramiko
from gevent.event import Event
from pyinfra.api.command import StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.state import State
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.util import CommandOutput, OutputLine, make_unix_command

from deploy.errors import CommandFailed, DeployError, TransportError
from deploy.foreign_text import says
from deploy.inventory.schema import Host, Ssh
from deploy.transport.base import OUTPUT_MAX, Completed
from deploy.transport.conversation import Ended, OutputTooLong, converse, open_session
from deploy.transport.ssh import connect
from deploy.transport.sudo import ATTEMPTS, as_sent, sudo_password, sudo_refusal, under_sudo

_CHUNK = 256 * 1024
_KILL_AFTER_S = 5
_TURN_S = 0.25


def silence_s(ssh: Ssh) -> float:
    """
    Return how long a connected host may be silent before it counts as lost, in seconds.
    """
    return max(10.0, 3 * ssh.keepalive)


class Input:
    """
    Bytes for the standard input of a command, in chunks; its repr shows only their number.
    """

    def __init__(self, open_: Callable[[], IO[bytes]], size: int) -> None:
        self._open, self.size = open_, size

    def __iter__(self) -> Iterator[bytes]:
        with self._open() as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def __repr__(self) -> str:
        return f"Input({self.size} bytes)"


class Prefixed:
    """
    The password of sudo, and the standard input of the command behind it; its repr has neither.
    """

    def __init__(self, before: bytes, content: Input | None) -> None:
        self._before, self._content = before, content

    def __iter__(self) -> Iterator[bytes]:
        yield self._before
        yield from self._content or ()

    def __repr__(self) -> str:
        return f"Prefixed({self._content!r})"


class BoundedConnector(SSHConnector):
    """
    Attributes:
        doing: Current step, for the error when the host becomes silent.
        lost: Why the host is lost; None while it answers.
        commands: Number of remote commands sent.
        said: Last lines of output of the latest failed command.
    """

    def __init__(self, state: State, host: PyinfraHost, target: Host) -> None:
        super().__init__(state, host)
        self.target = target
        self.doing = "connecting"
        self.lost: DeployError | None = None
        self.commands = 0
        self.said = ""
        self._transport: Any = None  # paramiko's
        self._closed = Event()

    def connect(self) -> None:
        ssh = self.target.ssh
        try:
            # Name lookup, TCP, banner, keys and login of up to two hops, each of them bounded too.
            with gevent.Timeout(4 * ssh.connect_timeout, TimeoutError("no answer")):
                connection = connect(self.target)
        except DeployError as error:
            self.lost = error
            raise ConnectError(error.why) from error
        except TimeoutError as error:
            self.lost = self._silent(4 * ssh.connect_timeout)
            raise ConnectError(self.lost.why) from error
        self._transport = connection.client.get_transport()
        sock = self._transport.sock
        if isinstance(sock, socket.socket):
            # The kernel too closes the connection when data stays unacknowledged.
            patience_ms = int(silence_s(ssh) * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)
        gevent.spawn(self._watch)

    def disconnect(self) -> None:
        self._closed.set()
        if self._transport is not None:
            # Closes the socket without waiting for the host.
            self._transport.close()

    def run_shell_command(
        self,
        command: StringCommand,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> tuple[bool, CommandOutput]:
        arguments.pop("_get_pty", None)
        good = arguments.pop("_success_exit_codes", None) or [0]
        content = arguments.pop("_stdin", None)
        timeout_s = arguments.pop("_timeout", None) or self.target.ssh.command_timeout
        arguments.pop("_shell_executable", None)
        before = b""
        password = sudo_password(self.target.ssh) if arguments.get("_sudo") else None
        if password is not None:
            arguments.pop("_sudo")
        # Under sudo `timeout` runs as root: only root may end a process of root.
        shell = f"timeout -k {_KILL_AFTER_S} {timeout_s + _KILL_AFTER_S:.0f} sh"
        line = make_unix_command(command, _shell_executable=shell, **arguments).get_raw_value()
        if password is not None:
            argv, before = under_sudo(["sudo", "-n", "-H", "sh", "-c", line], password)
            line, content = shlex.join(argv), Prefixed(before, content)
        with ATTEMPTS.attempt(self.target.name, before):
            status, stdout, stderr = self.execute(line, content, timeout_s)
            sudo = ["sudo", "-n"] if before else []
            if (refusal := sudo_refusal(self.target, sudo, status, stderr)) is not None:
                raise refusal
        lines = [OutputLine("stdout", text) for text in stdout.splitlines()]
        lines += [OutputLine("stderr", text) for text in stderr.splitlines()]
        if status not in good:
            last = [text.line for text in lines if text.line.strip()][-6:]
            self.said = " / ".join(last) or f"exit status {status}, no output"
        return status in good, CommandOutput(lines)

    def execute(
        self,
        line: str,
        content: "Input | Prefixed | None",
        timeout_s: float,
        output_max: int = OUTPUT_MAX,
    ) -> tuple[int, str, str]:
        """
        Run the shell command *line*; return its exit status and its two outputs.

        Args:
            output_max: Most bytes of each output; a host that sends more is lost.

        Raises:
            TimeoutError: The host is lost: no answer in time, too long an answer, no connection.
        """
        if self.lost is not None:
            raise TimeoutError(self.lost.why)
        self.commands += 1
        try:
            with gevent.Timeout(timeout_s, TimeoutError()):
                ended = self._converse(line, content, timeout_s, output_max)
                return ended.status, ended.stdout, ended.stderr
        except OutputTooLong as error:
            self.lose(self._unknown(f"the host sent {error} while: {self.doing}"))
            raise TimeoutError("too much output") from error
        except TimeoutError as error:
            self.lose(self._silent(timeout_s))
            raise TimeoutError("no answer") from error
        except Exception as error:  # paramiko raises here what its reader met: of any class
            if self.lost is None:
                why = f"the connection was lost while: {self.doing} ({error or 'closed'})"
                self.lose(self._unknown(why))
            raise TimeoutError("connection lost") from error

    def put_file(self, *args: Any, **kwargs: Any) -> bool:
        # pyinfra's file would be readable by all for a moment, under a name that can be guessed.
        raise NotImplementedError("files are placed by deploy.provision.operations")

    def lose(self, error: DeployError) -> None:
        """
        Mark the host as lost: a command that waits for it ends with an error now.
        """
        self.lost = self.lost or error
        self.disconnect()

    def _converse(
        self, line: str, content: "Input | Prefixed | None", timeout_s: float, output_max: int
    ) -> Ended:
        with open_session(self._transport, timeout_s) as channel:
            return converse(channel, line, content or [], limit_bytes=output_max)

    def _watch(self) -> None:
        """
        Send a keepalive request to sshd every few seconds until the connection is closed.

        sshd answers while a command is busy; it does not when the host is frozen or cut off.
        """
        keepalive_s, patience_s = self.target.ssh.keepalive, silence_s(self.target.ssh)
        while not self._closed.wait(keepalive_s) and self._transport.is_active():
            request = gevent.spawn(self._send_keepalive)
            # Counted in turns of this loop: when this machine is too busy to run it, the host is
            # not silent.
            turns = round(patience_s / _TURN_S)
            while not request.ready() and turns > 0:
                request.join(timeout=_TURN_S)
                turns -= 1
            if not request.ready():
                request.kill(block=False)
                self.lose(self._silent(patience_s))

    def _send_keepalive(self) -> None:
        # The running command reports a connection that breaks meanwhile.
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._transport.global_request("keepalive@openssh.com", wait=True)

    def _silent(self, waited_s: float) -> TransportError:
        return self._unknown(f"no answer for {waited_s:.0f} s while: {self.doing}")

    def _unknown(self, why: str) -> TransportError:
        return TransportError(
            f"{self.target.name}: the host was lost",
            why=why,
            fix=f"check that the host is up, then: inv provision --limit {self.target.name}",
            host=self.target.name,
        )


class ConnectorTransport:
    """
    The connection of *connector*, as `HostClient` takes it.
    """

    def __init__(self, connector: BoundedConnector) -> None:
        self._connector = connector

    @property
    def host(self) -> str:
        return self._connector.target.name

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes | None = None,
        check: bool = True,
        output_max: int = OUTPUT_MAX,
    ) -> Completed:
        sent, before = as_sent(argv, self._connector.target.ssh)
        command = shlex.join(sent)
        bounded = f"timeout -k {_KILL_AFTER_S} {timeout_s + _KILL_AFTER_S:.0f} {command}"
        started_s = time.monotonic()
        try:
            content = None if stdin is None and not before else input_of(before + (stdin or b""))
            with ATTEMPTS.attempt(self.host, before):
                status, stdout, stderr = self._connector.execute(
                    bounded, content, timeout_s, output_max
                )
                refusal = sudo_refusal(self._connector.target, argv, status, stderr)
                if refusal is not None:
                    raise refusal
        except TimeoutError:
            assert self._connector.lost is not None
            raise self._connector.lost from None
        if check and status != 0:
            raise CommandFailed(
                f"{self.host}: `{shlex.join(argv)[:120]}` failed",
                why=f"exit status {status}; {says(self.host, stderr.strip()[-400:])}",
                fix=f"run it on {self.host} by hand",
                host=self.host,
            )
        return Completed(tuple(argv), status, stdout, stderr, time.monotonic() - started_s)

    def put(self, local: Path, remote: str, *, timeout_s: float, mode: int = 0o644) -> None:
        raise NotImplementedError("files are placed by deploy.provision.operations")

    def close(self) -> None:
        self._connector.disconnect()


def input_of(content: bytes) -> Input:
    return Input(lambda: io.BytesIO(content), len(content))
