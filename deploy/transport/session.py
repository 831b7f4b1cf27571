"""
Calls of a host's program through one session (`deploy.host.session`), opened when needed.

Each call is a process on the host, as without a session; what it saves is the start of a Python
and of an SSH channel, 0.25 s of the host's processor time a call.  Where a host has no session (an
older program, none, or a sudo that lets only that program pass) each call is a command of its own.
"""

import contextlib
import json
import queue
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import paramiko

from deploy.host import layout
from deploy.host.session import GREETING, IDLE_S
from deploy.inventory.schema import Host
from deploy.transport.base import OUTPUT_MAX, Completed
from deploy.transport.conversation import OutputTooLong
from deploy.transport.ssh import Link, SshTransport

_REST_S = IDLE_S / 2  # a session that was used less lately is opened anew
_LATE_S = 5.0  # the host ends a call that much after its caller has given it up
_SLACK_S = 2.0  # the deadline ends a call; this only where it could not
_BEFORE_MAX = 1 << 16  # bytes that a login shell may print before the greeting
_HEAD_MAX = 4096
_SKIPPED_MAX = 64 << 20  # bytes of an answer that came too late
_PART = 1 << 16
_CODE = (
    "import sys; sys.path.insert(0, {program!r}); from deploy.host.session import main; "
    "sys.exit(main())"
)


class NoSession(Exception):
    """
    The host does not open sessions; nothing was run.
    """


class Again(Exception):
    """
    The session has ended and says that it did not run the call.
    """


class Pending:
    """
    A call without its answer.
    """

    def __init__(self, output_max: int) -> None:
        self.output_max = output_max
        self._is_done = threading.Event()
        self._answer: Answer | Exception = TimeoutError()

    def set(self, answer: "Answer | Exception") -> None:
        if not self._is_done.is_set():
            self._answer = answer
            self._is_done.set()

    @property
    def is_done(self) -> bool:
        return self._is_done.is_set()

    def close(self) -> None:
        """
        Give the call up: it may still run.
        """
        self.set(TimeoutError())

    def wait(self, timeout_s: float) -> "Answer":
        """
        Return the answer.

        Raises:
            NoSession: The host opened none.
            Again: It was not run.
            TimeoutError: No answer within *timeout_s*.
            OutputTooLong: An output is longer than the call allows.
            paramiko.SSHException, EOFError, OSError: The session ended; it may have run.
        """
        self._is_done.wait(timeout_s)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class Answer(NamedTuple):
    status: int
    stdout: bytes
    stderr: bytes


