"""
The client process of the load generator: `python -m deploy.demo.load_client FILE`.

It reads its configuration as one line of JSON from standard input, and stops when that input ends,
so that it never outlives its parent.  It writes each `RequestRecord` as a line to FILE.
"""

import asyncio
import contextlib
import itertools
import json
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from deploy.demo.load_report import LoadOutcome, RequestRecord
from runtime.contract import CHAT, GENERATE, VERSION_HEADER

Sink = Callable[[RequestRecord], None]
_DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class LoadConfig:
    """
    Arguments of `LoadGenerator`, which has validated them.
    """

    targets: list[str]
    prompts: list[str]
    rate_rps: float
    connections: int
    streams: int
    max_tokens: int
    stream_max_tokens: int
    stream_pause_s: float
    is_chat: bool
    timeout_s: float
    deadline_s: float
    authority: str | None = None
    token: str | None = field(default=None, repr=False)

    def open_tls(self) -> ssl.SSLContext:
        """
        Return a context that verifies with `authority` alone; for plain http an empty one.
        """
        if self.authority is not None:
            return ssl.create_default_context(cafile=self.authority)
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"authorization": f"Bearer {self.token}"}


async def drive(config: LoadConfig, sink: Sink, stop: asyncio.Event) -> None:
    """
    Send requests until *stop* is set or the deadline passes, then wait for those in flight.

    The wait takes at most `timeout_s`; requests still in flight are then cancelled as UNFINISHED.
    """
    tls = config.open_tls()  # once: reading an authority for each client takes long
    bodies = itertools.cycle(config.prompts)
    count = len(config.targets)
    per_target_s = count / config.rate_rps
    begin_s = time.monotonic() + 0.05
    tasks = []
    for index, target in enumerate(config.targets):
        # Targets take turns, so that their requests are not due at the same time.
        due = _due_times(begin_s + index / config.rate_rps, per_target_s)
        for _ in range(index, config.connections, count):
            tasks.append(_request_in_turn(config, tls, target, due, bodies, sink, stop))
    for index in range(config.streams):
        target = config.targets[index % count]
        tasks.append(_stream_in_turn(config, tls, target, bodies, sink, stop))
    running = [asyncio.create_task(task) for task in tasks]
    stop_task = asyncio.create_task(stop.wait())
    # A task ends only after *stop*.  One that ends earlier has failed; its error is raised below.
    await asyncio.wait(
        [stop_task, *running], timeout=config.deadline_s, return_when=asyncio.FIRST_COMPLETED
    )
    stop.set()
    await stop_task
    _, unfinished = await asyncio.wait(running, timeout=config.timeout_s)
    for task in unfinished:
        task.cancel()
    results = await asyncio.gather(*running, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


def _due_times(begin_s: float, step_s: float) -> Iterator[float]:
    return (begin_s + n * step_s for n in itertools.count())


async def _request_in_turn(
    config: LoadConfig,
    tls: ssl.SSLContext,
    target: str,
    due: Iterator[float],
    prompts: Iterator[str],
    sink: Sink,
    stop: asyncio.Event,
) -> None:
    async with _Connection(config, tls) as client:
        while not stop.is_set():
            due_s = next(due)
            if await _stopped_before(due_s, stop):
                return
            if time.monotonic() - due_s > config.timeout_s:
                # A client does not wait longer for a connection than for an answer.
                sink(
                    _RequestClock(due_s).record(
                        target, LoadOutcome.LOST, detail="no free connection"
                    )
                )
                continue
            body = {"prompt": next(prompts), "max_tokens": config.max_tokens}
            record = await _request(client.http, target, body, due_s, config.timeout_s)
            sink(record)
            await client.renew_after(record)


async def _stream_in_turn(
    config: LoadConfig,
    tls: ssl.SSLContext,
    target: str,
    prompts: Iterator[str],
    sink: Sink,
    stop: asyncio.Event,
) -> None:
    async with _Connection(config, tls) as client:
        while not stop.is_set():
            path, body = _stream_request(config, next(prompts))
            record = await _stream(client.http, target, path, body, time.monotonic())
            sink(record)
            await client.renew_after(record)
            if await _stopped_before(time.monotonic() + config.stream_pause_s, stop):
                return


def _stream_request(config: LoadConfig, prompt: str) -> tuple[str, Mapping[str, object]]:
    answer = {"max_tokens": config.stream_max_tokens, "stream": True}
    if not config.is_chat:
        return GENERATE, {"prompt": prompt} | answer
    # /generate is greedy by default, chat is not.
    return CHAT, {"messages": [{"role": "user", "content": prompt}], "temperature": 0} | answer


async def _stopped_before(at_s: float, stop: asyncio.Event) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), max(0.0, at_s - time.monotonic()))
    return stop.is_set()


class _Connection:
    """
    A client with one kept-alive connection, without retries, proxies and redirects.
    """

    def __init__(self, config: LoadConfig, tls: ssl.SSLContext) -> None:
        self._config, self._tls = config, tls
        self.http = self._open()

    def _open(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            limits=httpx.Limits(
                max_connections=1, max_keepalive_connections=1, keepalive_expiry=None
            ),
            timeout=self._config.timeout_s,
            headers=self._config.headers,
            trust_env=False,
            verify=self._tls,
        )

    async def renew_after(self, record: RequestRecord) -> None:
        """
        Open a new client where the answer of the last one is not complete.

        Where a request is ended at its deadline, httpcore 1.0 may count its connection as busy for
        ever: all later requests would wait for it, and be lost.
        """
        if record.outcome in (LoadOutcome.LOST, LoadOutcome.CUT_STREAM):
            await self.http.aclose()
            self.http = self._open()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()


