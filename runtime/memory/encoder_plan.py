"""
Plans the memory of an encoder, which has weights and batches, and no cache.  Pure.
"""

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ConfigError
from runtime.memory.footprint import PRECISION_BYTES
from runtime.memory.plan import CONTEXT_BYTES, GIB, WORKSPACE_BYTES, MemoryPlan, pages_of

BATCH_TOKENS = {"cuda": 16384, "cpu": 2048}  # engines.paged.embedding.BATCH_TOKENS


def plan_encoder(
    options: EngineOptions,
    *,
    parameters: int,
    hidden: int,
    intermediate: int,
    context_tokens: int,
    total_gpu_bytes: int | None,
) -> MemoryPlan:
    """
    Return the plan of an encoder: exact weights, and an estimate of the largest batch.

    Args:
        total_gpu_bytes: Total memory of each GPU; None on a CPU.

    Raises:
        ConfigError: They do not fit.
    """
    size = PRECISION_BYTES[options.precision]
    tokens = max(BATCH_TOKENS[options.device], context_tokens)
    is_gpu = total_gpu_bytes is not None
    plan = MemoryPlan(
        budget=None if total_gpu_bytes is None else int(total_gpu_bytes * options.memory_fraction),
        weights=parameters * size,
        kv=0,
        activations=tokens * (8 * hidden * size + 2 * intermediate * size + 4 * hidden),
        fixed=CONTEXT_BYTES + WORKSPACE_BYTES if is_gpu else 0,
        pages=1 + pages_of(context_tokens, options.page_tokens),
        page_tokens=options.page_tokens,
        context_tokens=context_tokens,
    )
    if plan.budget is not None and plan.total > plan.budget:
        raise ConfigError(
            "memory: the encoder does not fit",
            why=f"it takes {plan.total / GIB:.2f} GiB of {plan.budget / GIB:.2f}",
            fix="raise memory_fraction, or set precision: bf16",
        )
    return plan
