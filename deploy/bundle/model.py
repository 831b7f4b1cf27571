"""
Checks a model directory and lists its files, before anything is copied.
"""

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.bundle.templates import template_complaint
from deploy.errors import ModelPathError
from deploy.host.bundle import golden_form
from deploy.host.bundle.manifest import GOLDEN_FILE, is_safe_path
from deploy.host.text import lines_of
from deploy.host.trusted_files import Untrusted, open_below, read_below
from runtime.contract.chat_files import (
    ADDITIONAL_TEMPLATES,
    CHAT_TEMPLATE,
    DEFAULT,
    GENERATION_CONFIG,
    JSON_MAX_BYTES,
    MODULES,
    NAME_FORM,
    POOLING,
    SPECIAL_TOKENS_MAP,
    TEMPLATE_MAX_BYTES,
    TEMPLATES_MAX,
    TOKENIZER_CONFIG,
    added_tokens,
    check_default,
    extra_special_tokens,
    is_template_name,
    named_templates,
    special_tokens,
)

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# Included if present.
_OPTIONAL_JSON = (GENERATION_CONFIG, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG)
OPTIONAL = (*_OPTIONAL_JSON, CHAT_TEMPLATE, MODULES, POOLING, "preprocessor_config.json")
# Bytes that are read of each file; a file of a real model has a tenth of it.
_JSON_MAX = {
    **dict.fromkeys(_OPTIONAL_JSON, JSON_MAX_BYTES),
    CONFIG: 16 << 20,
    TOKENIZER: 512 << 20,
    INDEX: 128 << 20,
}
REPLACE = "use the file that was published with the model"
_GOLDEN_MAX = 16 << 20
_HEADER_MAX = 100 << 20  # Source: safetensors format, "header size must not exceed 100 MB"


