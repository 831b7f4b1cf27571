"""
The files of a model directory that a chat needs: names, limits, and the form of a chat template.

Pure.  Source: `from_pretrained` of PreTrainedTokenizerBase in transformers 5.24.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

CHAT_TEMPLATE = "chat_template.jinja"
ADDITIONAL_TEMPLATES = "additional_chat_templates"  # a directory of NAME.jinja
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
GENERATION_CONFIG = "generation_config.json"
# Of sentence-transformers: how the vector of a text is made.
POOLING, MODULES = "1_Pooling/config.json", "modules.json"

TEMPLATE_MAX_BYTES = 1 << 20  # of one template; the largest published ones have 0.05 MiB
JSON_MAX_BYTES = 32 << 20  # of one JSON file; TOKENIZER_CONFIG lists every added token
TEMPLATES_MAX = 16  # named templates of a model
DEFAULT, TOOL_USE = "default", "tool_use"
NAME_FORM = "up to 64 letters, digits, '.', '_' and '-'"
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Source: SPECIAL_TOKENS_ATTRIBUTES of PreTrainedTokenizerBase in transformers 5.24
_STANDARD = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
)
_EXTRA = ("extra_special_tokens", "additional_special_tokens")  # the second is the older name
_TOKEN_ID = re.compile(r"[0-9]{1,9}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def named_templates(document: Mapping[str, Any]) -> dict[str, str]:
    """
    Return the templates of a TOKENIZER_CONFIG by name; one without a name is DEFAULT.

    Raises:
        ValueError: `chat_template` is not of a known form; names the key.
    """
    value = document.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        entries: list[tuple[object, object]] = [(DEFAULT, value)]
    elif isinstance(value, list) and all(isinstance(each, dict) for each in value):
        entries = [(each.get("name"), each.get("template")) for each in value]
    else:
        raise ValueError("chat_template: should be a text, or a list of {name, template}")
    if len(entries) > TEMPLATES_MAX:
        raise ValueError(f"chat_template: {len(entries)} templates; {TEMPLATES_MAX} at most")
    templates: dict[str, str] = {}
    for index, (name, template) in enumerate(entries):
        where = "chat_template" if isinstance(value, str) else f"chat_template[{index}]"
        if not isinstance(name, str) or not is_template_name(name):
            raise ValueError(
                f"{where}.name: should be letters, digits, '.', '_' and '-', 64 at most"
            )
        if name in templates:
            raise ValueError(f"{where}.name: {name} is there twice")
        if not isinstance(template, str):
            raise ValueError(f"{where}.template: should be a text")
        check_template_text(template, where)
        templates[name] = template
    return templates


def check_default(names: Collection[str]) -> None:
    """
    Check that one of a model's templates is DEFAULT, unless it has none.

    Raises:
        ValueError: None is.
    """
    if names and DEFAULT not in names:
        raise ValueError(f"no template {DEFAULT!r} among {', '.join(names)}")


def special_tokens(config: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, str]:
    """
    Return the text of each special token by name, such as `eos_token`, the standard ones first.

    Args:
        config: TOKENIZER_CONFIG; its tokens count, unless it is an old one.
        older: SPECIAL_TOKENS_MAP.

    Raises:
        ValueError: A token is not of a known form; names file and key.
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
    file = TOKENIZER_CONFIG
    named = {key: value for key, value in older.items() if key.endswith("_token")}
    if named and "added_tokens_decoder" not in config:
        tokens |= named
        file = SPECIAL_TOKENS_MAP
    tokens = {key: tokens[key] for key in _STANDARD if key in tokens} | tokens
    texts = {key: _token_text(file, key, value) for key, value in tokens.items()}
    return {key: text for key, text in texts.items() if text is not None}


def extra_special_tokens(config: Mapping[str, Any], older: Mapping[str, Any]) -> list[str]:
    """
    Return the texts of the special tokens that have no name.

    Args:
        config, older: As for `special_tokens`.

    Raises:
        ValueError: They are not of a known form; names file and key.
    """
    documents = [(TOKENIZER_CONFIG, config)]
    if "added_tokens_decoder" not in config:
        documents.append((SPECIAL_TOKENS_MAP, older))
    texts: list[str] = []
    for file, document in documents:
        key = next((key for key in _EXTRA if document.get(key)), _EXTRA[0])
        value = document.get(key) or []
        if isinstance(value, dict):
            continue  # those have names
        if not isinstance(value, list):
            raise ValueError(f"{file}: {key}: should be a list of tokens")
        for index, token in enumerate(value):
            text = _token_text(file, f"{key}[{index}]", token)
            texts += [] if text is None else [text]
    return texts


def _token_text(file: str, key: str, value: object) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    if text is None and value is None:
        return None
    if not isinstance(text, str):
        raise ValueError(
            f"{file}: {key}: should be a text, or an object with the text in `content`"
        )
    return text


def added_tokens(config: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """
    Return `added_tokens_decoder` of a TOKENIZER_CONFIG: the tokens beside the vocabulary, by id.

    Each has its text in `content`; its other keys are flags.

    Raises:
        ValueError: It is not of a known form; names file and key.
    """
    value = config.get("added_tokens_decoder")
    where = f"{TOKENIZER_CONFIG}: added_tokens_decoder"
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: should be an object of token ids and tokens")
    tokens = {}
    for id, token in value.items():
        if _TOKEN_ID.fullmatch(id) is None:
            raise ValueError(f"{where}: {id[:80]!r} is not a token id")
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise ValueError(f"{where}.{id}: should be an object with the text in `content`")
        if wrong := [flag for flag in TOKEN_FLAGS if not isinstance(token.get(flag, False), bool)]:
            raise ValueError(f"{where}.{id}.{wrong[0]}: should be true or false")
        tokens[int(id)] = token
    return dict(sorted(tokens.items()))


def check_template_text(template: str, where: str) -> None:
    """
    Raises:
        ValueError: *template* is too long, or not Unicode text.
    """
    try:
        size = len(template.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{where}: half of a surrogate pair is not a character") from None
    if size > TEMPLATE_MAX_BYTES:
        raise ValueError(f"{where}: {size} bytes; {TEMPLATE_MAX_BYTES} at most")


def is_template_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None
