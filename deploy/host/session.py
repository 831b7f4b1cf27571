"""
A session: the host program stays while its caller is connected, and forks for each call.

A program of its own for each call spends four fifths of its processor time on imports.  Here they
happen once; each call still is a process of its own, with nothing of the calls before it but their
imported modules.  The session ends with its connection; calls that run then still end and are
journaled, as those of `slipway-host.pyz VERB`.

The host begins with GREETING.  Then both sides send a line of JSON and as many bytes as it says:

    caller: {"id": 1, "verb": "status", "timeout_s": 20.0, "size": 61}, the request
    host:   {"id": 1, "status": 0, "stdout": 1830, "stderr": 0}, both outputs
    host:   {"id": 2, "again": true}: nothing was run; ask a new session

A caller may send before the greeting has come, and answers come in the order in which calls end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.host.__main__ import HANDLERS, answer
from deploy.host.protocol import REQUESTS

GREETING = b"slipway-session 1\n"
IDLE_S = 120.0  # without a call: the caller's machine may be gone without a word
KILL_AFTER_S = 5.0  # between SIGTERM and SIGKILL, as timeout(1) has it in calls without a session
_HEADER_MAX = 4096  # bytes of a line of JSON
_REQUEST_MAX = 64 << 20
_PART = 1 << 16
_PIPE_MAX = 1 << 20  # bytes that a pipe may hold
_BROKEN = 2  # exit status where the caller does not keep to the protocol

Run = Callable[[str, str], int]  # verb and request to exit status; prints the answer


class _Running:
    """
    A call in its process.

    Attributes:
        outputs: What came so far, by file descriptor: of stdout, then of stderr.
        end_s: When it is ended, first gently.
    """

    def __init__(self, number: int, pid: int, stdout: int, stderr: int, end_s: float) -> None:
        self.number, self.pid, self.end_s = number, pid, end_s
        self.outputs = {stdout: bytearray(), stderr: bytearray()}
        self.is_told = False  # got SIGTERM


class Session:
    """
    Reads calls and answers them until the caller has gone and the last call has ended.

    Args:
        source, sink: File descriptors of the connection.
        program: File whose replacement ends the session: its modules are read from it.
        run: Runs a call, in a process of its own.
        prepare: Imports what a verb needs, in this process.
    """

    def __init__(
        self,
        source: int,
        sink: int,
        *,
        program: str,
        run: Run,
        prepare: Callable[[str], None],
        idle_s: float = IDLE_S,
        kill_after_s: float = KILL_AFTER_S,
    ) -> None:
        self._source, self._sink = source, sink
        self._idle_s, self._kill_after_s = idle_s, kill_after_s
        self._program, self._loaded = program, _version(program)
        self._run, self._prepare = run, prepare
        self._received, self._unsent = bytearray(), bytearray(GREETING)
        self._running: dict[int, _Running] = {}  # by process id
        self._is_open, self._has_listener = True, True
        self._used_s = time.monotonic()  # when something came, went or ran
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._woken = os.pipe()

    def serve(self) -> int:
        """
        Return the exit status of the program.
        """
        for fd in (self._source, self._sink, self._wakeup, self._woken):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        self._selector.register(self._source, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._send()
        while self._is_open or self._running or (self._unsent and self._has_listener):
            now_s = time.monotonic()
            if self._running:
                self._used_s = now_s
            elif now_s - self._used_s > self._idle_s:
                break
            for key, _ in self._selector.select(self._wait_s(now_s)):
                if key.fd == self._source:
                    self._receive()
                elif key.fd == self._wakeup:
                    os.read(self._wakeup, _PART)
                elif key.fd != self._sink:
                    self._collect(key.fd)
            self._end_late()
            self._reap()
            try:
                while self._take_call():
                    pass
            except _NotOurs:
                return _BROKEN
            self._send()  # before the question whether anything is left to do
        return 0

    # -- the connection

    def _wait_s(self, now_s: float) -> float:
        ends = [one.end_s for one in self._running.values()]
        return max(0.0, min([*ends, self._used_s + self._idle_s + 0.1]) - now_s)

    def _receive(self) -> None:
        try:
            part = os.read(self._source, _PART)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self._selector.unregister(self._source)
            self._is_open = False
        self._received += part
        self._used_s = time.monotonic()

    def _send(self) -> None:
        """
        Send what is ready; a caller that does not read stops no call.
        """
        while self._unsent and self._has_listener:
            try:
                sent = os.write(self._sink, self._unsent[:_PART])
            except BlockingIOError:
                if self._sink not in self._selector.get_map():
                    self._selector.register(self._sink, selectors.EVENT_WRITE)
                return
            except OSError:  # it has gone; the journal has the results
                self._has_listener = False
                break
            del self._unsent[:sent]
            self._used_s = time.monotonic()
        if self._sink in self._selector.get_map():
            self._selector.unregister(self._sink)

    def _say(self, head: dict[str, Any], *outputs: bytes | bytearray) -> None:
        self._unsent += b"".join((json.dumps(head).encode(), b"\n", *outputs))

    # -- calls

    def _take_call(self) -> bool:
        """
        Begin the next call if all of it has come.

        Raises:
            _NotOurs: What came is no call.
        """
        end = self._received.find(b"\n")
        if end < 0:
            if len(self._received) > _HEADER_MAX:
                raise _NotOurs
            return False
        number, verb, timeout_s, size = _parse(bytes(self._received[:end]))
        if len(self._received) < end + 1 + size:
            return False
        text = bytes(self._received[end + 1 : end + 1 + size]).decode(errors="replace")
        del self._received[: end + 1 + size]
        if _version(self._program) != self._loaded:
            self._say({"id": number, "again": True})
            return True
        try:
            self._prepare(verb)
        except Exception:
            self._fail(number, traceback.format_exc())
            return True
        try:
            self._fork(number, verb, text, time.monotonic() + timeout_s)
        except OSError as error:
            self._fail(number, f"the host cannot start a process: {error}\n")
        return True

    def _fail(self, number: int, text: str) -> None:
        said = text.encode(errors="replace")
        self._say({"id": number, "status": 1, "stdout": 0, "stderr": len(said)}, said)

    def _fork(self, number: int, verb: str, text: str, end_s: float) -> None:
        fds: list[int] = []
        try:
            fds += os.pipe()
            fds += os.pipe()
            pid = os.fork()
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        stdout, its_stdout, stderr, its_stderr = fds
        if pid == 0:
            self._be_call(its_stdout, its_stderr, verb, text)
        with contextlib.suppress(OSError):  # the child does it too; whoever comes first
            os.setpgid(pid, pid)
        for fd in (its_stdout, its_stderr):
            os.close(fd)
        for fd in (stdout, stderr):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ)
        self._running[pid] = _Running(number, pid, stdout, stderr, end_s)

    def _be_call(self, stdout: int, stderr: int, verb: str, text: str) -> None:
        """
        Run the call in this process, which is new; never returns.
        """
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            null = os.open(os.devnull, os.O_RDWR)
            for fd, target in ((null, 0), (stdout, 1), (stderr, 2)):
                os.dup2(fd, target)
            os.closerange(3, 3 + max(null, stderr, self._woken, *self._open_fds()))
            status = self._run(verb, text)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(status)

    def _open_fds(self) -> list[int]:
        return [key.fd for key in self._selector.get_map().values()]

    def _collect(self, fd: int) -> bool:
        """
        Take what a call has printed; False at the end.
        """
        one = next(r for r in self._running.values() if fd in r.outputs)
        try:
            part = os.read(fd, _PART)
        except BlockingIOError:
            return False
        except OSError:
            part = b""
        one.outputs[fd] += part
        if not part and fd in self._selector.get_map():
            self._selector.unregister(fd)
        return bool(part)

    def _end_late(self) -> None:
        now_s = time.monotonic()
        for one in self._running.values():
            if now_s >= one.end_s:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(one.pid, signal.SIGKILL if one.is_told else signal.SIGTERM)
                one.is_told, one.end_s = True, now_s + self._kill_after_s

    def _reap(self) -> None:
        """
        Answer for the calls whose processes have ended.
        """
        for pid in list(self._running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            one = self._running[pid]
            for fd in one.outputs:
                # What is in the pipe; a process that the call left behind may write to it for ever.
                for _ in range(_PIPE_MAX // _PART):
                    if not self._collect(fd):
                        break
                if fd in self._selector.get_map():
                    self._selector.unregister(fd)
                os.close(fd)
            del self._running[pid]
            stdout, stderr = one.outputs.values()
            head = {"id": one.number, "status": _exit_status(status)}
            self._say(head | {"stdout": len(stdout), "stderr": len(stderr)}, stdout, stderr)


class _NotOurs(Exception):
    """
    The caller sent something else than a call.
    """


def _parse(line: bytes) -> tuple[int, str, float, int]:
    try:
        head = json.loads(line)
        number, verb = head["id"], head["verb"]
        timeout_s, size = head["timeout_s"], head["size"]
        is_call = (
            type(number) is int
            and type(verb) is str
            and type(timeout_s) in (int, float)
            and 0 < timeout_s < 1e6
            and type(size) is int
            and 0 <= size <= _REQUEST_MAX
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        is_call = False
    if not is_call:
        raise _NotOurs
    return number, verb, float(timeout_s), size


def _exit_status(status: int) -> int:
    """
    Return what a shell would: 128 and the signal for a process that a signal ended.
    """
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _version(program: str) -> tuple[int, ...] | None:
    """
    Return what changes when *program* is replaced; None: it is gone.
    """
    try:
        found = Path(program).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _prepare(verb: str) -> None:
    request = REQUESTS.get(verb)
    if request is not None:
        importlib.import_module(f"deploy.host.{HANDLERS[request].partition(':')[0]}")


def main() -> int:
    """
    Serve the caller on standard input and output.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o022)
    # Its own descriptors, and not those that a call has as its standard input and outputs.
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    return Session(source, sink, program=sys.path[0], run=answer, prepare=_prepare).serve()
