"""
Drives transformers: `generate` if all prompts have one length, else `generate_batch`.
"""

import gc
import importlib
import time
from dataclasses import replace
from typing import Any

import torch

from runtime.bench.sample import RunSample
from runtime.bench.shapes import ModelShape
from runtime.bench.system import BenchError, check_tokens
from runtime.bench.work import Line, Work

NEW = 64  # most new tokens: a card computes about ten a second for each request
MIX_NEW = 32
PAGE_TOKENS, STEP_TOKENS = 64, 512  # for generate_batch on a CPU


class TransformersPeer:
    """
    transformers as a `system.TimedSystem`.
    """

    line_s: float | None = 20.0

    def __init__(self, shape: ModelShape, device: str) -> None:
        self._transformers: Any = importlib.import_module("transformers")
        self.version = str(self._transformers.__version__)
        self._device = device
        document = {k: v for k, v in shape.document.items() if k != "model_type"}
        config = self._transformers.AutoConfig.for_model(shape.document["model_type"], **document)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        with torch.device(device):
            self._model: Any = self._transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation="sdpa"
            ).eval()

    def trim(self, line: Line, work: Work) -> tuple[Work, str]:
        if line.half:
            raise BenchError("transformers' generate has one set of fields for the whole batch")
        if line.is_mix and not hasattr(self._model, "generate_batch"):
            raise BenchError(f"transformers {self.version} has no generate_batch")
        # generate_batch has one length for the whole batch: the shortest answer's.
        most = min(MIX_NEW if line.is_mix else NEW, min(request.new_tokens for request in work))
        trimmed = tuple(replace(request, new_tokens=most) for request in work)
        return trimmed, f"only {most} new tokens each" if trimmed != work else ""

    def run(self, work: Work) -> RunSample:
        is_even = len({len(request.prompt) for request in work}) == 1
        new_counts, wall_s = self._generate(work) if is_even else self._generate_batch(work)
        check_tokens(new_counts, work)
        return RunSample(wall_s, sum(new_counts) / wall_s)

    def close(self) -> None:
        del self._model
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def _generate(self, work: Work) -> tuple[list[int], float]:
        started_s = time.perf_counter()
        prompts = torch.tensor([request.prompt for request in work], device=self._device)
        with torch.inference_mode():
            answers = self._model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                generation_config=self._greedy(work[0].new_tokens),
            )
        answers = answers.cpu()  # waits for the device
        wall_s = time.perf_counter() - started_s
        return [answers.shape[1] - prompts.shape[1]] * len(work), wall_s

    def _generate_batch(self, work: Work) -> tuple[list[int], float]:
        options = {}
        if self._device == "cpu":  # the default cache would take most of the memory
            pages = sum(len(r.prompt) + r.new_tokens for r in work) // PAGE_TOKENS + len(work)
            options["continuous_batching_config"] = self._transformers.ContinuousBatchingConfig(
                num_blocks=pages, page_size=PAGE_TOKENS, max_batch_tokens=STEP_TOKENS
            )
        with torch.no_grad():  # not inference_mode: its thread cannot write to such tensors
            answers = self._model.generate_batch(
                [request.prompt for request in work],
                generation_config=self._greedy(work[0].new_tokens),
                progress_bar=False,
                **options,
            ).values()
        new_counts = [len(answer.generated_tokens) for answer in answers]
        # Each call allocates a cache, which a server does once: that time is not counted.
        started_s = min((answer.lifespan[0] for answer in answers), default=0.0)
        ended_s = max((answer.lifespan[1] for answer in answers), default=0.0)
        return new_counts, ended_s - started_s

    def _greedy(self, new: int) -> Any:
        # No eos_token_id: only the length ends an answer.
        return self._transformers.GenerationConfig(
            max_new_tokens=new, do_sample=False, pad_token_id=0
        )
