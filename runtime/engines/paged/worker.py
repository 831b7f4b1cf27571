"""
The loop of the engine process: receive, one turn of the scheduler, report.

It lives as long as the API process holds the other end of the socket, and no longer.
"""

import gc
import logging
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, replace

from runtime.contract.errors import EngineError, RuntimeFault
from runtime.engines.base.protocol import (
    Cancel,
    Embed,
    EngineReport,
    Load,
    Loaded,
    LoadFailed,
    Submit,
    Swap,
    ToEngine,
    decode_to_engine,
    encode,
)
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.embedding_batcher import EmbeddingBatcher
from runtime.engines.paged.grammars import open_grammars
from runtime.engines.paged.scheduler import Capacity, Scheduler
from runtime.engines.paged.step import LoadedModel

log = logging.getLogger("runtime.engine")

GC_THRESHOLDS = (50_000, 50, 50)
SWAP_POLL_S = 0.05  # between two checks of an idle engine whether the new weights are read


OpenModel = Callable[[Load], LoadedModel]


class EngineSocket:
    """
    The engine process's end of the socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""

    def send(self, message: Loaded | LoadFailed | EngineReport) -> None:
        # Blocking: an API process that does not read answers no client either.
        self._socket.sendall(encode(message))

    def receive(self, wait_s: float) -> list[ToEngine] | None:
        """
        Return the messages of the next *wait_s*; None once the API process has ended.
        """
        readable, _, _ = select.select([self._socket], [], [], wait_s)
        if not readable:
            return []
        data = self._socket.recv(1 << 20)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [decode_to_engine(line) for line in lines]


@dataclass(frozen=True, slots=True)
class _Swapping:
    """
    Weights that a daemon thread is reading.
    """

    model_dir: str
    started_s: float
    finish: Future[Callable[[], None]]

    @classmethod
    def start(cls, opened: LoadedModel, model_dir: str) -> "_Swapping":
        finish: Future[Callable[[], None]] = Future()

        def prepare() -> None:
            try:
                finish.set_result(opened.prepare(model_dir))
            except Exception as error:
                finish.set_exception(error)

        threading.Thread(target=prepare, name="swap", daemon=True).start()
        return cls(model_dir, time.monotonic(), finish)


class Engine:
    """
    The loop: receive, one turn, report.
    """

    def __init__(self, line: EngineSocket, open_model: OpenModel) -> None:
        self._line = line
        self._open_model = open_model
        self._opened: LoadedModel | None = None
        self._scheduler: Scheduler | None = None
        self._embedder: EmbeddingBatcher | None = None
        self._swapping: _Swapping | None = None
        self._beat_s = 1.0
        self._beat_at_s = 0.0

    def run(self) -> None:
        """
        Serve until the API process has ended.
        """
        while (messages := self._line.receive(self._wait_s())) is not None:
            self._take_in(messages)
            if self._scheduler is not None:
                self._turn(self._scheduler)
                self._go_on_swapping(self._scheduler)

    def _turn(self, scheduler: Scheduler) -> None:
        now_s = time.monotonic()
        report = scheduler.turn(now_s)
        if self._embedder is not None and len(self._embedder):
            # Beside answers no longer than their own steps.
            most_tokens = None if scheduler.is_quiet else scheduler.step_tokens
            done = self._embedder.turn(now_s, most_tokens=most_tokens)
            ended = [*report.ended, *done.ended]
            report = replace(report, vectors=done.vectors, ended=ended)
        if not report.is_beat or now_s >= self._beat_at_s:
            self._beat_at_s = now_s + self._beat_s
            self._line.send(report)

    def _wait_s(self) -> float:
        if self._scheduler is None:
            return self._beat_s
        if self._embedder is not None and len(self._embedder):
            return 0.0
        now_s = time.monotonic()
        longest_s = max(self._beat_at_s - now_s, 0.0)
        if self._swapping is not None:
            longest_s = min(longest_s, SWAP_POLL_S)
        wait_s = self._scheduler.wait_s(now_s)
        return longest_s if wait_s is None else min(wait_s, longest_s)

    def _take_in(self, messages: Iterable[ToEngine]) -> None:
        for message in messages:
            match message:
                case Load():
                    self._load(message)
                case Submit():
                    assert self._scheduler is not None, "a request before a model"
                    self._scheduler.submit(message, time.monotonic())
                case Embed():
                    assert self._embedder is not None, "no model that makes embeddings"
                    self._embedder.submit(message, time.monotonic())
                case Cancel():
                    assert self._scheduler is not None, "a request before a model"
                    self._scheduler.cancel(message.id)
                    if self._embedder is not None:
                        self._embedder.cancel(message.id)
                case Swap():
                    self._swap(message)

    def _load(self, load: Load) -> None:
        if self._swapping is not None:
            self._refuse(load.model_dir, "a swap is in progress", "try again later")
            return
        if self._scheduler is not None:
            self._turn(self._scheduler)  # settles the steps of cancelled requests
            if not self._scheduler.is_idle or self._embedder:
                why = "requests are running on the current model"
                self._refuse(load.model_dir, why, "drain first")
                return
            if load.options.device == "cuda":
                why = "the current model holds the GPU's memory"
                self._refuse(load.model_dir, why, "swap its weights, or start another process")
                return
        started_s = time.monotonic()
        try:
            opened = self._open_model(load)
        except Exception as error:
            self._line.send(_load_failed(load.model_dir, error))
            return
        options, pages = load.options, opened.pages
        if options.max_batch_tokens is not None:
            pages = min(pages, 1 + -(-options.max_batch_tokens // opened.page_tokens))
        stop_token_ids = opened.stop_token_ids | frozenset(load.stop_token_ids)
        self._scheduler = Scheduler(
            opened.runner,
            Capacity(options.max_batch_requests, opened.step_tokens, options.max_wait_s),
            stop_token_ids,
            BlockAllocator(pages, opened.page_tokens),
            random.Random(),  # noqa: S311 - sampling
            open_grammars(load.model_dir, opened.vocabulary, stop_token_ids, _mask_threads())
            if opened.generates
            else None,
            is_synchronous=opened.is_synchronous,
        )
        embedding = opened.embedding
        self._embedder = (
            EmbeddingBatcher(embedding.embed, embedding.batch_tokens, self._scheduler.shares)
            if embedding
            else None
        )
        self._opened = opened
        self._beat_s = load.beat_s
        gc.collect()
        gc.freeze()  # garbage collections skip what is loaded now
        # A full collection walks the whole queue: 21 ms for 1,000 long prompts.  Make it rare.
        gc.set_threshold(*GC_THRESHOLDS)
        self._send_loaded(opened, started_s)

    def _swap(self, swap: Swap) -> None:
        if self._opened is None:
            self._refuse(swap.model_dir, "no model is loaded", "load one first")
        elif self._swapping is not None:
            self._refuse(swap.model_dir, "a swap is in progress", "try again later")
        else:
            self._swapping = _Swapping.start(self._opened, swap.model_dir)

    def _go_on_swapping(self, scheduler: Scheduler) -> None:
        """
        Once the weights are read, admit no request; once none runs, put them in place.
        """
        swapping, opened = self._swapping, self._opened
        if swapping is None or opened is None or not swapping.finish.done():
            return
        try:
            finish = swapping.finish.result()
        except Exception as error:
            self._line.send(_load_failed(swapping.model_dir, error))
        else:
            scheduler.hold()
            if not scheduler.is_quiet:
                return
            scheduler.allocator.clear()  # the pages hold values of the old weights
            # Half-exchanged weights can't serve: an error ends the process.
            finish()
            self._send_loaded(opened, swapping.started_s)
        scheduler.resume()
        self._swapping = None

    def _refuse(self, model_dir: str, why: str, fix: str) -> None:
        self._line.send(LoadFailed(f"{model_dir}: not loaded", why, fix, is_model=False))

    def _send_loaded(self, opened: LoadedModel, started_s: float) -> None:
        took_s = time.monotonic() - started_s
        embedding = opened.embedding
        self._line.send(
            Loaded(
                opened.context_tokens,
                opened.vocabulary,
                opened.parameters,
                took_s,
                dimensions=embedding.dimensions if embedding else 0,
                shorter_dimensions=embedding.shorter_dimensions if embedding else (),
                generates=opened.generates,
            )
        )


def _mask_threads() -> int:
    """
    Return half of the CPUs: the rest serve the API process and this one's loop.
    """
    return max(1, len(os.sched_getaffinity(0)) // 2)


def _load_failed(model_dir: str, error: Exception) -> LoadFailed:
    if isinstance(error, RuntimeFault):
        # An engine's error may pass: it is started again.
        is_model = not isinstance(error, EngineError)
        return LoadFailed(error.what, error.why, error.fix, is_model=is_model)
    log.exception("engine.load_failed model=%s", model_dir)
    return LoadFailed(
        f"{model_dir}: could not be loaded",
        why=f"{type(error).__name__}: {error}",
        fix="see the traceback in the unit's log",
        is_model=False,
    )
