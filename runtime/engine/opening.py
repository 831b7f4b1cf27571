"""
From a model directory to an engine that can compute: room, weights, cache, graphs.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch

from runtime.engine.batch import Chunk, Decode, Opened, Step
from runtime.engine.protocol import Load
from runtime.engine.runner import PagedRunner, prepare_torch
from runtime.errors import ModelError
from runtime.memory.plan import step_tokens
from runtime.models.config import DecoderConfig
from runtime.models.decoder import Decoder
from runtime.models.loader import PRECISIONS, load_weights, read_config, stage
from runtime.models.shard import WHOLE, Shard

KV_TYPES = {"same": None, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
WEIGHT_BITS = {"full": None, "int8": 8, "int4": 4}
GRAPHS_BYTES = 600 << 20  # of all CUDA graphs and their modules; measured on an H100


@dataclass(frozen=True, slots=True)
class Options:
    """
    How a model is held; see `protocol.Load`.
    """

    device: str | torch.device
    precision: str
    max_requests: int
    context_tokens: int
    page_tokens: int
    step_tokens: int
    max_batch_tokens: int | None = None
    weights: str = "full"
    kv: str = "same"
    memory_fraction: float = 0.9

    @property
    def row_pages(self) -> int:
        return -(-self.context_tokens // self.page_tokens)


def build_model(config: DecoderConfig, options: Options, shard: Shard = WHOLE) -> Decoder:
    """
    Return room for the weights of *config* on the device.
    """
    with torch.device("meta"):
        model = Decoder(config, shard).to(PRECISIONS[options.precision])
    bits = WEIGHT_BITS[options.weights]
    if bits:
        model.quantize(bits, options.device)
    # Not `to_empty`: it imports for seconds what tells the shape of an empty tensor.
    model._apply(  # type: ignore[no-untyped-call]
        lambda x: torch.empty(x.shape, dtype=x.dtype, device=options.device)
    )
    return model.requires_grad_(False).eval()


def open_runner(
    model: Decoder, options: Options, agree: Callable[[int], int] = lambda pages: pages
) -> tuple[PagedRunner, int]:
    """
    Return what computes with *model*, whose weights are in place, and the pages of its cache.

    On a GPU the cache gets what is left of its memory: measured, behind the largest step.

    Args:
        agree: Returns the pages of all ranks for those of this one.
    """

    def make(pages: int) -> PagedRunner:
        return PagedRunner(
            model,
            slots=options.max_requests,
            pages=pages,
            page_tokens=options.page_tokens,
            row_pages=options.row_pages,
            kv_dtype=KV_TYPES[options.kv],
        )

    pages = 1 + options.max_requests * options.row_pages
    if options.max_batch_tokens:
        pages = 1 + -(-options.max_batch_tokens // options.page_tokens)
    if model.device.type == "cuda":
        pages = min(pages, 1 + _room_bytes(make(2), options) // page_bytes(model, options))
    pages = agree(pages)
    least = 1 + options.row_pages
    if pages < least:
        raise ModelError(
            f"KV cache: room for {(pages - 1) * options.page_tokens} tokens",
            why=f"one request of the whole context takes {options.context_tokens}",
            fix="lower context_tokens, or raise memory_fraction, or set kv: fp8",
        )
    runner = make(pages)
    runner.capture()
    return runner, pages


def page_bytes(model: Decoder, options: Options) -> int:
    """
    Return what one page takes on this shard's device.
    """
    config, kv_heads = model.config, model.shard.kv_heads(model.config.kv_heads)
    size = (KV_TYPES[options.kv] or model.dtype).itemsize
    scale = 4 if options.kv == "int8" else 0
    return 2 * config.layers * kv_heads * options.page_tokens * (config.head_dim * size + scale)


def _room_bytes(probe: PagedRunner, options: Options) -> int:
    """
    Return what the largest step leaves of the GPU's memory.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nobody, page = options.max_requests, options.page_tokens
    tokens = min(options.step_tokens, options.context_tokens)
    probe.launch(Step((), (), (Chunk(nobody, 0, [0] * tokens, True),))).collect()
    # And whatever else a step can need is loaded before the first request needs it.
    some = [0] * min(page, options.context_tokens - page)
    chunks = (Chunk(nobody, 0, some, True), Chunk(nobody, page, some, True)) if some else ()
    probe.launch(Step((), (Decode(nobody, 0),), chunks)).collect()
    peak = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    used = total - free
    return int(total * options.memory_fraction) - used - peak - GRAPHS_BYTES


def open_paged(load: Load) -> Opened:
    """
    Read the model of *load* and make ready to compute.

    Raises:
        ModelError: The directory is not a model that this runtime can serve, or there is no room.
    """
    if load.device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "device: cuda",
            why="torch sees no GPU",
            fix="inv doctor, or set device: cpu in the host's runtime.yml",
        )
    if load.gpus > 1:
        from runtime.engine.parallel import open_sharded  # which opens each rank with `fill`

        return open_sharded(load)
    config = read_config(load.model_dir)
    return make_ready(*fill(load, config, load.device))


def make_options(load: Load, config: DecoderConfig, device: str | torch.device) -> Options:
    # A request of more than the whole batch may have could never join; admission says the same.
    limits = (config.context_tokens, load.context_tokens, load.max_batch_tokens)
    return Options(
        device=device,
        precision=load.precision,
        max_requests=load.max_batch_requests,
        context_tokens=min(limit for limit in limits if limit),
        page_tokens=load.page_tokens,
        step_tokens=step_tokens(load),
        max_batch_tokens=load.max_batch_tokens,
        weights=load.weights,
        kv=load.kv,
        memory_fraction=load.memory_fraction,
    )


def fill(
    load: Load, config: DecoderConfig, device: str | torch.device, shard: Shard = WHOLE
) -> tuple[Decoder, Options]:
    """
    Return the model of *load*, or a part of it, with its weights in place.
    """
    prepare_torch(load.threads)
    options = make_options(load, config, device)
    model = build_model(config, options, shard)
    load_weights(load.model_dir, config, model.targets, shard)
    return model, options


def make_ready(
    model: Decoder, options: Options, agree: Callable[[int], int] = lambda pages: pages
) -> Opened:
    """
    Return *model* ready to compute; see `open_runner`.
    """
    runner, pages = open_runner(model, options, agree)
    config = model.config
    with torch.device("meta"):
        whole = Decoder(config)
    return Opened(
        runner=runner,
        pages=pages,
        page_tokens=options.page_tokens,
        step_tokens=options.step_tokens,
        context_tokens=options.context_tokens,
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

    return commit
