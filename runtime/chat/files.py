"""
Reads the chat template and the special tokens of a model directory, as transformers does.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.contract.chat_files import (
    ADDITIONAL_TEMPLATES,
    CHAT_TEMPLATE,
    DEFAULT,
    JSON_MAX_BYTES,
    NAME_FORM,
    SPECIAL_TOKENS_MAP,
    TEMPLATE_MAX_BYTES,
    TEMPLATES_MAX,
    TOKENIZER_CONFIG,
    check_default,
    check_template_text,
    extra_special_tokens,
    is_template_name,
    named_templates,
    special_tokens,
)
from runtime.contract.errors import ModelError
from runtime.plain_files import read_plain_file

_FIX = "use the file that was published with the model"


@dataclass(frozen=True, slots=True)
class ChatFiles:
    """
    Attributes:
        templates: By name; one is `default`.
        sources: Where each template stands, for errors: a file, or a file and a key.
        special_tokens: Text of each special token by name, such as `eos_token`.
    """

    templates: Mapping[str, str]
    sources: Mapping[str, str]
    special_tokens: Mapping[str, str]


def read_chat_files(directory: Path) -> ChatFiles | None:
    """
    Return what the model in *directory* has for chats; None if it has no template.

    CHAT_TEMPLATE and ADDITIONAL_TEMPLATES replace the templates of TOKENIZER_CONFIG.

    Raises:
        ModelError: A file can't be read, is too large or not of a known form.
    """
    config = read_json(directory / TOKENIZER_CONFIG) or {}
    files = dict(_template_files(directory))
    if files:
        templates = {name: _read_template(path) for name, path in files.items()}
        sources = {name: str(path) for name, path in files.items()}
    else:
        path = directory / TOKENIZER_CONFIG
        try:
            templates = named_templates(config)
        except ValueError as error:
            raise _broken(path, str(error)) from None
        sources = dict.fromkeys(templates, f"{path}: chat_template")
    if not templates:
        return None
    try:
        check_default(templates)
    except ValueError as error:
        raise _broken(next(iter(sources.values())), str(error)) from None
    return ChatFiles(templates, sources, read_special_tokens(directory, config))


def read_json(path: Path) -> dict[str, Any] | None:
    """
    Return the object in the JSON file *path*; None if the file does not exist.

    Raises:
        ModelError: It can't be read, is too large or not a JSON object.
    """
    data = _read(path, JSON_MAX_BYTES)
    if data is None:
        return None
    try:
        document = json.loads(data)
        json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except UnicodeEncodeError as error:
        half = str(error.object)[error.start]
        raise _broken(path, f"it has half of a surrogate pair, {half!r}") from None
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _broken(path, "not a JSON object")
    return document


def _template_files(directory: Path) -> Iterator[tuple[str, Path]]:
    if os.path.lexists(path := directory / CHAT_TEMPLATE):
        yield DEFAULT, path
    others = sorted((directory / ADDITIONAL_TEMPLATES).glob("*.jinja"))
    if len(others) >= TEMPLATES_MAX:
        raise _broken(
            directory / ADDITIONAL_TEMPLATES, f"{len(others)} templates; {TEMPLATES_MAX} at most"
        )
    for path in others:
        if not is_template_name(path.stem):
            raise _broken(path, f"its name should be {NAME_FORM}")
        yield path.stem, path


def _read_template(path: Path) -> str:
    data = _read(path, TEMPLATE_MAX_BYTES)
    try:
        text = (data or b"").decode()
        check_template_text(text, "the template")
    except ValueError as error:
        raise _broken(path, f"not a template: {error}") from None
    # As a text file is read: transformers opens it in text mode.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_special_tokens(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """
    Return the special tokens of *config*, or of SPECIAL_TOKENS_MAP where *config* is an old one.

    Raises:
        ModelError: A token is not of a known form.
    """
    path = directory / SPECIAL_TOKENS_MAP
    try:
        return special_tokens(config, read_json(path) or {})
    except ValueError as error:
        raise in_file(directory, error) from None


def read_extra_special_tokens(directory: Path, config: Mapping[str, Any]) -> list[str]:
    """
    Return the special tokens without a name, from the same files.

    Raises:
        ModelError: A token is not of a known form.
    """
    try:
        return extra_special_tokens(config, read_json(directory / SPECIAL_TOKENS_MAP) or {})
    except ValueError as error:
        raise in_file(directory, error) from None


def in_file(directory: Path, error: ValueError) -> ModelError:
    """
    Return the error of a file of *directory*, whose name *error* begins with.
    """
    name, _, why = str(error).partition(": ")
    return _broken(directory / name, why)


def _read(path: Path, limit: int) -> bytes | None:
    try:
        return read_plain_file(path, limit)
    except OSError as error:
        if error.errno == errno.ENOENT and not path.is_symlink():
            return None
        if error.errno == errno.EFBIG:
            raise _broken(path, f"more than {limit} bytes") from None
        raise ModelError(
            f"{path}: can't be read",
            why=str(error),
            fix="give the runtime's user read access, or copy the model again",
        ) from error


def _broken(where: Path | str, why: str) -> ModelError:
    return ModelError(f"{where}: not valid", why=why, fix=_FIX)
