"""
Plans a device's memory: the KV cache gets what the other parts leave.  Pure.
"""

from dataclasses import dataclass, replace

from runtime.contract.engine_options import OPTIONS, EngineOptions
from runtime.contract.errors import ConfigError, ModelError
from runtime.memory.footprint import (
    activation_bytes,
    embedding_bytes,
    page_bytes,
    weight_bytes,
)
from runtime.models.config import DecoderConfig
from runtime.models.shard import Shard

GIB = 2**30
STEP_TOKENS = {"cuda": 8192, "cpu": 512}

# Memory of a process outside the plan: 0.94 GiB measured on an H100 with torch 2.11 and Triton
# 3.6, with GLM-4-9B, all graphs captured, after the largest steps.
CONTEXT_BYTES = int(1.2 * GIB)  # CUDA context, modules of cuBLAS, cuDNN and Triton, graphs
WORKSPACE_BYTES = int(0.3 * GIB)  # cuBLAS: 32 MiB for each stream that uses it
PEER_BYTES = int(0.5 * GIB)  # NCCL's buffers, if several GPUs share a model

# On a CPU all processes of the runtime count: API, engine, chat templates, grammars.  Measured with
# SmolLM2-135M after requests of all kinds; docs/benchmarks.md has the figures.
PROCESSES_BYTES = int(0.4 * GIB)  # without a model's vocabulary
BODIES_BYTES = int(0.25 * GIB)  # of the API process: large bodies, many at once
TOKEN_BYTES = 3072  # of the vocabulary: in the tokenizer of three processes
RANK_BYTES = int(0.2 * GIB)  # of each process of a model in several: torch and gloo

Change = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """
    The memory of each GPU by use, in bytes.

    Attributes:
        budget: Bytes that the process may use, on a CPU those of all processes of the runtime;
            None if nothing limits them.
        kv: Size of all *pages*, including page 0, which padding writes to.
        fixed: Memory that does not depend on the model.
        context_tokens: Length of the longest request, its answer included.
    """

    budget: int | None
    weights: int
    kv: int
    activations: int
    fixed: int
    pages: int
    page_tokens: int
    context_tokens: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.activations + self.fixed

    @property
    def tokens(self) -> int:
        return (self.pages - 1) * self.page_tokens

    @property
    def least_pages(self) -> int:
        return 1 + pages_of(self.context_tokens, self.page_tokens)

    @property
    def fits(self) -> bool:
        """
        Whether one request of the longest context fits.
        """
        return self.pages >= self.least_pages

    @property
    def requests_of_context(self) -> int:
        return self.requests_of(self.context_tokens)

    def requests_of(self, tokens: int) -> int:
        """
        Return how many requests of *tokens* each, answers included, the cache holds at once.
        """
        return (self.pages - 1) // pages_of(tokens, self.page_tokens)


def plan_memory(
    options: EngineOptions,
    config: DecoderConfig,
    total_bytes: int | None,
    limit: str = "",
    *,
    embeds: bool = False,
) -> MemoryPlan:
    """
    Return the plan: the KV cache gets what the other parts leave.

    Args:
        total_bytes: Total memory of each GPU.  On a CPU the memory of the runtime's processes,
            divided by the shards; None if nothing limits it.
        limit: What sets *total_bytes* on a CPU, for the error.
        embeds: Whether the model makes embeddings too.

    Raises:
        ConfigError: One request of the longest context does not fit.
        ModelError: The model can't be sharded or quantised with these options.
    """
    assert options.device == "cpu" or total_bytes is not None, "a GPU has a size"
    plan = _plan(options, config, total_bytes, embeds=embeds)
    if total_bytes is not None and not plan.fits:
        raise _too_small(options, config, plan, total_bytes, limit, embeds=embeds)
    return plan


def request_tokens(options: EngineOptions, config: DecoderConfig) -> int:
    """
    Return the most tokens of a request, its answer included.
    """
    # A request of more than max_batch_tokens could never join the batch.
    limits = (config.context_tokens, options.context_tokens, options.max_batch_tokens)
    return min(limit for limit in limits if limit)


def step_tokens(options: EngineOptions) -> int:
    """
    Return the most tokens of a step.
    """
    # Each row decodes one token: without extra tokens, prompts would wait while all rows decode.
    least = options.max_batch_requests + options.page_tokens
    return max(options.step_tokens or STEP_TOKENS[options.device], least)


