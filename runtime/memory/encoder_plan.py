"""
Plans the memory of an encoder, which has weights and batches, and no cache.  Pure.
"""

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ConfigError
from runtime.memory.footprint import PRECISION_BYTES
from runtime.memory.plan import (
    GIB,
    MemoryPlan,
    budget_words,
    fixed_bytes,
    more_memory,
    pages_of,
)

BATCH_TOKENS = {"cuda": 16384, "cpu": 2048}  # engines.paged.embedding.BATCH_TOKENS


def plan_encoder(
    options: EngineOptions,
    *,
    parameters: int,
    hidden: int,
    intermediate: int,
    context_tokens: int,
    vocabulary: int,
    total_bytes: int | None,
    limit: str = "",
) -> MemoryPlan:
    """
    Return the plan of an encoder: exact weights, and an estimate of the largest batch.

    Args:
        total_bytes, limit: See `plan_memory`.

    Raises:
        ConfigError: They do not fit.
    """
    size = PRECISION_BYTES[options.precision]
    tokens = max(BATCH_TOKENS[options.device], context_tokens)
    plan = MemoryPlan(
        budget=None if total_bytes is None else int(total_bytes * options.memory_fraction),
        weights=parameters * size,
        kv=0,
        activations=tokens * (8 * hidden * size + 2 * intermediate * size + 4 * hidden),
        fixed=fixed_bytes(options, vocabulary),
        pages=1 + pages_of(context_tokens, options.page_tokens),
        page_tokens=options.page_tokens,
        context_tokens=context_tokens,
    )
    if plan.budget is not None and plan.total > plan.budget:
        assert total_bytes is not None
        fix = "raise memory_fraction"
        if options.precision == "fp32":
            fix += ", or set precision: bf16"
        raise ConfigError(
            "memory: the encoder does not fit",
            why=f"it takes {plan.total / GIB:.2f} GiB, and "
            f"{budget_words(options, total_bytes, limit)} is {plan.budget / GIB:.2f}",
            fix=f"{fix}, or {more_memory(options)}",
        )
    return plan
