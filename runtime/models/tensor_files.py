"""
Locates each tensor in the safetensors files of a model directory.  Reads only headers.

A file has three parts: 8 bytes with the header's length, little-endian; the header, a JSON object
of {name: {"dtype", "shape", "data_offsets": [begin, end]}} and "__metadata__"; and the tensors, in
row-major order.  Offsets count from the end of the header and leave no gaps.
Source: README of huggingface/safetensors, "Format"; its reader refuses the same files.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runtime.contract.errors import ModelError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER_BYTES = 100_000_000  # as in the reference reader


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """
    The location of a tensor in a file.

    Attributes:
        dtype: The format's name of the type; DTYPES has the supported ones.
        offset: Offset of its first byte in the file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def find_tensors(path: Path) -> dict[str, StoredTensor]:
    """
    Return all tensors of the model in *path* by name, from one file or from several.

    Raises:
        ModelError: A file is missing, truncated, or not a safetensors file.
    """
    if (path / INDEX).exists():
        try:
            names = set(read_json(path / INDEX)["weight_map"].values())
        except (KeyError, AttributeError) as error:
            raise unreadable(path / INDEX, "it has no weight_map of names to files") from error
    else:
        names = {WEIGHTS}
    return {name: stored for file in sorted(names) for name, stored in _tensors_of(path / file)}


def read_json(path: Path) -> dict[str, Any]:
    """
    Return the JSON object in *path*.

    Raises:
        ModelError: The file can't be read, or does not hold a JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: can't be read", why=str(error), fix="pass a complete model directory"
        ) from error
    if not isinstance(document, dict):
        raise ModelError(
            f"{path}: should be a JSON object",
            why=f"it holds a {type(document).__name__}",
            fix="pass a complete model directory",
        )
    return document


def unreadable(path: Path, why: str) -> ModelError:
    """
    Return the error for a broken tensor file.
    """
    return ModelError(f"{path}: can't be read", why=why, fix="stage the release again: inv release")


def _tensors_of(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise unreadable(path, f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start, covered = 8 + length, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (begin, end), shape, dtype = (
                entry["data_offsets"],
                tuple(entry["shape"]),
                entry["dtype"],
            )
            if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
                raise unreadable(path, f"{name} {list(shape)} has {end - begin} bytes of {dtype}")
            if begin != covered or not begin <= end <= size - start:
                raise unreadable(path, f"{name} lies at {begin} to {end} of {size - start} bytes")
            covered = end
            yield name, StoredTensor(path, dtype, shape, start + begin, end - begin)
    except OSError as error:
        raise unreadable(path, str(error)) from error
    except (
        *(ValueError, KeyError, TypeError, AttributeError),
        *(ArithmeticError, RecursionError),
    ) as error:
        raise unreadable(path, f"its header is not a safetensors header: {error!r}") from error
    if covered != size - start:
        raise unreadable(path, f"{size - start - covered} bytes belong to no tensor")
