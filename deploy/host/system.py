"""
The operating system as verbs use it: programs, clocks, disk, locks, sockets.  Tests replace it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

from deploy.host.layout import Layout
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.text import one_line
from deploy.host.trusted_files import read_plain

if TYPE_CHECKING:
    from deploy.host.sockets import HttpAnswer

Result = TypeVar("Result")

_HAPROXY_TIMEOUT_S = 5.0
_LOCK_POLL_S = 0.02
_DRIVER_POLL_S = 0.02
OUTPUT_MAX = 1 << 20  # bytes of each output of a program that are kept
_DRAIN_S = 1.0  # for the output of a program that has ended
_PYTHON_PATH = "/usr/bin:/usr/local/bin"  # of interpreters: the distribution's first


class ProgramResult(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Account(NamedTuple):
    uid: int
    gid: int


class System:
    """
    The operating system of one host.
    """

    def __init__(self, layout: Layout | None = None) -> None:
        self.layout = layout or Layout()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> ProgramResult:
        """
        Run *argv* and return its output, whatever its exit status.

        Raises:
            HostError: The program is missing, or was killed at its deadline.
        """
        environment = {**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", **(env or {})}
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
        except FileNotFoundError:
            raise HostError(
                ErrorKind.PRECONDITION,
                f"{argv[0]} is not installed",
                f"needed for: {' '.join(argv)[:200]}",
                "inv provision",
            ) from None
        with process:
            returncode, stdout, stderr = _communicate(process, stdin, timeout_s)
        if returncode is None:
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                f"{' '.join(argv[:3])} did not end within {timeout_s:.0f} s",
                one_line(stderr) or "no output",
                "inv status, and check the load of the host",
            )
        return ProgramResult(returncode, stdout, stderr)

    def ask_driver(self, argv: Sequence[str], *, timeout_s: float) -> ProgramResult | None:
        """
        Run *argv*, which calls a device driver; None: it did not end, or cannot be run.

        It is then left alone: a process that waits in a driver ends by no signal, and to wait for
        it would wait as long.  Its output goes to memory, so that it never blocks; /dev/shm may be
        full.
        """
        with os.fdopen(os.memfd_create("output"), "w+b") as output:
            try:
                process = subprocess.Popen(
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "LC_ALL": "C"},
                    start_new_session=True,
                )
            except OSError:  # not installed, or damaged
                return None
            status = self.poll_until(process.poll, timeout_s, _DRIVER_POLL_S)
            if status is None:
                process.kill()  # ends it where it does not wait in the driver
                return None
            output.seek(0)
            return ProgramResult(status, output.read(OUTPUT_MAX).decode(errors="replace"), "")

    def account(self, name: str) -> Account:
        """
        Return the ids of the user *name*.

        Raises:
            HostError: There is none.
        """
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise HostError(
                ErrorKind.PRECONDITION,
                f"the host has no user {name}",
                "it is not in the user database",
                "inv provision",
            ) from None
        return Account(entry.pw_uid, entry.pw_gid)

    def interpreter(self, version: str) -> Path | None:
        """
        Return the host's own Python of *version*, such as "3.11"; None if it has none.
        """
        found = shutil.which(f"python{version}", path=_PYTHON_PATH)
        return Path(found).resolve() if found else None

    def processes_of(self, uid: int) -> list[int]:
        """
        Return the processes that run as *uid*.
        """
        running = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                try:
                    status = Path(entry.path, "status").read_bytes()
                except OSError:
                    continue  # it has ended
                # Its name, in the first line, may be any bytes except for a line feed.
                ids = next(line for line in status.split(b"\n") if line.startswith(b"Uid:"))
                if b"%d" % uid in ids.split()[1:]:
                    running.append(int(entry.name))
        return running

    def wall_s(self) -> float:
        """
        Return seconds since 1970; the clock may be set forward or back.
        """
        return time.time()

    def steady_s(self) -> float:
        """
        Return seconds since boot, suspension included; the same for every process.
        """
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def boot_id(self) -> str:
        """
        Return the id that the kernel gave this boot.
        """
        return self.layout.boot_id.read_text().strip()

    def kernel(self) -> str:
        """
        Return the release of the running kernel.
        """
        return os.uname().release

    def free_bytes(self, path: Path) -> int:
        """
        Return the free space of the file system of *path*, which exists.
        """
        statistics = os.statvfs(path)
        return statistics.f_bavail * statistics.f_frsize

    def haproxy(self, command: str) -> str:
        """
        Return HAProxy's answer to *command* on its runtime socket.

        Raises:
            OSError: HAProxy does not answer.
        """
        from deploy.host.sockets import send_line

        return send_line(self.layout.haproxy_socket, command, _HAPROXY_TIMEOUT_S)

    def http(
        self,
        slot: str,
        method: str,
        target: str,
        *,
        timeout_s: float,
        document: dict[str, Any] | None = None,
        token: str | None = None,
    ) -> HttpAnswer:
        """
        Send one request to the runtime of *slot*; no answer is an answer without status.
        """
        from deploy.host.sockets import http_request

        return http_request(
            self.layout.runtime_socket(slot),
            method,
            target,
            timeout_s=timeout_s,
            document=document,
            token=token,
        )

    def http_public(
        self,
        method: str,
        target: str,
        *,
        timeout_s: float,
        document: dict[str, Any] | None = None,
        token: str | None = None,
    ) -> HttpAnswer:
        """
        Send one request to the public port of this host, as its users do.

        Raises:
            HostError: The configuration of the host program names no port.
        """
        from deploy.host.sockets import tcp_request

        port = public_port(self.layout)
        return tcp_request(
            port.number,
            method,
            target,
            timeout_s=timeout_s,
            document=document,
            token=token,
            certificate=self.layout.certificate if port.has_tls else None,
        )

    def served_certificate(self, *, timeout_s: float) -> bytes | None:
        """
        Return the certificate, in DER, that the public port shows; None: the port is plain HTTP.

        Args:
            timeout_s: For connection and handshake together.

        Raises:
            OSError: The port completes no handshake.
            HostError: The configuration of the host program names no port.
        """
        port = public_port(self.layout)
        if not port.has_tls:
            return None
        from deploy.host.sockets import served_certificate

        return served_certificate(port.number, timeout_s)

    def lock(self, descriptor: int, timeout_s: float) -> bool:
        """
        Lock the open file *descriptor* until it is closed; False when another process holds it.
        """

        def lock() -> bool | None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            return True

        return self.poll_until(lock, timeout_s, _LOCK_POLL_S) is True

    def poll_until(
        self, probe: Callable[[], Result | None], timeout_s: float, poll_s: float
    ) -> Result | None:
        """
        Call *probe* until it returns a value, and return that; None after *timeout_s*.

        Calls *probe* at least once.
        """
        until_s = self.steady_s() + timeout_s
        while True:
            result = probe()
            if result is not None:
                return result
            left_s = until_s - self.steady_s()
            if left_s <= 0:
                return None
            self.sleep(min(poll_s, left_s))


def _communicate(
    process: subprocess.Popen[bytes], stdin: bytes, timeout_s: float
) -> tuple[int | None, str, str]:
    """
    Return exit status and output; at the deadline kill *process*, with None as status.

    Of each output the first OUTPUT_MAX bytes are kept and the rest is read and dropped: a program
    that prints without end takes no memory.
    """
    outputs = (bytearray(), bytearray())

    def write() -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(stdin)
            process.stdin.close()
        except OSError:
            pass  # it has ended, or does not read

    def read(stream: IO[bytes], output: bytearray) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(stream.fileno(), 1 << 16):
                output += chunk[: OUTPUT_MAX - len(output)]

    assert process.stdout is not None
    assert process.stderr is not None
    threads = [
        threading.Thread(target=write, daemon=True),
        threading.Thread(target=read, args=(process.stdout, outputs[0]), daemon=True),
        threading.Thread(target=read, args=(process.stderr, outputs[1]), daemon=True),
    ]
    for thread in threads:
        thread.start()
    until_s = time.monotonic() + timeout_s
    try:
        returncode: int | None = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        returncode = None
        process.kill()
        process.wait()
    for thread in threads:
        # A child of the program may hold the pipes open: the deadline counts for that, too.
        left_s = until_s - time.monotonic() if returncode is not None else 0.0
        thread.join(max(_DRAIN_S, left_s))
    stdout, stderr = (output.decode(errors="replace") for output in outputs)
    return returncode, stdout, stderr


class PublicPort(NamedTuple):
    number: int
    has_tls: bool


def public_port(layout: Layout) -> PublicPort:
    """
    Return the public port of the host, as provisioning wrote it down.

    Raises:
        HostError: It is not written down.
    """
    try:
        settings = json.loads(read_plain(layout.host_config))
        port, has_tls = settings["port"], settings.get("tls", False)
        if not (isinstance(port, int) and 0 < port < 1 << 16):
            raise ValueError(f"port is {port!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise HostError(
            ErrorKind.PRECONDITION,
            "the public port of the host is not known",
            f"{layout.host_config}: {error!r}"[:300],
            "inv provision writes it",
        ) from None
    return PublicPort(port, has_tls is True)


def utc(wall_s: float) -> str:
    """
    Return *wall_s* as ISO 8601 in UTC, with milliseconds.
    """
    whole = int(wall_s)
    millis = int((wall_s - whole) * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{millis:03d}Z"
