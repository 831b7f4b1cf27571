"""
The memory that `memory.plan` divides: of the GPU of this process, or of the host.

The start and `python -m runtime check` both ask here, so that they plan with the same numbers.
"""

import os

import torch

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ConfigError, EngineError
from runtime.engines.base.host_memory import AVAILABLE, HostMemory, read_host_memory
from runtime.memory.encoder_plan import plan_encoder
from runtime.memory.plan import MemoryPlan, plan_memory
from runtime.models.config import DecoderConfig
from runtime.models.encoder import EncoderConfig


def host_memory_of(options: EngineOptions, first_pid: int | None = None) -> HostMemory | None:
    """
    Return what each shard of a model on a CPU may use; None if nothing limits it.

    Args:
        first_pid: Of the runtime's first process; None for this one.
    """
    memory = read_host_memory(os.getpid() if first_pid is None else first_pid)
    if memory is None:
        return None
    return HostMemory(memory.total_bytes // options.gpus, memory.limit)


def plan_here(
    options: EngineOptions,
    config: DecoderConfig | EncoderConfig,
    first_pid: int | None = None,
    *,
    embeds: bool = False,
) -> MemoryPlan:
    """
    Return the plan for the device of this process.

    Args:
        first_pid: See `host_memory_of`.
        embeds: See `plan_memory`.

    Raises:
        RuntimeFault: It does not fit.
    """
    if options.device == "cuda":
        return plan_for(options, config, torch.cuda.mem_get_info()[1], embeds=embeds)
    memory = host_memory_of(options, first_pid)
    if memory is None:
        return plan_for(options, config, None, embeds=embeds)
    return plan_for(options, config, memory.total_bytes, memory.limit, embeds=embeds)


def plan_for(
    options: EngineOptions,
    config: DecoderConfig | EncoderConfig,
    total_bytes: int | None,
    limit: str = "",
    *,
    embeds: bool = False,
) -> MemoryPlan:
    """
    Return the plan of a model of any kind; see `plan_memory`.

    Raises:
        EngineError: It does not fit into what the host has available now: a later start may.
    """
    try:
        return _plan_for(options, config, total_bytes, limit, embeds=embeds)
    except ConfigError as error:
        if limit != AVAILABLE:
            raise
        fix = f"{error.fix}; or leave it more memory: it is started again"
        raise EngineError(error.what, why=error.why, fix=fix) from None


def _plan_for(
    options: EngineOptions,
    config: DecoderConfig | EncoderConfig,
    total_bytes: int | None,
    limit: str,
    *,
    embeds: bool,
) -> MemoryPlan:
    if isinstance(config, DecoderConfig):
        return plan_memory(options, config, total_bytes, limit, embeds=embeds)
    return plan_encoder(
        options,
        parameters=config.parameters,
        hidden=config.hidden,
        intermediate=config.intermediate,
        context_tokens=config.context_tokens,
        vocabulary=config.vocabulary,
        total_bytes=total_bytes,
        limit=limit,
    )
