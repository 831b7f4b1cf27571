"""
Generates the tables of docs/reference/protocol.md from deploy/host/protocol.py.

    python -m tests.unit.deploy.host.protocol_page
"""

import dataclasses
import functools
import inspect
import re
import textwrap
import typing
from pathlib import Path

from deploy.host.codec import OneOf, Pattern, Range
from deploy.host.protocol import REQUESTS, ErrorKind, result_type

PAGE = Path(__file__).parents[4] / "docs" / "reference" / "protocol.md"
MARK = "<!-- Below: written from deploy/host/protocol.py; a test compares. -->\n"
_PLAIN = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    typing.Any: "anything",
}


@functools.cache  # `inspect` parses the whole module for the source of one class
def sentences(kind):
    """
    Return the description of *kind* and those of its fields, from docstring and comments.
    """
    doc = inspect.cleandoc(kind.__doc__ or "")
    if doc == kind.__name__:
        doc = ""  # `deploy.host.message` filled it in
    head, _, attributes = doc.partition("Attributes:")
    described = {}
    for match in re.finditer(r"^(\w[\w, ]*): ((?:.|\n(?!\w))+)", textwrap.dedent(attributes), re.M):
        text = re.sub(r"\bNone\b", "null", " ".join(match[2].split()))
        described |= dict.fromkeys(match[1].split(", "), text)
    for match in re.finditer(r"^    (\w+):[^#\n]*#\s*(.+)$", inspect.getsource(kind), re.M):
        described.setdefault(match[1], match[2])
    return " ".join(head.split()), described


def words(kind, types):
    """
    Return the name of a field's type; add the dataclasses in it to *types*.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _narrowed(words(args[0], types), args[1:])
    if origin is typing.Union:
        return f"{words(args[0], types)} or null"
    if origin is tuple:
        return f"list of {words(args[0], types)}"
    if origin is dict:
        return f"object of {words(args[1], types)}, by {words(args[0], types)}"
    if dataclasses.is_dataclass(kind):
        types.setdefault(kind.__name__, kind)
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return _PLAIN[kind]


def _narrowed(name, limits):
    for limit in limits:
        if isinstance(limit, Pattern):
            name = limit.meaning
        elif isinstance(limit, OneOf):
            name = " or ".join(f"`{value}`" for value in limit.values)
        elif isinstance(limit, Range):
            name = f"{name}, {limit.low:g} to {limit.high:g}"
    return name


def table(kind, types):
    """
    Return the lines of the table of *kind*'s fields.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    _, described = sentences(kind)
    rows = []
    for field in dataclasses.fields(kind):
        notes = [described[field.name]] if field.name in described else []
        if field.default is not dataclasses.MISSING:
            notes.append(f"Default: {_json(field.default)}.")
        elif field.default_factory is not dataclasses.MISSING:
            notes.append("Default: empty.")
        rows.append(f"| `{field.name}` | {words(hints[field.name], types)} | {' '.join(notes)} |")
    return ["| field | type | |", "| --- | --- | --- |", *rows, ""] if rows else ["No fields.", ""]


def _json(value):
    return {True: "true", False: "false", None: "null", "": '""', (): "empty"}.get(value, value)


def tables():
    """
    Return the generated part of the page.
    """
    types = {}
    lines = ["## Verbs", "", "| verb | lease | |", "| --- | --- | --- |"]
    for verb, request in REQUESTS.items():
        lease = "yes" if request.NEEDS_LEASE else "no"
        lines.append(
            f"| [`{verb}`](#{verb.replace('.', '')}) | {lease} | {sentences(request)[0]} |"
        )
    lines.append("")
    for verb, request in REQUESTS.items():
        result = result_type(request)
        lines += [f"### {verb}", "", f"{sentences(request)[0]}", "", *table(request, types)]
        lines += ["Result:", "", *table(result, types)]
    lines += ["## Types", ""]
    written = set()
    while left := [name for name in types if name not in written]:
        for name in left:
            written.add(name)
            head = sentences(types[name])[0]
            lines += [f"### {name}", "", *([head, ""] if head else []), *table(types[name], types)]
    lines += ["## Kinds of error", ""]
    lines += [f"- `{kind.value}`" for kind in ErrorKind]
    return "\n".join(lines) + "\n"


def page(text):
    """
    Return *text* of the page with its generated part renewed.
    """
    return text[: text.index(MARK) + len(MARK)] + "\n" + tables()


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
