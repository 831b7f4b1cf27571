"""
Loads a decoder's parameters from a standard model directory, at the speed of the disk.

Rows of the files pass through a few small buffers to the device, which reorders, converts and
quantises them.  The model is never in memory twice.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from runtime.contract.errors import ModelError
from runtime.kernels.quantize import Quantized, quantize
from runtime.models.config import DecoderConfig, read_stop_token_ids
from runtime.models.decoder import Decoder
from runtime.models.encoder import EncoderConfig, is_encoder
from runtime.models.parallel_reader import host_bytes, read_in_parallel, wait
from runtime.models.read_plan import Read, Target, memory_of, plan_reads
from runtime.models.shard import WHOLE, Shard
from runtime.models.tensor_files import read_json, unreadable
from runtime.plain_files import open_plain_file

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WEIGHT_BITS = {"full": None, "int8": 8, "int4": 4}

SLAB_BYTES = 64 * 2**20  # size of a pinned allocation; torch rounds up to a power of two


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """
    The size and duration of a load.

    Attributes:
        size_bytes: Bytes read, in the files' precision.
    """

    size_bytes: int
    seconds: float

    @property
    def gb_per_s(self) -> float:
        return self.size_bytes / self.seconds / 1e9


@dataclass(frozen=True, slots=True)
class StagedWeights:
    """
    Weights in host memory, ready to be copied into the parameters.

    Attributes:
        read: Size and duration of the read.
        commit: Copies the weights into the parameters and frees them.  Call it once, while no
            step runs.  torch caches the pinned memory; see `give_back_host_memory`.
    """

    read: LoadedWeights
    commit: Callable[[], LoadedWeights]


def load_model(
    path: str | Path, *, device: str, precision: str, shard: Shard = WHOLE
) -> tuple[Decoder, DecoderConfig]:
    """
    Return the model in *path* on *device*, without gradients.

    Raises:
        ModelError: The directory does not hold a model that this runtime supports.
    """
    check_device(device)
    config = read_config(path)
    model = build_model(config, device=device, precision=precision, shard=shard)
    load_weights(path, config, model.targets, shard)
    return model, config


def build_model(
    config: DecoderConfig,
    *,
    device: str | torch.device,
    precision: str,
    weights: str = "full",
    shard: Shard = WHOLE,
) -> Decoder:
    """
    Return a decoder with uninitialised weights on *device*, without gradients.

    Args:
        weights: full, int8 or int4.
    """
    with torch.device("meta"):
        model = Decoder(config, shard).to(PRECISIONS[precision])
    if bits := WEIGHT_BITS[weights]:
        model.quantize(bits, device)
    # Not `to_empty`: it imports modules for seconds.
    model._apply(  # type: ignore[no-untyped-call]
        lambda x: torch.empty(x.shape, dtype=x.dtype, device=device)
    )
    return model.requires_grad_(False).eval()


def prepare_torch(threads: int) -> None:
    """
    Set torch's number of threads; call it before the first computation.
    """
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)


def check_device(device: str) -> None:
    """
    Check that torch can use *device*.

    Raises:
        ModelError: torch sees no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        limit = os.environ.get("CUDA_VISIBLE_DEVICES")
        named = "" if limit is None else f"; CUDA_VISIBLE_DEVICES is {limit!r}"
        raise ModelError(
            "device: cuda",
            why=f"torch sees no GPU{named}",
            fix="see nvidia-smi on the host, or set device: cpu (service.device of the fleet file)",
        )


def read_model_config(path: str | Path) -> DecoderConfig | EncoderConfig:
    """
    Return the config of the model in *path*, a decoder or an encoder.

    Raises:
        ModelError: This runtime does not support the model.
    """
    path = Path(path)
    document = read_json(path / CONFIG)
    if not is_encoder(document):
        return read_config(path)
    try:
        return EncoderConfig.from_json(document, str(path / CONFIG))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(
            f"{path / CONFIG}: not the config of a model",
            why=f"a key has a value of a wrong type: {error}",
            fix="use the config.json that was saved with these weights",
        ) from error


def read_config(path: str | Path) -> DecoderConfig:
    """
    Return the config of the decoder in *path*.

    The stop tokens of `generation_config.json` take precedence over those of `config.json`.

    Raises:
        ModelError: This runtime does not support the model.
    """
    path = Path(path)
    config = DecoderConfig.from_json(read_json(path / CONFIG), str(path / CONFIG))
    file = path / GENERATION_CONFIG
    if os.path.lexists(file):
        stop_token_ids = read_stop_token_ids(read_json(file), str(file))
        config = replace(config, stop_token_ids=stop_token_ids or config.stop_token_ids)
    return config


