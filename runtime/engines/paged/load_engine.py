"""
From a model directory to an engine that can compute: room, weights, cache, graphs.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ModelError
from runtime.engines.base.protocol import Load
from runtime.engines.paged.runner import PagedRunner
from runtime.engines.paged.step import Chunk, Decode, Opened, Step
from runtime.kernels.cache import KV_DTYPES
from runtime.memory.plan import plan_memory, step_tokens
from runtime.models.config import DecoderConfig
from runtime.models.decoder import Decoder
from runtime.models.loader import (
    build_model,
    check_device,
    load_weights,
    prepare_torch,
    read_config,
    stage,
)
from runtime.models.parallel_reader import give_back_host_memory
from runtime.models.shard import WHOLE, Shard

log = logging.getLogger("runtime.engine")

GRAPHS_BYTES = 800 << 20  # kept for the CUDA graphs themselves, which are made last


@dataclass(frozen=True, slots=True)
class ResolvedOptions:
    """
    Engine options of one device, with the limits that depend on the model and the device.

    Attributes:
        context_tokens, step_tokens: Of a request, and most of a step.
    """

    options: EngineOptions
    device: str | torch.device
    context_tokens: int
    step_tokens: int


def open_runner(
    model: Decoder, resolved: ResolvedOptions, agree: Callable[[int], int] = lambda pages: pages
) -> tuple[PagedRunner, int]:
    """
    Return what computes with *model*, whose weights are in place, and the pages of its cache.

    The cache gets what `memory.plan` leaves for it; on a GPU no more than is free.

    Args:
        agree: Returns the pages of all ranks for those of this one.

    Raises:
        RuntimeFault: There is no room for one request of the whole context.
    """

    options = resolved.options

    def make(pages: int) -> PagedRunner:
        return PagedRunner(
            model,
            slots=options.max_batch_requests,
            pages=pages,
            page_tokens=options.page_tokens,
            row_pages=-(-resolved.context_tokens // options.page_tokens),
            kv_dtype=KV_DTYPES.get(options.kv),  # "same": None
        )

    is_gpu = model.device.type == "cuda"
    total_bytes = torch.cuda.mem_get_info()[1] if is_gpu else None
    plan = plan_memory(options, model.config, total_bytes)
    pages = plan.pages
    if is_gpu:
        _warm(make(2), resolved)
        free_bytes = torch.cuda.mem_get_info()[0] - plan.activations - GRAPHS_BYTES
        pages = min(pages, free_bytes * plan.pages // plan.kv)
    pages = agree(pages)
    if pages < plan.least_pages:
        raise ModelError(
            f"KV cache: room for {max(pages - 1, 0) * options.page_tokens} tokens",
            why=f"one request of the whole context takes {resolved.context_tokens}; other "
            "processes on the GPU count too, such as the other slot of a release",
            fix="lower context_tokens, or set kv: fp8, or lower memory_fraction of both slots",
        )
    runner = make(pages)
    runner.capture()
    return runner, pages


def _warm(probe: PagedRunner, resolved: ResolvedOptions) -> None:
    """
    Have everything that a step can need loaded, before the first request needs it.
    """
    nobody, page = resolved.options.max_batch_requests, resolved.options.page_tokens
    tokens = min(resolved.step_tokens, resolved.context_tokens)
    probe.launch(Step((), (), (Chunk(nobody, 0, [0] * tokens, True),))).collect()
    some = [0] * min(page, resolved.context_tokens - page)
    chunks = (Chunk(nobody, 0, some, True), Chunk(nobody, page, some, True)) if some else ()
    probe.launch(Step((), (Decode(nobody, 0),), chunks)).collect()
    torch.cuda.empty_cache()


def open_paged(load: Load) -> Opened:
    """
    Read the model of *load* and make ready to compute.

    Raises:
        ModelError: The directory is not a model that this runtime can serve, or there is no room.
    """
    options = load.options
    check_device(options.device)
    if options.device == "cuda" and (why := _why_no_kernels()):
        raise ModelError(
            f"torch {torch.__version__}: this engine's kernels can't be loaded",
            why=why,
            fix="take a row of the matrix with torch 2.10 or later, or set engine: vllm",
        )
    config = read_config(load.model_dir)
    if options.device == "cuda" and config.head_dim.bit_count() != 1:
        raise ModelError(
            f"{load.model_dir}: heads of {config.head_dim} values",
            why="the kernels have a power of two",
            fix="set engine: vllm, or serve it on a CPU",
        )
    if options.gpus > 1:
        from runtime.engines.tensor_parallel.sharded import (
            open_sharded,  # which opens each rank with `fill`
        )

        return open_sharded(load, config)
    return make_ready(*fill(load, config, options.device))


def _why_no_kernels() -> str:
    """
    Return what the system says of a Triton that is missing, or too old; else nothing.
    """
    try:
        from runtime.kernels import fused  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""


def resolve_options(
    options: EngineOptions, config: DecoderConfig, device: str | torch.device
) -> ResolvedOptions:
    # A request of more than the whole batch may have could never join; admission says the same.
    limits = (config.context_tokens, options.context_tokens, options.max_batch_tokens)
    context_tokens = min(limit for limit in limits if limit)
    return ResolvedOptions(options, device, context_tokens, step_tokens(options))


def fill(
    load: Load, config: DecoderConfig, device: str | torch.device, shard: Shard = WHOLE
) -> tuple[Decoder, ResolvedOptions]:
    """
    Return the model of *load*, or a part of it, with its weights in place.
    """
    options = load.options
    prepare_torch(options.threads)
    model = build_model(
        config, device=device, precision=options.precision, weights=options.weights, shard=shard
    )
    loaded = load_weights(load.model_dir, config, model.targets, shard)
    log.info(
        "engine.weights_loaded size_gb=%.2f took_s=%.2f gb_per_s=%.1f",
        loaded.size_bytes / 1e9,
        loaded.seconds,
        loaded.gb_per_s,
    )
    return model, resolve_options(options, config, device)


def make_ready(
    model: Decoder, resolved: ResolvedOptions, agree: Callable[[int], int] = lambda pages: pages
) -> Opened:
    """
    Return *model* ready to compute; see `open_runner`.
    """
    runner, pages = open_runner(model, resolved, agree)
    config = model.config
    with torch.device("meta"):
        whole = Decoder(config)
    return Opened(
        runner=runner,
        pages=pages,
        page_tokens=resolved.options.page_tokens,
        step_tokens=resolved.step_tokens,
        context_tokens=resolved.context_tokens,
        vocabulary=config.vocabulary,
        parameters=sum(parameter.numel() for parameter in whole.parameters()),
        ends=config.ends,
        prepare=partial(_prepare, model),
    )


def _prepare(model: Decoder, model_dir: str) -> Callable[[], None]:
    """
    See `Opened.prepare`.
    """
    config, other = model.config, read_config(model_dir)
    names = [field.name for field in fields(config)]
    if different := [name for name in names if getattr(other, name) != getattr(config, name)]:
        raise ModelError(
            f"{model_dir}: not a model of the same shape and ends",
            why=f"only weights are exchanged, and it differs in {', '.join(different)}",
            fix="release it: a new slot starts with it",
        )
    staged = stage(model_dir, config, model.targets, model.shard)

    def commit() -> None:
        staged.commit()
        # torch would keep it pinned, and to free it takes a while.
        threading.Thread(target=give_back_host_memory, daemon=True).start()

    return commit
