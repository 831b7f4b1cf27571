"""
Our engine, driven as the worker drives it but without sockets: scheduler, blocks and runner.
"""

import gc
import time
from random import Random

import torch

from runtime.bench.grammar import bench_grammars
from runtime.bench.recorder import Recorder
from runtime.bench.roofline import cost_model
from runtime.bench.sample import Ceilings, EngineRun, RunSample, make_sample
from runtime.bench.shapes import ModelShape
from runtime.bench.system import BenchError, check_tokens
from runtime.bench.work import Line, Work
from runtime.contract.engine_options import EngineOptions
from runtime.engines.base.protocol import FinishReason, Submit
from runtime.engines.base.sampling import SamplingParams
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.load_engine import open_runner
from runtime.engines.paged.scheduler import Capacity, Scheduler
from runtime.memory.plan import step_tokens
from runtime.models.decoder import Decoder
from runtime.models.loader import PRECISIONS, build_model

PRECISION_OF = {"cuda": "bf16", "cpu": "fp32"}
MAX_REQUESTS = 256
TIMEOUT_S = 600.0  # of each request, so that a run that hangs ends with an error
SEED = 0  # of the weights


class OurEngine:
    """
    Our engine as a `system.TimedSystem`.
    """

    line_s: float | None = None

    def __init__(self, shape: ModelShape, device: str, ceilings: Ceilings) -> None:
        self.version = "this checkout"
        config, precision = shape.config, PRECISION_OF[device]
        self._vocabulary = config.vocabulary
        options = EngineOptions.from_document(
            {
                "device": device,
                "precision": precision,
                "threads": torch.get_num_threads(),
                "max_batch_requests": MAX_REQUESTS,
                "max_wait_s": 0.0,
                "context_tokens": shape.context_tokens,
            }
        )
        self._options = options
        self._ceilings = ceilings
        self._cost = cost_model(config, PRECISIONS[precision].itemsize)
        model = build_model(config, device=device, precision=precision)
        fill(model, SEED)
        runner, self.pages = open_runner(model, self._options)
        self._recorder = Recorder(runner, time.perf_counter)
        gc.collect()
        gc.freeze()  # as the worker does

    def trim(self, line: Line, work: Work) -> tuple[Work, str]:
        return work, ""

    def run(self, work: Work) -> RunSample:
        run = self._drive(work)
        return make_sample(work, run, self._cost, self._ceilings)

    def close(self) -> None:
        del self._recorder
        gc.unfreeze()
        gc.collect()
        if self._options.device == "cuda":
            torch.cuda.empty_cache()

    def _drive(self, work: Work) -> EngineRun:
        # A new scheduler for each run: a failed run must not leave state behind.
        options, recorder = self._options, self._recorder
        recorder.clear()
        has_grammar = any("grammar" in request.sampling for request in work)
        scheduler = Scheduler(
            recorder,
            Capacity(MAX_REQUESTS, step_tokens(options), max_wait_s=0.0),
            frozenset(),
            BlockAllocator(self.pages, options.page_tokens),
            Random(SEED),  # noqa: S311 - sampling
            bench_grammars(self._vocabulary) if has_grammar else None,
        )
        new_counts = dict.fromkeys(range(len(work)), 0)
        first_s: dict[int, float] = {}
        started_s = time.perf_counter()
        for id, request in enumerate(work):
            params = SamplingParams(request.new_tokens, **request.sampling)
            scheduler.submit(Submit(id, request.prompt, params, TIMEOUT_S), started_s)
        while not scheduler.is_idle:
            report = scheduler.turn(time.perf_counter())
            now_s = time.perf_counter()
            for id, _ in report.tokens:
                new_counts[id] += 1
                if new_counts[id] == 1:
                    first_s[id] = now_s - started_s
            for id, reason, detail in report.ended:
                if reason != FinishReason.LENGTH:
                    raise BenchError(f"request {id}: {reason}: {detail}")
        wall_s = time.perf_counter() - started_s
        check_tokens(list(new_counts.values()), work)
        if scheduler.allocator.hit_tokens:
            raise BenchError(
                f"{scheduler.allocator.hit_tokens} prompt tokens came from the prefix cache"
            )
        firsts = [first_s[id] for id in new_counts]
        return EngineRun(wall_s, recorder.waited_s, firsts, recorder.launched)


def fill(model: Decoder, seed: int) -> None:
    """
    Fill *model* in place with random weights: small matrices and biases, norms near 1.
    """
    rng = torch.Generator(model.device).manual_seed(seed)
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if name.endswith("norm"):
                parameter.uniform_(0.8, 1.2, generator=rng)
            else:
                parameter.normal_(0.0, 0.02, generator=rng)
