"""
The files of a model directory that a chat needs: names, limits, and the form of a chat template.

Pure.  Source: `from_pretrained` of PreTrainedTokenizerBase in transformers 5.24.
"""

import re
from collections.abc import Mapping
from typing import Any

CHAT_TEMPLATE = "chat_template.jinja"
ADDITIONAL_TEMPLATES = "additional_chat_templates"  # a directory of NAME.jinja
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
GENERATION_CONFIG = "generation_config.json"

TEMPLATE_MAX_BYTES = 1 << 20  # of one template; the largest published ones have 0.05 MiB
JSON_MAX_BYTES = 32 << 20  # of one JSON file; TOKENIZER_CONFIG lists every added token
TEMPLATES_MAX = 16  # named templates of a model
DEFAULT, TOOL_USE = "default", "tool_use"
NAME_FORM = "up to 64 letters, digits, '.', '_' and '-'"
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
