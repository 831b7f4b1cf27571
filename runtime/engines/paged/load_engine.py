"""
From a model directory to an engine that can compute: memory, weights, cache, graphs.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ModelError
from runtime.engines.base.protocol import Load
from runtime.engines.paged.check_files import (
    check_files,
    makes_embeddings,
    read_shorter_dimensions,
)
from runtime.engines.paged.device_memory import plan_here
from runtime.engines.paged.embedding import BATCH_TOKENS, embed_with_decoder
from runtime.engines.paged.load_encoder import load_encoder_engine
from runtime.engines.paged.runner import PagedRunner
from runtime.engines.paged.step import Chunk, Decode, Embedding, LoadedModel, Step
from runtime.kernels.cache import KV_DTYPES
from runtime.memory.plan import MemoryPlan, request_tokens, step_tokens
from runtime.models.config import DecoderConfig
from runtime.models.decoder import Decoder
from runtime.models.encoder import EncoderConfig
from runtime.models.loader import (
    build_model,
    load_weights,
    prepare_torch,
    read_config,
    stage,
)
from runtime.models.parallel_reader import give_back_host_memory
from runtime.models.pooling import read_pooling
from runtime.models.shard import WHOLE, Shard

log = logging.getLogger("runtime.engine")

GRAPHS_BYTES = 800 << 20  # reserved for the CUDA graphs, which are captured last


def open_runner(
    model: Decoder,
    options: EngineOptions,
    agree: Callable[[int], int] = lambda pages: pages,
    planned: MemoryPlan | None = None,
) -> tuple[PagedRunner, int]:
    """
    Return a runner of *model*, whose weights are loaded, and the pages of its KV cache.

    The cache gets what `memory.plan` allots to it; on a GPU at most what is free.

    Args:
        agree: Maps the pages of this rank to the fewest of all ranks.
        planned: Plan of the memory; None to make it here.

    Raises:
        RuntimeFault: One request of the whole context does not fit.
    """

    def make(pages: int) -> PagedRunner:
        return PagedRunner(
            model,
            slots=options.max_batch_requests,
            pages=pages,
            page_tokens=options.page_tokens,
            row_pages=-(-plan.context_tokens // options.page_tokens),
            kv_dtype=KV_DTYPES.get(options.kv),  # "same": None
        )

    is_gpu = model.device.type == "cuda"
    plan = planned or plan_here(options, model.config)
    pages = plan.pages
    if is_gpu:
        _warm(make(2), options, plan.context_tokens)
        free_bytes = torch.cuda.mem_get_info()[0] - plan.activations - GRAPHS_BYTES
        pages = min(pages, free_bytes * plan.pages // plan.kv)
    pages = agree(pages)
    if pages < plan.least_pages:
        raise ModelError(
            f"KV cache: room for {max(pages - 1, 0) * options.page_tokens} tokens",
            why=f"one request of the whole context takes {plan.context_tokens}; other "
            "processes on the GPU count too, such as the other slot of a release",
            fix="lower context_tokens, or set kv: fp8, or lower memory_fraction of both slots",
        )
    runner = make(pages)
    runner.capture()
    return runner, pages


def _warm(probe: PagedRunner, options: EngineOptions, context_tokens: int) -> None:
    """
    Load everything that a step can need before the first request needs it.
    """
    unused_slot, page = options.max_batch_requests, options.page_tokens
    tokens = min(step_tokens(options), context_tokens)
    probe.launch(Step((), (), (Chunk(unused_slot, 0, [0] * tokens, True),))).collect()
    some = [0] * min(page, context_tokens - page)
    chunks = tuple(Chunk(unused_slot, start, some, True) for start in (0, page)) if some else ()
    probe.launch(Step((), (Decode(unused_slot, 0),), chunks)).collect()
    torch.cuda.empty_cache()


def load_engine(load: Load, first_pid: int | None = None) -> LoadedModel:
    """
    Read the model of *load* and prepare it to compute, on one device.

    Its memory is planned before its weights are read: a process that takes more than its cgroup's
    limit is killed without a word.

    Args:
        first_pid: See `device_memory.host_memory_of`.

    Raises:
        ModelError: This runtime can't serve the directory's model, or it does not fit.
    """
    config = check_files(load.model_dir, load.options)
    embeds = makes_embeddings(load.model_dir, load.options)
    planned = plan_here(load.options, config, first_pid, embeds=embeds)
    if isinstance(config, EncoderConfig):
        return load_encoder_engine(load, config)
    model = fill(load, config, load.options.device)
    loaded = make_ready(model, load.options, planned=planned)
    return replace(loaded, embedding=_embedding_of(load, model))


def _embedding_of(load: Load, model: Decoder) -> Embedding | None:
    """
    Return how *model* makes embeddings; None where nothing says how to pool its states.
    """
    directory = Path(load.model_dir)
    pooling = read_pooling(directory, load.options.pooling)
    if pooling is None:
        return None
    shorter = read_shorter_dimensions(directory, model.config)
    tokens = BATCH_TOKENS[load.options.device]
    return Embedding(embed_with_decoder(model, pooling), model.config.hidden, shorter, tokens)


def fill(
    load: Load, config: DecoderConfig, device: str | torch.device, shard: Shard = WHOLE
) -> Decoder:
    """
    Return the model of *load*, or one shard of it, with its weights loaded.
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
    return model


def make_ready(
    model: Decoder,
    options: EngineOptions,
    agree: Callable[[int], int] = lambda pages: pages,
    planned: MemoryPlan | None = None,
) -> LoadedModel:
    """
    Return *model* with its runner; see `open_runner`.
    """
    runner, pages = open_runner(model, options, agree, planned)
    config = model.config
    with torch.device("meta"):
        whole = Decoder(config)
    return LoadedModel(
        runner=runner,
        pages=pages,
        page_tokens=options.page_tokens,
        step_tokens=step_tokens(options),
        context_tokens=request_tokens(options, config),
        vocabulary=config.vocabulary,
        parameters=sum(parameter.numel() for parameter in whole.parameters()),
        stop_token_ids=config.stop_token_ids,
        prepare=partial(_prepare, model),
        is_synchronous=model.device.type == "cpu",
    )


def _prepare(model: Decoder, model_dir: str) -> Callable[[], None]:
    """
    See `LoadedModel.prepare`.
    """
    config, other = model.config, read_config(model_dir)
    names = [field.name for field in fields(config)]
    if different := [name for name in names if getattr(other, name) != getattr(config, name)]:
        raise ModelError(
            f"{model_dir}: not a model of the same shape and stop tokens",
            why=f"a swap exchanges weights only; it differs in {', '.join(different)}",
            fix="release it: a new slot starts with it",
        )
    staged = stage(model_dir, config, model.targets, model.shard)

    def commit() -> None:
        staged.commit()
        # torch would keep the memory pinned; freeing it is slow.
        threading.Thread(target=give_back_host_memory, daemon=True).start()

    return commit
