"""
Locates each tensor in the safetensors files of a model directory.  Reads only headers.

A file has three parts: 8 bytes with the header's length, little-endian; the header, a JSON object
of {name: {"dtype", "shape", "data_offsets": [begin, end]}} and "__metadata__"; and the tensors, in
row-major order.  Offsets count from the end of the header and leave no gaps.
Source: README of huggingface/safetensors, "Format"; its reader refuses the same files.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runtime.contract.errors import ModelError
from runtime.plain_files import open_plain_file, read_plain_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER_BYTES = 100_000_000  # as in the reference reader
MAX_JSON_BYTES = 128 << 20


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
    if os.path.lexists(path / INDEX):
        try:
            files = read_json(path / INDEX)["weight_map"]
            names = set(files.values())
        except (KeyError, AttributeError, TypeError) as error:
            raise unreadable(path / INDEX, "it has no weight_map of names to files") from error
        if wrong := [name for name in names if not _is_file_name(name)]:
            why = f"weight_map names {wrong[0]!r}, which is no file of the directory"
            raise unreadable(path / INDEX, why)
    else:
        files, names = {}, {WEIGHTS}
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(names):
        for name, stored in _tensors_of(path / file):
            if name not in tensors or files.get(name) == file:  # several may have it
                tensors[name] = stored
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """
    Return the JSON object in *path*.

    Raises:
        ModelError: The file can't be read, or does not hold a JSON object.
    """
    document = read_json_value(path)
    if not isinstance(document, dict):
        raise ModelError(
            f"{path}: should be a JSON object",
            why=f"it holds a {type(document).__name__}",
            fix="pass a complete model directory",
        )
    return document


def read_json_value(path: Path) -> Any:
    """
    Return what the JSON in *path* holds.

    Raises:
        ModelError: The file can't be read, or is not JSON.
    """
    try:
        return json.loads(read_plain_file(path, MAX_JSON_BYTES).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: can't be read", why=str(error), fix="pass a complete model directory"
        ) from error


def unreadable(path: Path, why: str) -> ModelError:
    """
    Return the error for a broken tensor file.
    """
    return ModelError(f"{path}: can't be read", why=why, fix="stage the release again: inv release")


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\0"}


def _tensors_of(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        with open_plain_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise unreadable(path, f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length).decode())  # loads() alone guesses UTF-16
        header.pop("__metadata__", None)
        start, covered = 8 + length, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (begin, end), shape, dtype = (
                entry["data_offsets"],
                tuple(entry["shape"]),
                entry["dtype"],
            )
            if {type(dtype), *map(type, (begin, end, *shape))} != {str, int}:
                raise unreadable(path, f"{name}: its shape or place is not of whole numbers")
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
