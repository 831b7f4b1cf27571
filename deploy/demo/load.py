"""
Live traffic while something is done to a fleet: who was served, by which version, who was not.

The requests are made by a process of its own (`deploy.demo.load_client`), so that work in this
one cannot delay them; it writes one line a request into a file, which is read here.
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

from deploy.demo.load_report import LoadReport, Record, summarise
from deploy.errors import CommandFailed, UsageError

LAB_AND_LOOPBACK = ("127.0.0.0/8", "::1/128", "10.78.0.0/24")
_ROOT = Path(__file__).parents[2]
_START_TIMEOUT_S = 30.0
_STOP_SLACK_S = 5.0  # over the time that a request in flight may take


class LoadGenerator:
    """
    Requests at a fixed rate, and streams one after the other, until stopped or at the deadline.

    The rate is held whatever the answers do (open loop), spread evenly over the targets, and a
    latency counts from the moment at which its request was due. Each connection is kept alive
    and belongs to one target. A request that found no free connection within `timeout_s` is
    lost. Streams are closed loop: `streams` clients, each with one open stream.

    A server may close an idle connection at any time. Where that is seen before the next request,
    a new connection is opened and nothing is lost. A request that was already sent into a
    connection that ends without an answer is lost, reused connection or not: its client saw it.

    Args:
        targets: Base URLs, such as http://10.78.0.11:8000.
        prompts: Sent in turn.
        rate_rps: Requests a second over all targets, streams not counted.
        connections: Over all targets; at least one for each.
        streams: Streaming clients, dealt out over the targets.
        max_tokens: Of each answer.
        stream_max_tokens: Of each stream; None is *max_tokens*.
        stream_pause_s: Between two streams of one client.
        timeout_s: Longest wait for an answer, or between two events of a stream.
        deadline_s: It stops by itself after that long.
        networks: Where targets may be.
        allow_any: Targets may be anywhere. Load belongs on hosts that were made for it.

    Raises:
        UsageError: A target lies outside *networks*, or a number outside its range.
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
        timeout_s: float = 10.0,
        deadline_s: float = 1800.0,
        networks: Collection[str] = LAB_AND_LOOPBACK,
        allow_any: bool = False,
    ) -> None:
        for target in targets:
            _check_target(target, networks, allow_any=allow_any)
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
            "timeout_s": timeout_s,
            "deadline_s": deadline_s,
        }
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._records: list[Record] = []
        self._read_bytes = 0

    def start(self) -> None:
        """
        Start the traffic; returns when the first requests are on their way.

        Raises:
            CommandFailed: The process did not start.
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
                # Ctrl-C is for the operator's command, which stops the traffic when it is done.
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
        Return what is known by now; requests in flight are not in it.
        """
        self._read_new()
        return summarise(self._records, self._targets)

    def stop(self) -> LoadReport:
        """
        Send no more, let what is in flight end, and report; the next call reports the same.

        Requests still in flight after `timeout_s` are cut by us and counted `unfinished`.

        Raises:
            CommandFailed: The traffic had ended by itself, so the report does not cover all of
                the time; the next call returns it.
        """
        if self._folder is None or self._process is None:
            return summarise(self._records, self._targets)
        ended_before = self._process.poll() is not None
        self._end_process(self._process)
        report = self.snapshot()
        said = self._stderr()
        self._clear()
        if ended_before or self._process.returncode != 0:
            raise CommandFailed(
                "the load ended before it was stopped",
                why=said or f"its deadline of {self._config['deadline_s']}s had passed",
                fix="raise deadline_s above the time that the traffic is needed",
            )
        return report

    def _end_process(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # the client stops when its input ends
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
            # The last line may be half written: it is read next time.
            whole, _, _ = file.read().rpartition(b"\n")
        if whole:
            self._read_bytes += len(whole) + 1
            self._records += [Record.from_line(line) for line in whole.decode().splitlines()]

    def _did_not_start(self) -> CommandFailed:
        assert self._process is not None
        self._process.kill()
        self._end_process(self._process)
        said = self._stderr()
        self._clear()
        return CommandFailed(
            "the load generator did not start",
            why=said or f"no sign of it after {_START_TIMEOUT_S:.0f}s",
            fix="run it again; if it stays so, report it with the text above",
        )

    def _stderr(self) -> str:
        assert self._folder is not None
        lines = (self._folder / "stderr").read_text().strip().splitlines()
        return lines[-1] if lines else ""

    def _clear(self) -> None:
        assert self._folder is not None
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()
        self._folder = None


def _check_target(target: str, networks: Collection[str], *, allow_any: bool) -> None:
    parts = urlsplit(target)
    try:
        address = ip_address(parts.hostname or "")
        inside = any(
            address in ip_network(n) for n in networks if ip_network(n).version == address.version
        )
    except ValueError:
        inside = False
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError(
            f"{target}: not a target for load",
            why="a target is http://ADDRESS:PORT",
            fix="give the public port of a host",
        )
    if not inside and not allow_any:
        raise UsageError(
            f"{target}: load is refused",
            why=f"{parts.hostname} is not an address in {', '.join(networks)}",
            fix="send load to the lab, or allow any target explicitly",
        )


def _check_numbers(
    targets: Sequence[str],
    prompts: Sequence[str],
    rate_rps: float,
    connections: int,
    streams: int,
    timeout_s: float,
) -> None:
    rules = {
        "targets: at least one": len(targets) >= 1,
        "prompts: at least one": len(prompts) >= 1,
        "rate_rps: above 0 and at most 2000": 0 < rate_rps <= 2000,
        f"connections: from {len(targets)} (one a target) to 256": len(targets)
        <= connections
        <= 256,
        "streams: from 0 to 64": 0 <= streams <= 64,
        "timeout_s: above 0": timeout_s > 0,
    }
    for rule, holds in rules.items():
        if not holds:
            raise UsageError(
                f"the load generator can't do that: {rule.split(':')[0]}",
                why=f"allowed is {rule}",
                fix="change the number",
            )