def check_model(path: Path) -> list[str]:
    """
    Return the files of the model at *path* for a bundle, sorted, without the golden prompts.

    Raises:
        ModelPathError: It is missing, not readable or not a model, or a file of it is a link.
    """
    _reach(path)
    config = _json(path, CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise _not_a_model(path, f"{CONFIG} has no model_type")
    _json(path, TOKENIZER)
    weights = _check_weights(path)
    check_golden(path)
    optional = [name for name in OPTIONAL if os.path.lexists(path / name)]
    templates = _additional_templates(path)
    names = sorted([CONFIG, TOKENIZER, *weights, *optional, *templates])
    for name in (*names, GOLDEN_FILE):
        os.close(open_model_file(path, name))
    _check_chat_files(path, optional, templates)
    return names


def open_model_file(path: Path, name: str) -> int:
    """
    Return a descriptor of the file *name* of the model at *path*, a plain file below it.

    Raises:
        ModelPathError: It, or a directory on the way, is a link, or it is a pipe or a device.
    """
    try:
        return open_below(path, name)
    except OSError as error:
        raise _unreadable(path / name, error) from error


def read_golden(path: Path) -> bytes:
    """
    Return the golden prompts of the model at *path*.

    Raises:
        ModelPathError: They cannot be read.
    """
    try:
        return read_below(path, GOLDEN_FILE, _GOLDEN_MAX)
    except OSError as error:
        raise _unreadable(path / GOLDEN_FILE, error) from error


def model_name(path: Path) -> str:
    """
    Return the model's name for the OpenAI routes: its own name, or its type.
    """
    config = _json(path, CONFIG)
    named = str(config.get("_name_or_path") or config["model_type"])
    return named.rstrip("/").rpartition("/")[2]


def check_golden(path: Path) -> int:
    """
    Return the number of golden prompts of the model at *path*.

    Raises:
        ModelPathError: It has none, or a line is not valid.
    """
    fix = (
        'write one {"prompt": "...", "max_tokens": 16, "expected": "..."} a line, or "messages" in '
        "place of the prompt, with answers that the model gave at temperature 0"
    )
    try:
        lines = lines_of(read_below(path, GOLDEN_FILE, _GOLDEN_MAX).decode("utf-8"))
    except FileNotFoundError:
        raise _not_a_model(
            path, f"{GOLDEN_FILE} is missing: no release could be checked", fix
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path / GOLDEN_FILE, error) from error
    prompts = 0
    for number, line in enumerate(lines, 1):
        if line.strip():
            if (why := _golden_complaint(line)) is not None:
                raise _not_a_model(path, f"{GOLDEN_FILE}, line {number}: {why}", fix)
            prompts += 1
    if prompts == 0:
        raise _not_a_model(path, f"{GOLDEN_FILE} is empty: no release could be checked", fix)
    return prompts


def _golden_complaint(line: str) -> str | None:
    try:
        entry = json.loads(line, parse_constant=_refuse_constant)
        json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "it has half of a surrogate pair, which is no text"
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return golden_form.complaint(entry)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _reach(path: Path) -> None:
    """
    Refuse *path* unless it is a directory that can be listed; the error names the component.
    """
    whole = path.expanduser().absolute()
    for part in [*reversed(whole.parents), whole]:
        try:
            part.stat()
        except FileNotFoundError:
            nearest = part.parent
            raise ModelPathError(
                f"model {path}: not found",
                why=f"{nearest} has no {part.name!r}",
                fix="give the directory with config.json, tokenizer.json and the weights",
            ) from None
        except NotADirectoryError:
            raise _not_a_model(path, f"{part.parent} is a file, not a directory") from None
        except PermissionError:
            raise _forbidden(path, f"{part.parent} cannot be entered") from None
        except OSError as error:  # a link that leads to itself, a name that is too long
            raise _unreadable(path, error) from error
    if not whole.is_dir():
        raise _not_a_model(path, "it is a file, not a directory")
    try:
        next(whole.iterdir(), None)
    except PermissionError:
        raise _forbidden(path, f"{whole} cannot be listed") from None


def _additional_templates(path: Path) -> list[str]:
    files = sorted((path / ADDITIONAL_TEMPLATES).glob("*.jinja"))
    if len(files) >= TEMPLATES_MAX:
        raise _not_a_model(
            path, f"{ADDITIONAL_TEMPLATES}: {len(files)} templates; {TEMPLATES_MAX - 1} at most"
        )
    for file in files:
        if not is_template_name(file.stem):
            name = f"{ADDITIONAL_TEMPLATES}/{file.name[:80]!r}"
            raise _not_a_model(path, f"{name}: its name should be {NAME_FORM}")
    return [f"{ADDITIONAL_TEMPLATES}/{file.name}" for file in files]


def _check_chat_files(path: Path, optional: Sequence[str], templates: Sequence[str]) -> None:
    """
    Refuse a file that the runtime would refuse at its start.
    """
    documents = {name: _json(path, name) for name in _OPTIONAL_JSON if name in optional}
    config = documents.get(TOKENIZER_CONFIG, {})
    files = [*sorted({CHAT_TEMPLATE} & set(optional)), *templates]
    for name in files:
        _check_template(path, name)
    try:
        named = named_templates(config)
    except ValueError as error:
        raise _not_a_model(path, f"{TOKENIZER_CONFIG}: {error}", REPLACE) from None
    names = [DEFAULT if name == CHAT_TEMPLATE else Path(name).stem for name in files] or [*named]
    try:
        check_default(names)
    except ValueError as error:
        source = files[0] if files else TOKENIZER_CONFIG
        raise _not_a_model(path, f"{source}: {error}", REPLACE) from None
    try:
        added_tokens(config)
        older = documents.get(SPECIAL_TOKENS_MAP, {})
        special_tokens(config, older)
        extra_special_tokens(config, older)
    except ValueError as error:
        raise _not_a_model(path, str(error), REPLACE) from None
    if names and (why := template_complaint(path)):
        raise _not_a_model(path, why, REPLACE)


def _check_template(path: Path, name: str) -> None:
    try:
        read_below(path, name, TEMPLATE_MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        raise _not_a_model(path, f"{name} is not a template: {error}", REPLACE) from None
    except OSError as error:
        raise _unreadable(path / name, error) from error


def _check_weights(path: Path) -> list[str]:
    if (path / INDEX).is_file():
        return [INDEX, *_check_shards(path)]
    if not (path / WEIGHTS).exists():
        raise _not_a_model(path, f"{WEIGHTS} is missing, and so is {INDEX}")
    _tensors(path, WEIGHTS)
    return [WEIGHTS]


def _check_shards(path: Path) -> list[str]:
    weight_map = _json(path, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _not_a_model(path, f"{INDEX} has no weight_map")
    by_shard: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not is_safe_path(shard):
            raise _not_a_model(
                path, f"{INDEX}: {repr(shard)[:200]} is not a file of this directory"
            )
        by_shard.setdefault(shard, set()).add(tensor)
    for shard, tensors in sorted(by_shard.items()):
        if not (path / shard).exists():
            raise _not_a_model(path, f"{shard} is missing; {INDEX} lists it")
        lost = sorted(tensors - _tensors(path, shard))
        if lost:
            raise _not_a_model(path, f"{shard} lacks {lost[0]}, which {INDEX} assigns to it")
    return sorted(by_shard)


def _tensors(path: Path, name: str) -> set[str]:
    """
    Return the names of the tensors in the safetensors file *name*, which must be complete.

    Source: the safetensors format: 8 bytes little-endian size of the header, the header as JSON,
    then the data, without gaps; data_offsets count from the end of the header.
    """
    file_path = path / name
    try:
        with os.fdopen(open_below(path, name), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            header_size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= header_size <= _HEADER_MAX:
                raise _not_a_model(
                    path, f"{name} has no safetensors header: its length is {header_size} bytes"
                )
            if header_size > size - 8:
                raise _cut_off(path, name, size, 8 + header_size)
            header = file.read(header_size)
    except OSError as error:
        raise _unreadable(file_path, error) from error
    if len(header) < header_size:
        raise _cut_off(path, name, size, 8 + header_size)
    try:
        document = json.loads(header.decode())  # loads() alone guesses UTF-16
        entries = {key: value for key, value in document.items() if key != "__metadata__"}
        places = sorted(_place(entry) for entry in entries.values())
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise _not_a_model(path, f"{name} has no safetensors header") from None
    if not entries:
        raise _not_a_model(path, f"{name} holds no tensor")
    covered = 0
    for begin, end in places:
        if begin != covered or end < begin:
            why = f"{name}: a tensor lies at {begin} to {end}, after {covered} bytes of others"
            raise _not_a_model(path, why, REPLACE)
        covered = end
    whole = 8 + header_size + covered
    if size < whole:
        raise _cut_off(path, name, size, whole)
    if size > whole:
        raise _not_a_model(path, f"{name}: {size - whole} bytes belong to no tensor", REPLACE)
    return set(entries)


def _place(entry: Mapping[str, Any]) -> tuple[int, int]:
    begin, end = entry["data_offsets"]
    if (type(begin), type(end)) != (int, int):
        raise TypeError(f"data_offsets: {begin!r}, {end!r}")
    return begin, end


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        data = read_below(path, name, _JSON_MAX[name])
        # loads() guesses UTF-16 and UTF-8 with BOM, which the runtime reads in some files alone.
        document = json.loads(data if name in _OPTIONAL_JSON else data.decode())
    except FileNotFoundError:
        raise _not_a_model(path, f"{name} is missing") from None
    except OSError as error:
        raise _unreadable(path / name, error) from error
    except (ValueError, RecursionError) as error:
        raise _not_a_model(path, f"{name} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _not_a_model(path, f"{name} is not a JSON object")
    return document


def _cut_off(path: Path, name: str, size: int, whole: int) -> ModelPathError:
    return _not_a_model(
        path,
        f"{name} is cut off: it has {size} of {whole} bytes",
        "download or copy it again",
    )


def _not_a_model(
    path: Path,
    why: str,
    fix: str = "give the directory with config.json, tokenizer.json and safetensors weights",
) -> ModelPathError:
    return ModelPathError(f"model {path}: not a model", why=why, fix=fix)


def _forbidden(path: Path, why: str) -> ModelPathError:
    return ModelPathError(
        f"model {path}: no permission", why=why, fix="give the user of this command read access"
    )


def _unreadable(path: Path, error: Exception) -> ModelPathError:
    if isinstance(error, PermissionError):
        return _forbidden(path.parent, f"{path} cannot be read")
    if isinstance(error, Untrusted):
        return _not_a_model(
            path.parent,
            f"{path.name}: {error.strerror}",
            f"every file must be a plain one: cp -rL {path.parent} COPY, and bundle that",
        )
    return ModelPathError(f"model {path}: cannot be read", why=str(error), fix="check the disk")
