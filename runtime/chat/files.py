"""
Reads the chat template and the special tokens of a model directory, as transformers does.
"""

import json
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
    check_template_text,
    is_template_name,
    named_templates,
)
from runtime.contract.errors import ModelError

# Source: SPECIAL_TOKENS_ATTRIBUTES of PreTrainedTokenizerBase in transformers 5.24
_STANDARD = frozenset(
    ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
)
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
    if DEFAULT not in templates:
        raise _broken(
            next(iter(sources.values())), f"no template {DEFAULT!r} among {', '.join(templates)}"
        )
    return ChatFiles(templates, sources, _special_tokens(directory, config))


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
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _broken(path, "not a JSON object")
    return document


def _template_files(directory: Path) -> Iterator[tuple[str, Path]]:
    if (path := directory / CHAT_TEMPLATE).exists():
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


def _special_tokens(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """
    Return the special tokens of *config*, or of SPECIAL_TOKENS_MAP where *config* is an old one.
    """
    tokens = {
        **{key: value for key, value in config.items() if key in _STANDARD},
        **{
            key: value
            for key, value in config.items()
            if key.endswith("_token") and isinstance(value, str)
        },
    }
    if isinstance(own := config.get("extra_special_tokens"), dict):
        tokens |= own
    path = directory / TOKENIZER_CONFIG
    if "added_tokens_decoder" not in config:
        older = read_json(directory / SPECIAL_TOKENS_MAP) or {}
        if named := {key: value for key, value in older.items() if key.endswith("_token")}:
            tokens |= named
            path = directory / SPECIAL_TOKENS_MAP
    texts = {key: _token_text(path, key, value) for key, value in tokens.items()}
    return {key: text for key, text in texts.items() if text is not None}


def _token_text(path: Path, key: str, value: object) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    if text is None and value is None:
        return None
    if not isinstance(text, str):
        raise _broken(path, f"{key}: should be a text, or an object with the text in `content`")
    return text


def _read(path: Path, limit: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(
            f"{path}: can't be read",
            why=str(error),
            fix="give the runtime's user read access, or copy the model again",
        ) from error
    if len(data) > limit:
        raise _broken(path, f"more than {limit} bytes")
    return data


def _broken(where: Path | str, why: str) -> ModelError:
    return ModelError(f"{where}: not valid", why=why, fix=_FIX)
