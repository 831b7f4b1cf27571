"""
Locates each tensor in the safetensors files of a model directory.  Reads only headers.

A file is 8 bytes with the length of the header, little-endian; the header, a JSON object of
{name: {"dtype", "shape", "data_offsets": [begin, end]}} and "__metadata__"; and the tensors, row
by row, where offsets count from the header's end and leave no byte out.
Source: README of huggingface/safetensors, "Format"; its reader refuses what is refused here.
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
MAX_HEADER_BYTES = 100_000_000  # the reference's


@dataclass(frozen=True, slots=True)
class Stored:
    """
    A tensor in a file.

    Attributes:
        dtype: The format's name of it; DTYPES has those that are weights.
        offset: Of its first byte in the file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def find_tensors(path: Path) -> dict[str, Stored]:
    """
    Return all tensors of the model in *path*, in one file or sharded, by name.

    Raises:
        ModelError: A file is missing, cut short, or not of this format.
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
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: can't be read", why=str(error), fix="give the directory of a whole model"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{path}: should be a JSON object",
            why=f"it holds a {type(found).__name__}",
            fix="give the directory of a whole model",
        )
    return found


def unreadable(path: Path, why: str) -> ModelError:
    return ModelError(f"{path}: can't be read", why=why, fix="stage the release again: inv release")


def _tensors_of(path: Path) -> Iterator[tuple[str, Stored]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise unreadable(path, f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start, at = 8 + length, 0
        for name, told in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (begin, end), shape, dtype = told["data_offsets"], tuple(told["shape"]), told["dtype"]
            if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
                raise unreadable(path, f"{name} {list(shape)} has {end - begin} bytes of {dtype}")
            if begin != at or not begin <= end <= size - start:
                raise unreadable(path, f"{name} lies at {begin} to {end} of {size - start} bytes")
            at = end
            yield name, Stored(path, dtype, shape, start + begin, end - begin)
    except OSError as error:
        raise unreadable(path, str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, f"its header is not one of safetensors: {error!r}") from error
    if at != size - start:
        raise unreadable(path, f"{size - start - at} bytes belong to no tensor")
