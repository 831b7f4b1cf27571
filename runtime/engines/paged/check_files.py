"""
What the engine checks of a model directory before it reads a weight.

The start and `python -m runtime check` both call it, so that they refuse the same directories.
"""

from pathlib import Path

import torch

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ModelError
from runtime.models.config import DecoderConfig
from runtime.models.encoder import EncoderConfig, find_encoder_tensors, read_matryoshka
from runtime.models.loader import CONFIG, build_model, check_device, read_model_config
from runtime.models.pooling import read_pooling
from runtime.models.read_plan import plan_reads
from runtime.models.shard import Shard
from runtime.models.tensor_files import read_json


def check_files(
    model_dir: str | Path, options: EngineOptions, *, is_here: bool = True
) -> DecoderConfig | EncoderConfig:
    """
    Return the config of the model in *model_dir*, which this engine can load with *options*.

    Reads headers only.  Whether it fits is for `memory.plan`.

    Args:
        is_here: Whether the model is to run on this machine; otherwise its GPU is not looked at.

    Raises:
        ModelError: It can't.
    """
    if is_here:
        _check_device(options.device)
    config = read_model_config(model_dir)
    pooling = read_pooling(Path(model_dir), options.pooling)
    if isinstance(config, EncoderConfig):
        _check_encoder(model_dir, options)
        find_encoder_tensors(Path(model_dir), config)
        return config
    if options.device == "cuda" and config.head_dim.bit_count() != 1:
        raise ModelError(
            f"{model_dir}: head_dim is {config.head_dim}",
            why="the kernels need a power of two",
            fix="set engine: vllm, or serve it on a CPU",
        )
    if pooling is not None:
        read_shorter_dimensions(model_dir, config)
    shard = Shard(0, options.gpus)
    model = build_model(
        config, device="meta", precision=options.precision, weights=options.weights, shard=shard
    )
    plan_reads(Path(model_dir), config, model.targets, shard)
    return config


def makes_embeddings(model_dir: str | Path, options: EngineOptions) -> bool:
    """
    Return whether a decoder in *model_dir* makes embeddings too: something says how to pool.

    Raises:
        ModelError: Its files that say it are not valid.
    """
    return read_pooling(Path(model_dir), options.pooling) is not None


def read_shorter_dimensions(model_dir: str | Path, config: DecoderConfig) -> tuple[int, ...]:
    """
    Return the dimensions that the vectors of a decoder in *model_dir* may be cut to.

    Raises:
        ModelError: Its config.json names others than it can have.
    """
    path = Path(model_dir, CONFIG)
    return read_matryoshka(read_json(path), config.hidden, str(path))


def _check_encoder(model_dir: str | Path, options: EngineOptions) -> None:
    wanted = {"weights": "full", "kv": "same", "gpus": 1}
    wrong = [key for key, value in wanted.items() if getattr(options, key) != value]
    if wrong:
        raise ModelError(
            f"{model_dir}: {wrong[0]}: {getattr(options, wrong[0])}",
            why="the model is an encoder, which is served on one GPU in full precision",
            fix=f"set {wrong[0]}: {wanted[wrong[0]]}",
        )


def _check_device(device: str) -> None:
    check_device(device)
    if device == "cuda" and (why := _why_no_kernels()):
        raise ModelError(
            f"torch {torch.__version__}: this engine's kernels can't be loaded",
            why=why,
            fix="use a row of the matrix with torch 2.10 or later, or set engine: vllm",
        )


def _why_no_kernels() -> str:
    """
    Return the import error of a missing or too old Triton; empty if its kernels load.
    """
    try:
        from runtime.kernels import fused  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""
