"""
Load generator: live traffic during an operation, with a report of each version's answers.

A separate process sends the requests (`deploy.demo.load_client`), so that work in this process
cannot delay them.  It writes one line for each request into a file, which is read here.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from deploy.demo.load_report import LoadReport, RequestRecord, summarise
from deploy.errors import CommandFailed, UsageError

LAB_AND_LOOPBACK = ("127.0.0.0/8", "::1/128", "10.78.0.0/24")
_ROOT = Path(__file__).parents[2]
_START_TIMEOUT_S = 30.0
_STOP_SLACK_S = 5.0  # added to the timeout of a request in flight


class LoadGenerator:
    """
    Sends requests at a fixed rate, and streams beside them, until it is stopped or its deadline.

    Plain requests are open loop: the rate does not depend on the answers.  It is spread evenly
    over the targets, and a latency counts from the time at which the request was due.  Each
    connection is kept alive and belongs to one target.  A request that gets no free connection
    within `timeout_s` is lost.  Streams are closed loop: each of the `streams` clients has one
    open stream.

    A server may close an idle connection at any time.  If the client notices before the next
    request, it opens a new connection and nothing is lost.  If the connection ends without an
    answer after the request was sent, the request is lost, on a new or a reused connection.

    Args:
        targets: Base URLs, such as http://10.78.0.11:8000; with *authority*, https.
        prompts: Prompts, sent in turn.
        rate_rps: Plain requests per second over all targets.
        connections: Number of connections over all targets; at least one for each target.
        streams: Number of streaming clients, spread over the targets.
        max_tokens: `max_tokens` of each plain request.
        stream_max_tokens: `max_tokens` of each stream; None for *max_tokens*.
        stream_pause_s: Pause between two streams of one client.
        is_chat: Streams ask /v1/chat/completions; otherwise /generate, as plain requests do.
        authority: PEM file of the authority that https targets are verified with.
        token: Bearer token of all requests; None for none.
        timeout_s: Longest wait for an answer, or between two events of a stream.
        deadline_s: Longest duration of the load; it stops by itself then.
        networks: Networks in which targets may be.
        allow_any: Accept targets outside *networks* too, for a host that is meant for load.

    Raises:
        UsageError: A target is outside *networks*, or a number is out of range.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        prompts: Sequence[str],
        rate_rps: float,
        connections: int = 8,
        streams: int = 0,
        max_tokens: int = 8,
        stream_max_tokens: int | None = None,
        stream_pause_s: float = 0.2,
        is_chat: bool = True,
        authority: Path | None = None,
        token: str | None = None,
        timeout_s: float = 10.0,
        deadline_s: float = 1800.0,
        networks: Collection[str] = LAB_AND_LOOPBACK,
        allow_any: bool = False,
    ) -> None:
        for target in targets:
            _check_target(target, networks, authority, allow_any=allow_any)
        _check_numbers(targets, prompts, rate_rps, connections, streams, timeout_s)
        self._timeout_s = timeout_s
        self._targets = [target.rstrip("/") for target in targets]
        self._config = {
            "targets": self._targets,
            "prompts": list(prompts),
            "rate_rps": rate_rps,
            "connections": connections,
            "streams": streams,
            "max_tokens": max_tokens,
            "stream_max_tokens": stream_max_tokens or max_tokens,
            "stream_pause_s": stream_pause_s,
            "is_chat": is_chat,
            "authority": None if authority is None else str(authority),
            "token": token,
            "timeout_s": timeout_s,
            "deadline_s": deadline_s,
        }
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._records: list[RequestRecord] = []
        self._read_bytes = 0

    def start(self) -> None:
        """
        Start the traffic; return when the client process sends.

        Raises:
            CommandFailed: The client process did not start.
        """
        assert self._process is None, "a generator runs once"
        self._folder = Path(tempfile.mkdtemp(prefix="slipway-load-"))
        with (self._folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "deploy.demo.load_client", str(self._file)],
                cwd=_ROOT,
                env=os.environ | {"PYTHONPATH": str(_ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                # Ctrl-C must reach only the operator's command, which then stops the traffic.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._config).encode() + b"\n")
        self._process.stdin.flush()
        give_up_at_s = time.monotonic() + _START_TIMEOUT_S
        while not self._file.exists():
            if self._process.poll() is not None or time.monotonic() > give_up_at_s:
                raise self._did_not_start()
            time.sleep(0.02)

    def snapshot(self) -> LoadReport:
        """
        Return the report up to now, without requests in flight.
        """
        self._read_new()
        return summarise(self._records, self._targets)

    def stop(self) -> LoadReport:
        """
        Stop sending, wait for requests in flight, and return the report.

        Requests still in flight after `timeout_s` are cancelled and counted as `unfinished`.
        Further calls return the same report.

        Raises:
            CommandFailed: The traffic had ended before this call, so the report does not cover
                the whole time.  The next call returns the incomplete report.
        """
        if self._folder is None or self._process is None:
            return summarise(self._records, self._targets)
        ended_before = self._process.poll() is not None
        self._end_process(self._process)
        report = self.snapshot()
        error_line = self._last_error_line()
        self._clear()
        if ended_before or self._process.returncode != 0:
            raise CommandFailed(
                "the load ended before it was stopped",
                why=error_line or f"its deadline of {self._config['deadline_s']} s had passed",
                fix="run it again; if the deadline had passed, with a longer deadline_s",
            )
        return report

    def _end_process(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # the client stops at the end of its input
        try:
            process.wait(self._timeout_s + _STOP_SLACK_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """
        Process id of the client; None before `start`.
        """
        return None if self._process is None else self._process.pid

    @property
    def _file(self) -> Path:
        assert self._folder is not None
        return self._folder / "records.jsonl"

    def _read_new(self) -> None:
        if self._folder is None or not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._read_bytes)
            # The last line may be incomplete; it is read next time.
            lines, _, _ = file.read().rpartition(b"\n")
        if lines:
            self._read_bytes += len(lines) + 1
            records = [RequestRecord.from_line(line) for line in lines.decode().splitlines()]
            self._records += records

    def _did_not_start(self) -> CommandFailed:
        assert self._process is not None
        self._process.kill()
        self._end_process(self._process)
        error_line = self._last_error_line()
        self._clear()
        return CommandFailed(
            "the load generator did not start",
            why=error_line or f"its process wrote no file within {_START_TIMEOUT_S:.0f} s",
            fix="run it again; if it fails again, report a bug with this message",
        )

    def _last_error_line(self) -> str:
        assert self._folder is not None
        lines = (self._folder / "stderr").read_text().strip().splitlines()
        return lines[-1] if lines else ""

    def _clear(self) -> None:
        assert self._folder is not None
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()
        self._folder = None


def _check_target(
    target: str, networks: Collection[str], authority: Path | None, *, allow_any: bool
) -> None:
    scheme = "http" if authority is None else "https"
    parts = urlsplit(target)
    try:
        address = ip_address(parts.hostname or "")
        is_allowed = any(
            address in ip_network(n) for n in networks if ip_network(n).version == address.version
        )
    except ValueError:
        is_allowed = False
    if parts.scheme != scheme or not parts.hostname:
        raise UsageError(
            f"{target!r} is not a target for load",
            why=f"a target has the form {scheme}://ADDRESS:PORT",
            fix="give the address and the public port of a host in this form, and for https the "
            "authority that signs its certificate",
        )
    if not is_allowed and not allow_any:
        raise UsageError(
            f"{target}: load to this target is not allowed",
            why=f"{parts.hostname} is not an address in {', '.join(networks)}",
            fix="use a lab host, or name the network of the target in `networks`",
        )


def _check_numbers(
    targets: Sequence[str],
    prompts: Sequence[str],
    rate_rps: float,
    connections: int,
    streams: int,
    timeout_s: float,
) -> None:
    least_connections = max(1, len(targets))
    rules = [
        ("number of targets", len(targets), "at least 1", len(targets) >= 1),
        ("number of prompts", len(prompts), "at least 1", len(prompts) >= 1),
        ("rate_rps", rate_rps, "above 0 and at most 2000", 0 < rate_rps <= 2000),
        (
            "connections",
            connections,
            f"from {least_connections} (one for each target) to 256",
            least_connections <= connections <= 256,
        ),
        ("streams", streams, "from 0 to 64", 0 <= streams <= 64),
        ("timeout_s", timeout_s, "above 0", timeout_s > 0),
    ]
    for name, value, allowed, is_valid in rules:
        if not is_valid:
            raise UsageError(
                f"load generator: {name} is out of range",
                why=f"it is {value}; it should be {allowed}",
                fix=f"change {name}",
            )
