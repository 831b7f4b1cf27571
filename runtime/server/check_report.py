"""
The result of `python -m runtime check` as text and as JSON.  Pure.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.contract.errors import RuntimeFault
from runtime.engines.base.host_memory import HostMemory
from runtime.memory.plan import GIB, MemoryPlan, step_tokens
from runtime.server.config import HostConfig

SHORT_TOKENS = 2048  # of a request, beside the longest
PARTS = ("budget", "weights", "kv", "activations", "fixed", "total")
COUNTS = ("pages", "page_tokens", "tokens", "context_tokens", "requests_of_context")

PlanOrFault = MemoryPlan | RuntimeFault


@dataclass(frozen=True, slots=True)
class Gpu:
    """
    Attributes:
        free_bytes: Free now; None for a GPU that is not on this machine.
    """

    total_bytes: int
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """
    Attributes:
        gpu: The smallest of the GPUs to use; None for a CPU.
        host: What the runtime may use on a CPU; None for a GPU, or without a limit.
        answers: By weights and kv.
        warnings: What the start would warn of.
    """

    config: HostConfig
    model_dir: Path
    gpu: Gpu | None
    host: HostMemory | None
    answers: Mapping[tuple[str, str], PlanOrFault]
    warnings: Sequence[str] = ()

    @property
    def answer(self) -> PlanOrFault:
        return self.answers[self.config.options.weights, self.config.options.kv]


def as_document(
    found: MemoryReport | None, fault: RuntimeFault | None, code: int
) -> dict[str, object]:
    words = fault and {"what": fault.what, "why": fault.why, "fix": fault.fix, "exit_code": code}
    document: dict[str, object] = {"fits": fault is None, "error": words}
    if found is not None:
        gpu = None if found.gpu is None else asdict(found.gpu)
        others = [
            {"weights": weights, "kv": kv, "plan": _numbers(answer)}
            for (weights, kv), answer in found.answers.items()
        ]
        document["warnings"] = list(found.warnings)
        document["host_memory"] = None if found.host is None else asdict(found.host)
        document |= {"gpu": gpu, "plan": _numbers(found.answer), "answers": others}
    return document


def _numbers(answer: PlanOrFault) -> dict[str, int | None] | None:
    if isinstance(answer, RuntimeFault):
        return None
    sizes = {f"{part}_bytes": getattr(answer, part) for part in PARTS}
    return sizes | {count: getattr(answer, count) for count in COUNTS}


def as_text(found: MemoryReport) -> Iterator[str]:
    options, plan, gpu = found.config.options, found.answer, found.gpu
    yield f"model        {found.model_dir}"
    for warning in found.warnings:
        yield f"warning      {warning}"
    if gpu is not None:
        each = f"each of {options.gpus}, " if options.gpus > 1 else ""
        yield _row("GPU", gpu.total_bytes, f"{each}memory_fraction {options.memory_fraction}")
    if found.host is not None:
        words = f"memory_fraction {options.memory_fraction}; {found.host.limit}"
        yield _row("memory", found.host.total_bytes, words)
    if isinstance(plan, MemoryPlan):
        steps = step_tokens(options)
        yield _row("weights", plan.weights, f"{options.precision}, {options.weights}")
        yield _row("KV cache", plan.kv, f"{options.kv}, {plan.pages:,} pages of {plan.page_tokens}")
        about = "" if gpu else "about, "
        yield _row("activations", plan.activations, f"{about}steps of {steps:,} tokens")
        yield _row("fixed", plan.fixed, "CUDA, cuBLAS" if gpu else "the runtime's processes")
        no_limit = "of host memory, held against no limit"
        of = no_limit if plan.budget is None else f"of {plan.budget / GIB:.2f}"
        yield _row("total", plan.total, of)
        if gpu is not None and gpu.free_bytes is not None:
            beside = "" if gpu.free_bytes >= plan.total else "too little beside what runs there"
            yield _row("free now", gpu.free_bytes, beside)
    yield ""
    for (weights, kv), answer in found.answers.items():
        mark = "*" if answer is plan else " "
        yield f"{mark} weights: {weights:<5} kv: {kv:<5} {_held(answer)}"
    yield f"* as configured; max_batch_requests: {options.max_batch_requests} run at once"


def _row(name: str, size: int, words: str) -> str:
    return f"{name:<12}{size / GIB:8.2f} GiB  {words}"


def _held(answer: PlanOrFault) -> str:
    if isinstance(answer, RuntimeFault):
        return answer.what
    lengths = sorted({answer.context_tokens, min(SHORT_TOKENS, answer.context_tokens)})
    held = ", ".join(f"{answer.requests_of(length):,} of {length:,}" for length in lengths)
    return f"{answer.total / GIB:7.2f} GiB, {answer.tokens:>11,} tokens; requests: {held}"