class _RequestClock:
    """
    Time at which one request was due: monotonic for durations, UTC for the record.
    """

    def __init__(self, due_s: float) -> None:
        self._due_s = due_s
        self._due_at = time.time() - (time.monotonic() - due_s)

    def since_s(self) -> float:
        return round(time.monotonic() - self._due_s, 6)

    def record(
        self,
        target: str,
        outcome: LoadOutcome,
        *,
        response: httpx.Response | None = None,
        streamed: bool = False,
        first_byte_s: float | None = None,
        detail: str | None = None,
    ) -> RequestRecord:
        return RequestRecord(
            due_at=round(self._due_at, 6),
            target=target,
            streamed=streamed,
            outcome=outcome,
            status=None if response is None else response.status_code,
            version=None if response is None else response.headers.get(VERSION_HEADER),
            latency_s=self.since_s(),
            first_byte_s=first_byte_s,
            detail=detail,
        )


async def _request(
    client: httpx.AsyncClient,
    target: str,
    body: Mapping[str, object],
    due_s: float,
    timeout_s: float,
) -> RequestRecord:
    clock = _RequestClock(due_s)
    try:
        # httpx's timeout applies to each phase; this one to the whole request.
        async with asyncio.timeout(timeout_s):
            response = await client.post(target + GENERATE, json=body)
    except TimeoutError:
        return clock.record(
            target, LoadOutcome.LOST, detail=f"no complete answer in {timeout_s:g}s"
        )
    except httpx.HTTPError as error:
        return clock.record(target, LoadOutcome.LOST, detail=_error_text(error))
    except asyncio.CancelledError:
        return clock.record(target, LoadOutcome.UNFINISHED)
    return clock.record(
        target, _outcome_of(response), response=response, detail=_detail(response, response.text)
    )


async def _stream(
    client: httpx.AsyncClient, target: str, path: str, body: Mapping[str, object], due_s: float
) -> RequestRecord:
    clock = _RequestClock(due_s)
    response: httpx.Response | None = None
    first_byte_s = None

    def record(outcome: LoadOutcome, detail: str | None = None) -> RequestRecord:
        return clock.record(
            target,
            outcome,
            response=response,
            streamed=True,
            first_byte_s=first_byte_s,
            detail=detail,
        )

    try:
        async with client.stream("POST", target + path, json=body) as response:
            if _outcome_of(response) is not LoadOutcome.OK:
                await response.aread()
                return record(_outcome_of(response), _detail(response, response.text))
            async for line in response.aiter_lines():
                if first_byte_s is None:
                    first_byte_s = clock.since_s()
                if problem := _stream_error(line):
                    return record(LoadOutcome.CUT_STREAM, problem)
                if line.removeprefix("data:").strip() == _DONE:
                    return record(LoadOutcome.OK)
        return record(LoadOutcome.CUT_STREAM, f"ended without {_DONE}")
    except httpx.HTTPError as error:
        # Before the status line the request is lost; after it, the stream is cut.
        has_begun = response is not None and _outcome_of(response) is LoadOutcome.OK
        return record(LoadOutcome.CUT_STREAM if has_begun else LoadOutcome.LOST, _error_text(error))
    except asyncio.CancelledError:
        return record(LoadOutcome.UNFINISHED)


def _outcome_of(response: httpx.Response) -> LoadOutcome:
    """
    Return the outcome of a response that arrived completely.

    An error without a version header comes from the proxy, not from a runtime: the request is LOST.
    """
    if response.is_success:
        return LoadOutcome.OK
    return LoadOutcome.ERROR_STATUS if VERSION_HEADER in response.headers else LoadOutcome.LOST


def _detail(response: httpx.Response, text: str) -> str | None:
    if response.is_success:
        return None
    return f"{response.status_code} {text[:200]}".strip()


def _stream_error(line: str) -> str | None:
    if line.startswith("event:") and line.removeprefix("event:").strip() == "error":
        return "error event"
    if line.startswith("data:") and '"error"' in line:
        with contextlib.suppress(ValueError):
            event = json.loads(line.removeprefix("data:"))
            if isinstance(event, dict) and event.get("error"):
                return f"error event: {str(event['error'])[:200]}"
    return None


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


async def _main(config: LoadConfig, path: Path) -> None:
    stop = asyncio.Event()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)

    async def watch_input() -> None:
        await reader.read()
        stop.set()

    watching = asyncio.create_task(watch_input())
    with path.open("w", buffering=1, encoding="utf-8") as file:

        def write(record: RequestRecord) -> None:
            file.write(record.to_line())

        await drive(config, write, stop)
    watching.cancel()


def main(argv: list[str]) -> None:
    config = LoadConfig(**json.loads(sys.stdin.buffer.raw.readline()))  # type: ignore[union-attr]
    asyncio.run(_main(config, Path(argv[1])))


if __name__ == "__main__":
    main(sys.argv)
