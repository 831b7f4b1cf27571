"""
Plans the reads of a model's files: maps rows of the files to the decoder's parameters.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from runtime.contract.errors import ModelError
from runtime.kernels.quantize import Quantized
from runtime.models.config import DecoderConfig
from runtime.models.shard import Shard
from runtime.models.tensor_files import DTYPES, StoredTensor, find_tensors
from runtime.models.weights import ParameterSource, TensorSlice, sources

READ_BYTES = 16 * 2**20  # of one read: the buffers of all threads fit in the last-level cache

HEAD = "lm_head.weight"
PREFIX = "model."  # of all other tensors

Target = Tensor | Quantized


@dataclass(frozen=True, slots=True)
class Read:
    """
    A read of whole rows of a file's tensor into a parameter.

    Attributes:
        offset: Offset of the first byte in the file.
        shape: Shape of the rows that are read.
        piece: The slice of the tensor, with its conversion.
        rows: Rows of *target* that the read fills.
    """

    stored: StoredTensor
    offset: int
    size_bytes: int
    shape: tuple[int, ...]
    piece: TensorSlice
    target: Target
    rows: slice

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.stored.dtype]

    @property
    def device(self) -> torch.device:
        return memory_of(self.target).device

    @property
    def is_plain(self) -> bool:
        """
        Whether the bytes are copied unchanged.
        """
        return (
            isinstance(self.target, Tensor)
            and self.target.dtype == self.dtype
            and self.piece.pairing is None
            and self.piece.columns is None
        )

    def cut(self, rows: Tensor) -> Tensor:
        """
        Return the slice's columns of *rows*; *rows* itself if it has no others.
        """
        columns = self.piece.columns
        if columns is None or rows.shape[1] == len(columns):
            return rows
        return rows[:, columns.start : columns.stop]


def memory_of(target: Target) -> Tensor:
    return target.weight if isinstance(target, Quantized) else target


def plan_reads(
    path: Path, config: DecoderConfig, parameters: Mapping[str, Target], shard: Shard
) -> list[Read]:
    """
    Return the reads that fill *parameters* from the model in *path*, in file order.

    Raises:
        ModelError: The files are broken, or don't match *config* or *parameters*.
    """
    shard.check(config)
    stored, expected = _with_prefix(find_tensors(path)), sources(config, shard)
    _check_files(stored, expected, config, path)
    _check_parameters(parameters, expected, path)
    reads = [
        read
        for name, source in expected.items()
        for rows, piece in source.placements
        for read in _reads(stored[piece.name], piece, parameters[name], rows.start)
    ]
    return sorted(reads, key=lambda read: (read.stored.path, read.offset))


def _with_prefix(stored: Mapping[str, StoredTensor]) -> Mapping[str, StoredTensor]:
    """
    Return *stored* by the names of a model with a head: published embedding models were saved
    without one, and without the prefix.
    """
    if any(name.startswith(PREFIX) for name in stored):
        return stored
    return {name if name == HEAD else PREFIX + name: tensor for name, tensor in stored.items()}


def _reads(stored: StoredTensor, piece: TensorSlice, target: Target, at: int) -> Iterator[Read]:
    row_bytes = stored.size_bytes // stored.shape[0]
    unit = piece.pairing[0] if piece.pairing else 1  # rows that must be read together
    step = max(READ_BYTES // (row_bytes * unit), 1) * unit
    for first in range(0, len(piece.rows), step):
        count = min(step, len(piece.rows) - first)
        yield Read(
            stored=stored,
            offset=stored.offset + (piece.rows.start + first) * row_bytes,
            size_bytes=count * row_bytes,
            shape=(count, *stored.shape[1:]),
            piece=piece,
            target=target,
            rows=slice(at + first, at + first + count),
        )


def _check_files(
    stored: Mapping[str, StoredTensor],
    expected: Mapping[str, ParameterSource],
    config: DecoderConfig,
    path: Path,
) -> None:
    pieces = {piece.name: piece for source in expected.values() for piece in source.pieces}
    both = [(name, stored[name], pieces[name].shape) for name in pieces if name in stored]
    extra = sorted(name for name in stored if name not in pieces and not _is_harmless(name, config))
    complaints = [
        *(f"{name} is missing" for name in pieces if name not in stored),
        *(
            f"{name} has shape {list(tensor.shape)}, config.json says {list(shape)}"
            for name, tensor, shape in both
            if tensor.shape != shape
        ),
        *(
            f"{name} is of type {tensor.dtype}, this runtime reads {', '.join(DTYPES)}"
            for name, tensor, _ in both
            if tensor.dtype not in DTYPES
        ),
        *(f"{name} is not part of this architecture" for name in extra),
    ]
    if complaints:
        raise ModelError(
            f"{path}: the weights do not match config.json",
            why=_first(complaints),
            fix="use the config.json that was saved with these weights",
        )


def _check_parameters(
    parameters: Mapping[str, Target], expected: Mapping[str, ParameterSource], path: Path
) -> None:
    ours = {name: tuple(target.shape) for name, target in parameters.items()}
    theirs = {name: source.shape for name, source in expected.items()}
    complaints = [
        f"{name} is {ours.get(name, 'absent')} in memory, {theirs.get(name, 'absent')} in the files"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if complaints:
        raise ModelError(
            f"{path}: does not fit the model in memory",
            why=_first(complaints),
            fix="start a new runtime with this model, instead of swapping the weights",
        )


def _first(complaints: list[str]) -> str:
    more = f"; and {len(complaints) - 3} more" if len(complaints) > 3 else ""
    return "; ".join(complaints[:3]) + more


def _is_harmless(name: str, config: DecoderConfig) -> bool:
    # A tied model's file may repeat the embedding; old files contain the rotary table.
    return (
        name.startswith(config.ignored)
        or name.endswith("rotary_emb.inv_freq")
        or (config.is_tied and name == HEAD)
    )
