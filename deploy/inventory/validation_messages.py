"""
Error messages for values that the schema rejects.  Pure.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from deploy.foreign_text import visible
from deploy.inventory.document import Document, KeyPath, Problem
from deploy.inventory.schema import FleetFile

_SHOULD_BE: Mapping[str, str] = {
    "string_type": "text",
    "path_type": "a path",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
    "enum": "{expected}",
}
_ODD_NUMBER = re.compile(r"[+-]?(?:0[xob])?[0-9][0-9A-Fa-f_:.+-]*")
# Remedies for the forms that earlier versions accepted.
_ONE_LINE_SOURCE = (
    "should be a list of sources with the keys uris and distribution, or uris, suites and"
    " components, such as [{uris: [https://mirror.example.com/debian], distribution: debian}],"
    " no line of sources.list"
)


def problems_of(errors: Sequence[ErrorDetails], document: Document) -> Iterator[Problem]:
    """
    Yield one problem for each key in pydantic's *errors*.
    """
    texts_by_path: dict[KeyPath, list[str]] = {}
    for error in errors:
        path = _path_of(error, document)
        text = _text(error, path)
        # A value that may have several types has one error for each of them.
        texts_by_path.setdefault(path, []).append(text)
    for path, texts in texts_by_path.items():
        prefix = "should be "
        if len(texts) > 1 and all(text.startswith(prefix) for text in texts):
            choices = [text.removeprefix(prefix) for text in dict.fromkeys(texts)]
            text = prefix + ", ".join(choices[:-1]) + " or " + choices[-1]
        else:
            text = "; ".join(dict.fromkeys(texts))
        if text.startswith(prefix):
            text += f", got {_format_value(document.at(path), path)}"
            if _is_number_of_yaml_1_1(document.at(path), texts):
                text += "; write numbers in decimal, such as 22, not 0022, 0x16, 2_2 or 22:10"
        yield Problem(path, text, document.line_of(path))


def _is_number_of_yaml_1_1(value: object, texts: Sequence[str]) -> bool:
    """
    Return whether *value* stands for a number, but not for the same one in every version of YAML.
    """
    is_number = any(text.endswith("number") for text in texts)
    return is_number and isinstance(value, str) and _ODD_NUMBER.fullmatch(value) is not None


def nearest(word: str, known: Sequence[str]) -> str:
    """
    Return "did you mean X?"; if no known word is similar, the list of known words.
    """
    if similar := difflib.get_close_matches(word, known, n=1, cutoff=0.6):
        return f"did you mean {similar[0]}?"
    return f"known here: {', '.join(known) or 'none'}"


def _format_value(value: object, path: KeyPath) -> str:
    """
    Return *value* as the file has it, at most 80 characters; values under `secrets` are hidden.
    """
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if path[:1] == ("secrets",):
        # It may be the secret itself, written by mistake where its name belongs.
        return "a value (hidden)"
    text = visible(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys(path: KeyPath) -> tuple[str, ...]:
    """
    Return the schema's keys in the mapping at *path*; empty if the mapping takes any name.
    """
    kind: Any = FleetFile
    for part in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            kind = field.annotation if field else None
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif get_origin(kind) is tuple:
            kind = get_args(kind)[0]
        else:
            return ()
        if get_origin(kind) in (Union, UnionType):
            kind = next((arg for arg in get_args(kind) if arg is not type(None)), None)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return tuple(kind.model_fields)
    return ()


def _path_of(error: ErrorDetails, document: Document) -> KeyPath:
    path = tuple(error["loc"])
    if error["type"] == "missing":
        return path
    # Pydantic appends parts that the file does not have: "[key]", and each type that it tried.
    while path and not document.holds(path):
        path = path[:-1]
    return path


def _text(error: ErrorDetails, path: KeyPath) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "is required, and missing"
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(str(path[-1]), _known_keys(path[:-1]))}"
    if kind == "too_short":
        return f"should have at least {context['min_length']} entry"
    if kind == "value_error":
        # The schema's own message.  `problems_of` adds the value as the file has it.
        text = str(context["error"]).split(", got ")[0]
        return f"the name {text}" if error["loc"][-1] == "[key]" else text
    if kind == "tuple_type" and path == ("mirrors", "apt"):
        return _ONE_LINE_SOURCE
    if kind in _SHOULD_BE:
        text = "should be " + _SHOULD_BE[kind].format(**context).replace("'", "")
        return text.replace("False", "false").replace("True", "true")  # as YAML spells them
    return error["msg"]
