"""
The API's end of a `vllm serve`: token ids in, token ids out.

It calls OpenAI's /v1/completions, with token ids for the prompt and for the answer.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from runtime.contract.errors import EngineError
from runtime.engines.base.client import Client, exit_reason
from runtime.engines.base.in_flight import TokenStream
from runtime.engines.base.protocol import EngineReport, FinishReason, Load, Loaded, Submit
from runtime.engines.base.sampling import SamplingParams
from runtime.engines.vllm.process import VllmProcess, why_not_loaded
from runtime.engines.vllm.protocol import (
    COMPLETIONS,
    CORE_DIED,
    HEALTH,
    METRICS,
    MODELS,
    STOP,
    Gauges,
    StreamEvent,
    completion,
    priority_of,
    read_context_tokens,
    read_event,
    read_gauges,
    refusal,
)
from runtime.engines.vllm.unix_http import NotOk, get, request

log = logging.getLogger("runtime.vllm")

FINISH_REASONS = {STOP: FinishReason.STOP, "length": FinishReason.LENGTH}  # any other is an error
LOOK_S = 5.0  # for one answer of /health or /metrics
BY_PRIORITY = "--scheduling-policy=priority"
RETRY_S = 0.2  # between two checks whether it has started
CUT_S = 0.5  # from a broken connection to the exit of the process that caused it
STOP_S = 8.0  # from SIGTERM to SIGKILL


class VllmClient(Client):
    """
    See `Client`.

    It sends one report a beat, and only if vLLM shows progress: /health answers, and since the
    last request was sent there are new tokens or its gauges have moved.  /health alone would not
    do: vLLM's API process answers it while an engine core hangs.
    """

    scores_prompts = False
    limits_keys = False

    def __init__(self, child: VllmProcess, on_report: Callable[[EngineReport], None]) -> None:
        super().__init__(on_report)
        self._child = child
        self._tasks: dict[int, asyncio.Task[None]] = {}  # one for each request
        self._gauges = Gauges(0, 0, 0.0, 0)
        self._owes = False  # a request was sent, and nothing has moved since
        self._tokens: list[tuple[int, int]] = []  # since the last report, as are these
        self._ended: list[tuple[int, str, str]] = []
        self._beating: asyncio.Task[None] | None = None
        self._pidfd = os.pidfd_open(child.process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_exit)

    async def connect(self) -> None:
        """
        Do nothing: each request opens its own connection.
        """

    async def load(self, load: Load) -> Loaded:
        """
        Wait until vLLM has loaded the model that it was started with.

        Raises:
            ConfigError: vLLM refused its arguments.
            EngineError: It ended otherwise, or its answers have another form.
        """
        if self._beating is not None:
            return await self.swap(load.model_dir)
        self.has_priorities = BY_PRIORITY in load.options.vllm_args
        started_s = time.monotonic()
        while not await self._is_healthy():
            await asyncio.wait((self.died,), timeout=RETRY_S)
            if self.died.done():
                raise why_not_loaded(self._child.process.returncode, self.exit_reason)
        try:
            self._gauges = await self._look()
            context_tokens = read_context_tokens(await get(self._child.socket, MODELS, LOOK_S))
        except (OSError, ValueError) as error:
            raise EngineError(
                f"vLLM's {METRICS} or {MODELS} is not as expected",
                why=f"{type(error).__name__}: {error}",
                fix="run vLLM 0.12 or later, without options that change what it serves",
            ) from error
        self._beating = asyncio.create_task(self._beat(load.beat_s))
        return Loaded(
            context_tokens, 0, 0, time.monotonic() - started_s
        )  # vLLM does not report sizes

    async def swap(self, model_dir: str) -> Loaded:
        """
        Raise EngineError: vLLM serves the model that it was started with.
        """
        raise EngineError(
            f"{model_dir}: not loaded",
            why="with engine: vllm a process serves one model for as long as it lives",
            fix="release it to the other slot: inv release",
        )

    def _start(self, request: Submit, stream: TokenStream) -> None:
        body = completion(self._child.model_name, request.tokens, request.params)
        if self.has_priorities:
            body["priority"] = priority_of(request)
        self._owes = True
        run = self._run(request, stream, body)
        self._tasks[request.id] = asyncio.create_task(run)

    def cancel(self, id: int) -> None:
        # vLLM frees what a request holds once its connection is closed.
        self._requests.forget(id)
        self._hang_up(id)

    async def close(self) -> int:
        if self._beating is not None:
            self._beating.cancel()
        self.abandon()
        if not self.died.done():
            self._child.process.terminate()
            await asyncio.wait((self.died,), timeout=STOP_S)
        self._child.kill()
        await asyncio.wait((self.died,))
        self._child.clear()
        status = self._child.process.returncode
        assert status is not None, "it died"
        return status

    async def _run(self, request: Submit, stream: TokenStream, body: dict[str, Any]) -> None:
        id, most = request.id, request.params.logprobs

        def push(event: StreamEvent) -> None:
            if most is not None:
                # vLLM adds the token itself to the likeliest ones.
                scores = [replace(each, top=each.top[:most]) for each in event.logprobs]
                if len(scores) != len(event.tokens):
                    raise ValueError("a token without its log probability")
                stream.logprobs += scores
            for token in event.tokens:
                stream.push(token)
                self._tokens.append((id, token))

        try:
            async with asyncio.timeout(request.timeout_s):
                reason, detail = await self._stream(body, push)
        except TimeoutError:
            done, wanted = len(stream.tokens), body["max_tokens"]
            reason, detail = FinishReason.EXPIRED, f"{done} of {wanted} tokens"
        except OSError as error:
            # When vLLM dies its connections break first; then DIED is the reason.
            await asyncio.wait((self.died,), timeout=CUT_S)
            reason, detail = FinishReason.ERROR, f"vLLM closed the connection: {error}"
        except Exception as error:  # every request ends
            log.exception("vllm.answer_unreadable id=%d", id)
            reason, detail = FinishReason.ERROR, f"vLLM's answer can't be read: {error}"
        self._finish(id, reason, detail)

    async def _stream(
        self, body: dict[str, Any], push: Callable[[StreamEvent], None]
    ) -> tuple[FinishReason, str]:
        async with request(self._child.socket, "POST", COMPLETIONS, body) as response:
            if response.status != 200:
                return FinishReason.ERROR, refusal(response.status, await response.whole())
            async with aclosing(response.events()) as events:
                async for data in events:
                    event = read_event(data)
                    push(event)
                    if event.error is not None:
                        return FinishReason.ERROR, f"vLLM failed: {event.error}"
                    if event.reason in FINISH_REASONS:
                        return FINISH_REASONS[event.reason], ""
                    if event.reason is not None:
                        return (
                            FinishReason.ERROR,
                            f"vLLM ended it with finish_reason {event.reason!r}",
                        )
        return FinishReason.ERROR, "vLLM's answer has no end"

    async def _beat(self, beat_s: float) -> None:
        while True:
            with contextlib.suppress(OSError, ValueError):  # without an answer there is no report
                if await self._is_healthy():
                    await self._report(await self._look())
            await asyncio.sleep(beat_s)

    async def _report(self, gauges: Gauges) -> None:
        before, self._gauges = self._gauges, gauges
        is_still = self._owes and not self._tokens and gauges == before
        # It hangs, or all requests were cancelled before it computed them.
        if is_still and (self._requests or not await self._computes()):
            return
        self._owes = bool(self._requests)
        batch = gauges.running if gauges.steps > before.steps else 0
        found = (gauges.running, gauges.waiting, batch, gauges.steps)
        self.last = EngineReport(self._tokens, self._ended, *found)
        self._tokens, self._ended = [], []
        self._on_report(self.last)

    async def _computes(self) -> bool:
        """
        Return whether vLLM generates one token for a request of our own.
        """
        body = completion(self._child.model_name, [0], SamplingParams(max_tokens=1))
        async with asyncio.timeout(LOOK_S):
            reason, _ = await self._stream(body, lambda event: None)
        return reason.is_good

    async def _is_healthy(self) -> bool:
        try:
            await get(self._child.socket, HEALTH, LOOK_S)
        except OSError as error:
            if isinstance(error, NotOk) and error.status == CORE_DIED:
                # vLLM exits later by itself, and fails all requests until then.
                log.error("vllm.core_died")
                self._child.kill()
            return False
        return True

    async def _look(self) -> Gauges:
        return read_gauges((await get(self._child.socket, METRICS, LOOK_S)).decode())

    def _hang_up(self, id: int) -> None:
        task = self._tasks.pop(id, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def _finish(self, id: int, reason: FinishReason, detail: str) -> None:
        self._hang_up(id)
        if self._requests.finish(id, reason, detail):
            self._ended.append((id, reason, detail))

    def _finish_all(self, reason: FinishReason, detail: str = "") -> list[int]:
        ids = super()._finish_all(reason, detail)
        for id in ids:
            self._hang_up(id)
            self._ended.append((id, reason, detail))
        return ids

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._child.process.wait()
        self._child.kill()  # its engine core does not follow it
        self._mark_dead(exit_reason(status))
