"""
The API's end of a `vllm serve`: token ids in, token ids out, as `engine.client` has it.

vLLM is reached over OpenAI's /v1/completions, with token ids for the prompt and for the answer.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

from runtime.contract.errors import EngineError
from runtime.engines.base.in_flight import Answer, Answers
from runtime.engines.base.protocol import Ending, Load, Loaded, Report
from runtime.engines.vllm.process import VllmChild, why_not_loaded
from runtime.engines.vllm.protocol import (
    COMPLETIONS,
    CORE_DIED,
    HEALTH,
    METRICS,
    MODELS,
    STOP,
    Gauges,
    completion,
    read_context_tokens,
    read_event,
    read_gauges,
    refusal,
)
from runtime.engines.vllm.unix_http import NotOk, get, request

log = logging.getLogger("runtime.vllm")

ENDINGS = {STOP: Ending.STOP, "length": Ending.LENGTH}  # any other is an error
LOOK_S = 5.0  # for one answer of /health or /metrics
RETRY_S = 0.2  # between two looks whether it has started
CUT_S = 0.5  # from the end of a connection to the end of its process, if that is why
STOP_S = 8.0  # from SIGTERM to SIGKILL


class VllmClient:
    """
    Submits, cancels, and reports what vLLM does; see `engine.client.EngineClient`.

    It reports once a beat, and only what shows that vLLM lives: its /health answers, and since it
    was last asked for something there are new tokens or its gauges have moved.  /health alone
    would not do: vLLM's API process answers it, also for an engine core that hangs.
    """

    def __init__(self, child: VllmChild, on_report: Callable[[Report], None]) -> None:
        self.last: Report | None = None
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.exit_words = ""
        self._child = child
        self._on_report = on_report
        self._answers = Answers()
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._gauges = Gauges(0, 0, 0.0, 0)
        self._owes = False  # it was asked for something, and has not moved since
        self._tokens: list[tuple[int, int]] = []  # since the last report, as are these
        self._ended: list[tuple[int, str, str]] = []
        self._beating: asyncio.Task[None] | None = None
        self._pidfd = os.pidfd_open(child.process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._mark_dead)

    async def connect(self) -> None:
        """
        Do nothing: each request has a connection of its own.
        """

    @property
    def in_flight(self) -> int:
        return len(self._answers)

    async def load(self, load: Load) -> Loaded:
        """
        Wait until vLLM has loaded the model that it was started with.

        Raises:
            ConfigError: It refused its arguments.
            EngineError: It died otherwise, or is one that this client does not understand.
        """
        if self._beating is not None:
            return await self.swap(load.model_dir)
        started_s = time.monotonic()
        while not await self._is_healthy():
            await asyncio.wait((self.died,), timeout=RETRY_S)
            if self.died.done():
                raise why_not_loaded(self._child.process.returncode, self.exit_words)
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
        return Loaded(context_tokens, 0, 0, time.monotonic() - started_s)  # it names no sizes

    async def swap(self, model_dir: str) -> Loaded:
        """
        Refuse: vLLM serves the model that it was started with.
        """
        raise EngineError(
            f"{model_dir}: not loaded",
            why="with engine: vllm a process serves one model for as long as it lives",
            fix="release it to the other slot: inv release",
        )

    def submit(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        timeout_s: float,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> tuple[int, Answer]:
        """
        Send a request on its way; return its number, for `cancel`, and its answer.
        """
        id, answer = self._answers.new()
        if self.died.done():
            self._answers.finish(id, Ending.DIED, self.exit_words)
            return id, answer
        body = completion(
            self._child.model_name,
            tokens,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        self._owes = True
        self._asking[id] = asyncio.create_task(self._ask(id, answer, body, timeout_s))
        return id, answer

    def cancel(self, id: int) -> None:
        """
        Hang up on a request, and vLLM frees what it holds; one that has ended is none.
        """
        self._answers.forget(id)
        self._hang_up(id)

    async def drain(self, timeout_s: float) -> int:
        """
        Wait until nothing is in flight; return how many are after *timeout_s*.
        """
        return await self._answers.drain(timeout_s)

    def abandon(self) -> int:
        """
        End whatever is in flight, as what it is; return how many that were.
        """
        return self._end_all(Ending.ABANDONED)

    async def close(self) -> int:
        """
        Have vLLM stop, with all of its processes; return its exit status.
        """
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

    async def _ask(self, id: int, answer: Answer, body: dict[str, Any], timeout_s: float) -> None:
        def push(token: int) -> None:
            answer.push(token)
            self._tokens.append((id, token))

        try:
            async with asyncio.timeout(timeout_s):
                ending, detail = await self._stream(body, push)
        except TimeoutError:
            made, wanted = len(answer.tokens), body["max_tokens"]
            ending, detail = Ending.EXPIRED, f"{made} of {wanted} tokens"
        except OSError as error:
            # Of a vLLM that dies the connection ends first: its answers end with it then.
            await asyncio.wait((self.died,), timeout=CUT_S)
            ending, detail = Ending.ERROR, f"vLLM hung up: {error}"
        except Exception as error:  # whatever it was, the request is answered
            log.exception("vllm.answer_unreadable id=%d", id)
            ending, detail = Ending.ERROR, f"vLLM's answer can't be read: {error}"
        self._finish(id, ending, detail)

    async def _stream(
        self, body: dict[str, Any], push: Callable[[int], None]
    ) -> tuple[Ending, str]:
        async with request(self._child.socket, "POST", COMPLETIONS, body) as response:
            if response.status != 200:
                return Ending.ERROR, refusal(response.status, await response.whole())
            async with aclosing(response.events()) as events:
                async for data in events:
                    event = read_event(data)
                    for token in event.tokens:
                        push(token)
                    if event.error is not None:
                        return Ending.ERROR, f"vLLM failed: {event.error}"
                    if event.reason in ENDINGS:
                        return ENDINGS[event.reason], ""
                    if event.reason is not None:
                        return Ending.ERROR, f"vLLM ended it with finish_reason {event.reason!r}"
        return Ending.ERROR, "vLLM's answer has no end"

    async def _beat(self, beat_s: float) -> None:
        while True:
            with contextlib.suppress(OSError, ValueError):  # no sign of life is no report
                if await self._is_healthy():
                    await self._report(await self._look())
            await asyncio.sleep(beat_s)

    async def _report(self, gauges: Gauges) -> None:
        before, self._gauges = self._gauges, gauges
        is_still = self._owes and not self._tokens and gauges == before
        # Either it hangs, or all who asked have left before it came to them.
        if is_still and (self._answers or not await self._computes()):
            return
        self._owes = bool(self._answers)
        batch = gauges.running if gauges.steps > before.steps else 0
        found = (gauges.running, gauges.waiting, batch, gauges.steps)
        self.last = Report(self._tokens, self._ended, *found)
        self._tokens, self._ended = [], []
        self._on_report(self.last)

    async def _computes(self) -> bool:
        """
        Have it make one token for nobody.
        """
        body = completion(
            self._child.model_name, [0], max_tokens=1, temperature=0.0, top_p=1.0, seed=None
        )
        async with asyncio.timeout(LOOK_S):
            ending, _ = await self._stream(body, lambda token: None)
        return ending.is_good

    async def _is_healthy(self) -> bool:
        try:
            await get(self._child.socket, HEALTH, LOOK_S)
        except OSError as error:
            if isinstance(error, NotOk) and error.status == CORE_DIED:
                # vLLM leaves, too, but in its own time, and fails whoever asks until then.
                log.error("vllm.core_died")
                self._child.kill()
            return False
        return True

    async def _look(self) -> Gauges:
        return read_gauges((await get(self._child.socket, METRICS, LOOK_S)).decode())

    def _hang_up(self, id: int) -> None:
        asking = self._asking.pop(id, None)
        if asking is not None and asking is not asyncio.current_task():
            asking.cancel()

    def _finish(self, id: int, ending: Ending, detail: str) -> None:
        self._hang_up(id)
        if self._answers.finish(id, ending, detail):
            self._ended.append((id, ending, detail))

    def _end_all(self, ending: Ending, detail: str = "") -> int:
        left = self._answers.finish_all(ending, detail)
        for id in left:
            self._hang_up(id)
            self._ended.append((id, ending, detail))
        return len(left)

    def _mark_dead(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._child.process.wait()
        killed = f"killed by signal {-status}"
        self.exit_words = killed if status < 0 else f"exit status {status}"
        self._child.kill()  # its engine core does not follow it
        self.died.set_result(None)
        self._end_all(Ending.DIED, self.exit_words)