class Session:
    """
    One session over *channel*, on which nothing has run yet.  Safe to use from several threads.

    What the host sends is bounded by what the calls that wait allow; a session that sends anything
    else is over, and so are the calls that wait.
    """

    def __init__(
        self, channel: paramiko.Channel, command: str, *, on_end: Callable[[], None]
    ) -> None:
        self._channel, self._on_end = channel, on_end
        self._is_left = False
        self._lock = threading.Lock()
        self._pending: dict[int, Pending] = {}  # also what was given up
        self._number = 0
        self._end: Exception | None = None
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._buffer = bytearray()
        self.received_s = time.monotonic()  # when anything came last
        # One stream: paramiko keeps what nobody reads of the other, whatever its window says.
        channel.set_combine_stderr(True)
        try:
            channel.exec_command(command)
            for work in (self._read, self._write):
                threading.Thread(target=work, daemon=True).start()
        except BaseException as error:
            self._end = EOFError(f"the session did not begin: {error}")
            self._outgoing.put(None)
            with contextlib.suppress(Exception):
                channel.close()
            raise

    def begin(self, verb: str, stdin: bytes, *, timeout_s: float, output_max: int) -> Pending:
        """
        Send a call of *verb*, which the host ends some seconds after *timeout_s*.
        """
        pending = Pending(output_max)
        with self._lock:
            if self._end is not None or self._is_left:
                pending.set(self._end if isinstance(self._end, NoSession) else Again())
                return pending
            self._number += 1
            head = {
                "id": self._number,
                "verb": verb,
                "timeout_s": round(timeout_s + _LATE_S, 3),
                "size": len(stdin),
            }
            self._pending[self._number] = pending
            self._outgoing.put(json.dumps(head).encode() + b"\n" + stdin)
        return pending

    def leave(self) -> None:
        """
        Begin no call any more: the host ends the session after those that run.
        """
        with self._lock:
            self._is_left = True
            self._outgoing.put(None)

    # -- threads

    def _write(self) -> None:
        try:
            while (part := self._outgoing.get()) is not None:
                self._channel.sendall(part)
            self._channel.shutdown_write()
        except Exception:  # the reader tells why: it has the exit status
            with contextlib.suppress(Exception):
                self._channel.close()

    def _read(self) -> None:
        try:
            self._greet()
            while True:
                self._take_answer()
        except Exception as error:  # raised in the threads that wait
            self._over(error)

    def _over(self, error: Exception) -> None:
        with self._lock:
            is_first = self._end is None
            self._end = self._end or error
            pending, self._pending = list(self._pending.values()), {}
        for one in pending:
            one.set(error)
        if is_first:
            self._outgoing.put(None)
            self._on_end()
            with contextlib.suppress(Exception):  # the connection may be lost
                self._channel.close()

    def _greet(self) -> None:
        """
        Skip what the login shell prints.

        Raises:
            NoSession: The command ended by itself, without a greeting.
        """
        before = 0
        while True:
            try:
                line = self._line(_BEFORE_MAX) + b"\n"
            except EOFError:
                # A connection that was lost tells no exit status: there a call may have begun.
                if self._channel.recv_exit_status() in (-1, 0):
                    raise
                raise NoSession from None
            if line.endswith(GREETING):  # behind what a shell printed without an end of line
                return
            before += len(line)
            if before > _BEFORE_MAX or line.startswith(b'{"id"'):
                raise _invalid("no greeting")

    def _take_answer(self) -> None:
        try:
            head = json.loads(self._line(_HEAD_MAX))
        except (ValueError, RecursionError):
            raise _invalid("a line that is no answer") from None
        number = head.get("id") if isinstance(head, dict) else None
        with self._lock:
            pending = self._pending.pop(number, None) if type(number) is int else None
        if pending is None:
            raise _invalid("an answer to no call")
        if head.get("again") is True:
            pending.set(Again())
            return
        status, sizes = head.get("status"), (head.get("stdout"), head.get("stderr"))
        if type(status) is not int or not all(type(n) is int and n >= 0 for n in sizes):
            pending.set(error := _invalid("an answer without its sizes"))
            raise error
        if pending.is_done and sum(sizes) <= _SKIPPED_MAX:
            self._skip(sum(sizes))
            return
        if any(size > pending.output_max for size in sizes):
            pending.set(OutputTooLong(pending.output_max))
            raise _invalid("an answer that is too long")
        try:
            stdout, stderr = (self._bytes(size) for size in sizes)
        except Exception as error:
            pending.set(error)
            raise
        pending.set(Answer(status, stdout, stderr))

    def _line(self, limit_bytes: int) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > limit_bytes:
                raise _invalid("a line without an end")
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _bytes(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        found = bytes(self._buffer[:size])
        del self._buffer[:size]
        return found

    def _skip(self, size: int) -> None:
        """
        Drop the answer of a call that was given up.
        """
        while size > len(self._buffer):
            size -= len(self._buffer)
            self._buffer.clear()
            self._fill()
        del self._buffer[:size]

    def _fill(self) -> None:
        part = self._channel.recv(_PART)
        if not part:
            raise EOFError("the host ended the session")
        self.received_s = time.monotonic()
        self._buffer += part


def _invalid(what: str) -> paramiko.SSHException:
    return paramiko.SSHException(f"the host sent {what}")


class SessionTransport(SshTransport):
    """
    An SSH transport whose calls of the host program share a session.

    Args:
        sudo: The host program runs as root by sudo(8).
    """

    def __init__(self, host: Host, *, sudo: bool) -> None:
        super().__init__(host)
        prefix = ["sudo", "-n"] if sudo else []
        self._program = (*prefix, *layout.HOST_COMMAND)
        code = _CODE.format(program=layout.HOST_PROGRAM)
        argv = [*prefix, *layout.HOST_COMMAND[:-1], "-c", code]
        self._command = f"{shlex.join(argv)} 2>/dev/null"
        # Where sudo asks for a password, each call has it before its input.
        self._has_sessions = not (sudo and host.ssh.sudo_password)
        self._current: tuple[Link, Session] | None = None
        self._session_lock = threading.Lock()
        self._without: Link | None = None  # connection whose host has no sessions

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes | None = None,
        check: bool = True,
        output_max: int = OUTPUT_MAX,
    ) -> Completed:
        if self._has_sessions and tuple(argv[:-1]) == self._program and not check:
            began_s = time.monotonic()
            answer = self._call(argv[-1], stdin or b"", timeout_s, output_max)
            if answer is not None:
                stdout, stderr = (part.decode(errors="replace") for part in answer[1:])
                took_s = time.monotonic() - began_s
                return Completed(tuple(argv), answer.status, stdout, stderr, took_s)
        return super().run(
            argv, timeout_s=timeout_s, stdin=stdin, check=check, output_max=output_max
        )

    def close(self) -> None:
        self._current = None
        super().close()

    def _call(self, verb: str, stdin: bytes, timeout_s: float, output_max: int) -> Answer | None:
        """
        Return the answer of a call; None where it was not run, because there is no session.
        """
        began_s = time.monotonic()
        end_s = began_s + timeout_s
        name = f"{layout.HOST_PROGRAM} {verb}"
        for _ in range(2):
            link = self._join()
            left_s = max(0.1, end_s - time.monotonic())
            try:
                with self._deadline(link, left_s, timeout_s, name) as give_up_on:
                    session = self._session_on(link, left_s)
                    if session is None:
                        return None
                    left_s = max(0.1, end_s - time.monotonic())
                    pending = session.begin(verb, stdin, timeout_s=left_s, output_max=output_max)
                    give_up_on.append(pending)
                    try:
                        return pending.wait(left_s + _SLACK_S)
                    except NoSession:
                        self._without = link
                        return None
                    except Again:
                        self._leave(session)
                    except TimeoutError:
                        if session.received_s < began_s:  # it does not answer any more
                            self._leave(session)
                        raise
            finally:
                self._count(link, users=-1)
        return None

    def _join(self) -> Link:
        """
        Return the connection of the session, or another without one, counted as in use.
        """
        with self._session_lock:
            if self._current is not None and self._current[0].transport.is_active():
                self._count(self._current[0], users=1)
                return self._current[0]
        link = self._open()
        self._count(link, sessions=-1)
        return link

    def _session_on(self, link: Link, timeout_s: float) -> Session | None:
        """
        Return the session of *link*, which is begun if there is none; None: there is none to have.
        """
        with self._session_lock:
            if link is self._without:
                return None
            if self._current is not None and self._current[0] is link:
                session = self._current[1]
                if time.monotonic() - session.received_s < _REST_S:
                    return session
                session.leave()
            self._count(link, sessions=1)
            try:
                channel = self._new_channel(link, timeout_s)
                if channel is None:  # sshd has no room for it
                    self._count(link, sessions=-1)
                    return None
                self.commands += 1
                session = Session(
                    channel, self._command, on_end=lambda: self._count(link, sessions=-1)
                )
            except RuntimeError:  # no thread can be started
                self._count(link, sessions=-1)
                return None
            except BaseException:
                self._count(link, sessions=-1)
                raise
            self._current = (link, session)
            return session

    def _leave(self, session: Session) -> None:
        with self._session_lock:
            if self._current is not None and self._current[1] is session:
                self._current = None
        session.leave()