def load_weights(
    path: str | Path,
    config: DecoderConfig,
    parameters: Mapping[str, Target],
    shard: Shard = WHOLE,
) -> LoadedWeights:
    """
    Fill *parameters*, the `targets` of a `Decoder`: of any type, all on one device.

    Raises:
        ModelError: The files are broken, or do not match *config* or *parameters*.  No parameter
            has changed, unless a file was truncated during the read.
    """
    started_s = time.perf_counter()
    reads = plan_reads(Path(path), config, parameters, shard)
    device = _device_of(reads)

    def work(read: Read, buffer: Callable[[], Tensor]) -> None:
        memory = _direct_memory(read)
        if memory is not None:
            _fill(memory, read)
            return
        _put(read, _fill(buffer(), read))
        wait(device)  # before the buffer is reused

    read_in_parallel(reads, work, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # frees the conversion's memory, on streams no longer used
    return _loaded(reads, started_s)


def stage(
    path: str | Path,
    config: DecoderConfig,
    parameters: Mapping[str, Target],
    shard: Shard = WHOLE,
) -> StagedWeights:
    """
    Read the weights of *parameters* into host memory; leave *parameters* unchanged.

    Raises:
        ModelError: As `load_weights`.
    """
    started_s = time.perf_counter()
    reads = plan_reads(Path(path), config, parameters, shard)
    device = _device_of(reads)
    staging = _StagingMemory(device)
    staged: list[tuple[Read, Tensor]] = []

    def work(read: Read, buffer: Callable[[], Tensor]) -> None:
        if read.piece.columns is None:
            staged.append((read, _fill(staging.take(read.size_bytes), read)))
            return
        rows = read.cut(_fill(buffer(), read))
        memory = staging.take(rows.numel() * rows.element_size())
        staged.append((read, memory.view(rows.dtype).view(rows.shape).copy_(rows)))

    def commit() -> LoadedWeights:
        started_s = time.perf_counter()
        with torch.inference_mode():
            while staged:
                _put(*staged.pop())
            wait(device)
        return _loaded(reads, started_s)

    read_in_parallel(reads, work, device)
    return StagedWeights(_loaded(reads, started_s), commit)


def _fill(memory: Tensor, read: Read) -> Tensor:
    """
    Read the file's bytes into *memory*, on the host; return them as rows.
    """
    memory = memory[: read.size_bytes]
    view, at, path = memory.numpy().data, 0, read.stored.path
    try:
        with open_plain_file(path) as file:  # one open per read: the kernel reads ahead for each
            while at < read.size_bytes:
                count = os.preadv(file.fileno(), [view[at:]], read.offset + at)
                if count == 0:
                    raise unreadable(path, "the file was truncated while it was read")
                at += count
    except OSError as error:
        raise unreadable(path, str(error)) from error
    return memory.view(read.dtype).view(read.shape)


def _direct_memory(read: Read) -> Tensor | None:
    """
    Return the target's memory as bytes, if the file can be read straight into it; else None.
    """
    memory = memory_of(read.target)
    if not read.is_plain or memory.device.type != "cpu" or not memory.is_contiguous():
        return None
    return memory.detach()[read.rows].view(-1).view(torch.uint8)


def _put(read: Read, rows: Tensor) -> None:
    """
    Copy *rows* from the host to their target; a GPU converts them, asynchronously.
    """
    target = read.target
    if not read.is_plain:
        rows = read.piece.arrange(read.cut(rows.to(read.device, non_blocking=True)))
    if isinstance(target, Quantized):
        quantized = quantize(rows, target.bits, target.scale.dtype)
        target.weight[read.rows].copy_(quantized.weight)
        target.scale[read.rows].copy_(quantized.scale)
    else:
        target[read.rows].copy_(rows, non_blocking=True)


class _StagingMemory(threading.local):
    """
    Host memory for staged weights, pinned if the target is a GPU; one instance per thread.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._used, self._slab = device, 0, torch.empty(0, dtype=torch.uint8)

    def take(self, size_bytes: int) -> Tensor:
        if self._used + size_bytes > len(self._slab):
            self._slab, self._used = host_bytes(max(size_bytes, SLAB_BYTES), self._device), 0
        taken = self._slab[self._used : self._used + size_bytes]
        self._used += -(-size_bytes // 64) * 64  # aligned for any type
        return taken


def _device_of(reads: Sequence[Read]) -> torch.device:
    (device,) = {read.device for read in reads}
    return device


def _loaded(reads: Sequence[Read], started_s: float) -> LoadedWeights:
    return LoadedWeights(sum(read.size_bytes for read in reads), time.perf_counter() - started_s)
