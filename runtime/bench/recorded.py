"""
Earlier measurements of other engines, with their machine.  Shown beside a run, never in its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from runtime.bench.work import Line


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """
    One measurement of another engine.

    Attributes:
        read_on: Date of the measurement.
        how: Settings of the engine.
        tokens_per_s: As in `RunSample`, by the line's name.
        prefill_s: Time of the line "prefill".
        copy_gb_s, matmul_tflop_s: Ceilings of that card; see `sample.Ceilings`.
    """

    system: str
    version: str
    machine: str
    shape: str
    read_on: str
    how: str
    tokens_per_s: Mapping[str, float]
    prefill_s: float
    copy_gb_s: float
    matmul_tflop_s: float

    def rate(self, line: Line) -> float | None:
        """
        Return the new tokens per second of *line*; None if it was not measured.
        """
        return 1 / self.prefill_s if line.is_prefill else self.tokens_per_s.get(line.name)


VLLM = RecordedRun(
    system="vllm",
    version="0.26.0",
    machine="NVIDIA H100 80GB HBM3",
    shape="glm-4-9b",
    read_on="2026-11-24",
    how="bf16, FlashAttention 3, torch.compile, CUDA graphs, asynchronous scheduling, dummy "
    "weights, greedy, ignore_eos, torch 2.11+cu130",
    tokens_per_s=MappingProxyType(
        {
            "batch-1": 128.6,
            "batch-8": 966.0,
            "batch-64": 5472.0,
            "batch-64-long": 3999.0,
            "batch-256": 10100.0,
            "mix-256": 9393.0,
            "mix-256-both": 9671.0,
        }
    ),
    prefill_s=0.244,
    copy_gb_s=3025.0,
    matmul_tflop_s=798.0,
)