def fixed_bytes(options: EngineOptions, vocabulary: int) -> int:
    """
    Return the memory that depends on the runtime alone, and on a CPU on the *vocabulary*.

    On a CPU it is the part of one shard, as the memory of the host is.
    """
    if options.device == "cpu":
        whole = PROCESSES_BYTES + BODIES_BYTES + TOKEN_BYTES * vocabulary
        return -(-(whole + RANK_BYTES * (options.gpus - 1)) // options.gpus)
    return CONTEXT_BYTES + WORKSPACE_BYTES + (PEER_BYTES if options.gpus > 1 else 0)


def budget_words(options: EngineOptions, total_bytes: int, limit: str) -> str:
    """
    Return where a budget comes from.
    """
    words = f"memory_fraction {options.memory_fraction} of {total_bytes / GIB:.1f} GiB"
    return f"{words} ({limit})" if limit else words


def _plan(
    options: EngineOptions, config: DecoderConfig, total_bytes: int | None, *, embeds: bool
) -> MemoryPlan:
    shard = Shard(0, options.gpus)
    shard.check(config)
    longest = request_tokens(options, config)
    is_gpu = options.device == "cuda"
    activations = activation_bytes(
        replace(config, context_tokens=longest),
        step_tokens(options),
        options.precision,
        options.max_batch_requests,
        shard,
        options.weights,
        is_gpu=is_gpu,
    )
    if embeds:
        text = embedding_bytes(config, longest, options.precision, options.weights)
        activations = max(activations, text)
    plan = MemoryPlan(
        budget=None if total_bytes is None else int(total_bytes * options.memory_fraction),
        weights=weight_bytes(
            config, precision=options.precision, weights=options.weights, shard=shard
        ),
        kv=0,
        activations=activations,
        fixed=fixed_bytes(options, config.vocabulary),
        pages=0,
        page_tokens=options.page_tokens,
        context_tokens=longest,
    )
    page = page_bytes(config, options.kv, options.precision, options.page_tokens, shard)
    # Never more than all rows can hold.
    limits = [1 + options.max_batch_requests * pages_of(longest, options.page_tokens)]
    if plan.budget is not None:
        limits.append(max(plan.budget - plan.total, 0) // page)
    if options.max_batch_tokens is not None:
        limits.append(1 + pages_of(options.max_batch_tokens, options.page_tokens))
    pages = min(limits)
    return replace(plan, pages=pages, kv=pages * page)


def pages_of(tokens: int, page_tokens: int) -> int:
    return -(-tokens // page_tokens)


def _too_small(
    options: EngineOptions,
    config: DecoderConfig,
    plan: MemoryPlan,
    total_bytes: int,
    limit: str,
    *,
    embeds: bool,
) -> ConfigError:
    """
    Return the error for a *plan* with too few pages; its fix names changes that would fit.
    """
    assert plan.budget is not None
    page = page_bytes(
        config, options.kv, options.precision, options.page_tokens, Shard(0, options.gpus)
    )
    others = plan.total - plan.kv
    available, needed = plan.budget - others, page * plan.least_pages
    fraction = -(-(others + needed + 1) * 100 // max(total_bytes, 1)) / 100
    is_gpu = options.device == "cuda"
    cheap: list[Change] = [
        {"precision": "bf16"},
        {"memory_fraction": fraction},
        {"context_tokens": (available // page - 1) * options.page_tokens},
        {"kv": "fp8"},
        {"weights": "int8"},
        {"step_tokens": 1024},
        {"max_batch_requests": 16},
    ]
    dear: list[Change] = [{"weights": "int8", "kv": "fp8"}]
    dear += [{"gpus": 2 * options.gpus}] if is_gpu else []
    fitting = [
        [
            " and ".join(f"{key}: {value}" for key, value in change.items())
            for change in changes
            if _fits_with(options, config, change, total_bytes, embeds=embeds)
        ]
        for changes in (cheap, dear)
    ]
    fixes = fitting[0] or fitting[1]
    remaining = f"{available / GIB:.2f} remain" if available > 0 else "nothing remains"
    return ConfigError(
        f"memory: one request of {plan.context_tokens} tokens does not fit",
        why=f"{budget_words(options, total_bytes, limit)} is "
        f"{plan.budget / GIB:.2f} GiB; weights take {plan.weights / GIB:.2f}, activations "
        f"{plan.activations / GIB:.2f}, {'CUDA' if is_gpu else 'processes'} "
        f"{plan.fixed / GIB:.2f}; its keys and values need "
        f"{needed / GIB:.2f}, and {remaining}",
        fix=f"set {', or '.join(fixes)}" if fixes else more_memory(options),
    )


def more_memory(options: EngineOptions) -> str:
    if options.device == "cuda":
        return "use a GPU with more memory"
    return "raise memory_max of the fleet file's service, or use a host with more memory"


def _fits_with(
    options: EngineOptions,
    config: DecoderConfig,
    change: Change,
    total_bytes: int,
    *,
    embeds: bool,
) -> bool:
    changed = replace(options, **change)  # type: ignore[arg-type]
    if not all(OPTIONS[key].rules.allow(value) for key, value in change.items()):
        return False
    if changed.precision == "fp32" and changed.weights != "full":
        return False
    try:
        return _plan(changed, config, total_bytes, embeds=embeds).fits
    except ModelError:  # the model can't be sharded or quantised with these options
        return False
