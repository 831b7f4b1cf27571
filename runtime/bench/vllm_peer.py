"""
Drives vLLM's offline engine, with dummy weights.
"""

import gc
import importlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from runtime.bench.sample import RunSample
from runtime.bench.shapes import ModelShape
from runtime.bench.system import BenchError, check_tokens
from runtime.bench.work import Line, Work

MAX_REQUESTS = 256


class VllmPeer:
    """
    vLLM as a `system.TimedSystem`.
    """

    line_s: float | None = None

    def __init__(self, shape: ModelShape, device: str) -> None:
        self._vllm: Any = importlib.import_module("vllm")
        self.version = str(self._vllm.__version__)
        self._device = device
        self._directory = tempfile.TemporaryDirectory(prefix="slipway-bench-")
        config = Path(self._directory.name) / "config.json"
        dtype = "bfloat16" if device == "cuda" else "float32"
        config.write_text(json.dumps({**shape.document, "torch_dtype": dtype}))
        self._llm: Any = self._vllm.LLM(
            model=self._directory.name,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=dtype,
            max_model_len=shape.context_tokens,
            max_num_seqs=MAX_REQUESTS,
        )

    def trim(self, line: Line, work: Work) -> tuple[Work, str]:
        return work, ""

    def run(self, work: Work) -> RunSample:
        if any("grammar" in request.sampling for request in work):
            raise BenchError("no grammars: it has no tokenizer here")
        prompts = [{"prompt_token_ids": request.prompt} for request in work]
        params = [
            self._vllm.SamplingParams(
                max_tokens=request.new_tokens,
                ignore_eos=True,
                detokenize=False,
                **{"temperature": 0.0} | dict(request.sampling),
            )
            for request in work
        ]
        started_s = time.perf_counter()
        answers = self._llm.generate(prompts, params, use_tqdm=False)
        wall_s = time.perf_counter() - started_s
        new_counts = [len(answer.outputs[0].token_ids) for answer in answers]
        check_tokens(new_counts, work)
        return RunSample(wall_s, sum(new_counts) / wall_s)

    def close(self) -> None:
        # The engine core is a process of its own and must be shut down.
        core = getattr(getattr(self._llm, "llm_engine", None), "engine_core", None)
        if core is not None:
            core.shutdown()
        del self._llm
        gc.collect()
        self._directory.cleanup()
