"""
Drives an engine that computes, with its real scheduler and pages, turn by turn on the CPU.
"""

import random

import torch

from runtime.contract.engine_options import EngineOptions
from runtime.engines.base.protocol import FinishReason, Load
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.runner import PagedRunner
from runtime.engines.paged.scheduler import Capacity, Scheduler

KV_DTYPES = {"same": None, "fp8": torch.float8_e4m3fn, "int8": torch.int8}


def make_load(folder, **changes):
    options = {"max_batch_requests": 4, "max_wait_s": 0.0, "page_tokens": 16}
    return Load(str(folder), 1.0, EngineOptions(**options | changes))


def make_engine(
    model,
    *,
    max_requests=8,
    step_tokens=64,
    page_tokens=4,
    pages=None,
    kv="same",
    stop_token_ids=(),
    wrap=lambda runner: runner,
):
    """
    Return a scheduler and its runner.

    Args:
        pages: Number of pages; None: as many as all rows may need.
        wrap: Wraps the runner that the scheduler uses.
    """
    row_pages = -(-model.config.context_tokens // page_tokens)
    pages = pages or 1 + max_requests * row_pages
    runner = PagedRunner(
        model,
        slots=max_requests,
        pages=pages,
        page_tokens=page_tokens,
        row_pages=row_pages,
        kv_dtype=KV_DTYPES[kv],
    )
    capacity = Capacity(max_requests, step_tokens, max_wait_s=0.0)
    allocator = BlockAllocator(pages, page_tokens)
    return Scheduler(wrap(runner), capacity, stop_token_ids, allocator, random.Random(1)), runner


def play(scheduler, arrivals, before=lambda: None):
    """
    Return tokens and endings by request id.

    Args:
        arrivals: Pairs of turn and request.
        before: Called before each turn.
    """
    tokens, ended = {request.id: [] for _, request in arrivals}, {}
    turn = 0
    while len(ended) < len(arrivals):
        for at, request in arrivals:
            if at == turn:
                scheduler.submit(request, now_s=0.0)
        before()
        report = scheduler.turn(0.0)
        for id, token in report.tokens:
            tokens[id].append(token)
        for id, ending, why in report.ended:
            assert ending != FinishReason.ERROR, why
            ended[id] = ending
        turn += 1
    while not scheduler.is_idle:
        scheduler.turn(0.0)
    assert scheduler.allocator.used == 0
    return tokens, ended


def answer(model, request, **options):
    """
    Return the tokens of *request* computed alone on a new engine, with its prompt in one step.
    """
    scheduler, _ = make_engine(model, max_requests=1, step_tokens=256, page_tokens=16, **options)
    return play(scheduler, [(0, request)])[0][request.id]


def spoil(cache, pages, offsets=slice(None)):
    """
    Write NaN to *pages* at *offsets*, in every layer.
    """
    stores = [cache.keys, cache.values]
    if cache.key_scales is not None:  # int8 has no NaN but in its scales
        stores = [cache.key_scales, cache.value_scales]
    for store in stores:
        nan = torch.tensor(float("nan")).to(store.dtype)
        if store.element_size() == 1:  # fp8 has no indexed store on the CPU; its bytes do
            store, nan = store.view(torch.uint8), nan.view(torch.uint8)
        for page in pages:
            store[:, page, :, offsets] = nan


class Dirty:
    """
    A runner whose pages hold NaN until a row writes to them.
    """

    def __init__(self, runner):
        self._runner = runner
        spoil(runner.cache, range(runner.cache.keys.shape[1]))

    def launch(self, step):
        starts = {chunk.slot: chunk.start for chunk in step.chunks}
        cache = self._runner.cache
        for join in step.joins:
            spoil(cache, join.pages[starts[join.slot] // cache.page_tokens :])
        return self._runner.launch(step)


class Small:
    """
    A runner with memory for steps of *most* tokens.

    It runs out of memory at the worst point: after all keys and values are written.
    """

    def __init__(self, runner, model, most):
        self._runner, self._model, self._most = runner, model, most
        self.refused = 0

    def launch(self, step):
        with self._model.register_forward_hook(self._look):
            return self._runner.launch(step)

    def _look(self, model, args, logits):
        if len(args[0]) > self._most:
            self.refused += 1
            raise torch.OutOfMemoryError("no room")
