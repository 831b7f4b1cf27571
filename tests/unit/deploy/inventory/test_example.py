"""
inventories/example.yml has the keys, defaults and ranges of the schema.
"""

import re
from enum import Enum
from pathlib import Path
from typing import Annotated, get_args, get_origin

import annotated_types
import pytest
import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from deploy.inventory.document import parse_document
from deploy.inventory.load import load_fleet
from deploy.inventory.schema import Fleet, FleetFile
from deploy.units import Ratio, parse_size_bytes

ROOT = Path(__file__).parents[4]
EXAMPLE = ROOT / "inventories/example.yml"
NAMES = ("hosts", "groups", "secrets")  # mappings whose keys are names that the operator gives


def schema_keys(model=FleetFile, above=()):
    """
    Yield the key path and the field of every key; NAME stands for a name that the operator chooses.
    """
    for name, field in model.model_fields.items():
        path = (*above, name)
        yield path, field
        kind = field.annotation
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
            path = (*path, "NAME")
        elif get_origin(kind) is tuple:  # a list of sections
            kind = get_args(kind)[0]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from schema_keys(kind, path)


def example_keys(text):
    """
    Return {key path: comment after the key}; of several names, the one with a comment counts.
    """
    document = parse_document(text)
    assert not document.problems
    comments = {}
    for path, line in document.lines.items():
        named = tuple("NAME" if i == 1 and path[0] in NAMES else p for i, p in enumerate(path))
        if "vars" in path[:-1] or isinstance(path[-1], int):
            continue
        named = tuple(part for part in named if isinstance(part, str))
        _, _, comment = document.source[line - 1].partition(" # ")
        if comment or named not in comments:
            comments[named] = comment
    return {path: comment for path, comment in comments.items() if path[-1] != "NAME"}


def differences(text):
    """
    Yield each difference between *text* and the schema.
    """
    schema, example = dict(schema_keys()), example_keys(text)
    yield from (f"{'.'.join(path)}: not in the example" for path in schema.keys() - example.keys())
    yield from (f"{'.'.join(path)}: not in the schema" for path in example.keys() - schema.keys())
    for path in sorted(schema.keys() & example.keys()):
        yield from (f"{'.'.join(path)}: {d}" for d in key_differences(schema[path], example[path]))


def key_differences(field: FieldInfo, comment: str):
    is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    if is_section and not field.is_required():
        return  # each key of the section has its own default
    if field.is_required():
        if not comment.startswith("required"):
            yield f"is required, and the comment says {comment!r}"
    elif (default := re.match(r"default (\[.*\]|\{\}|[^,]+)", comment)) is None:
        yield f"the comment {comment!r} gives no default"
    else:
        value = yaml.safe_load(default[1])
        value = None if value == "none" else value
        if read(field, value) != field.default:
            yield f"the comment says {value!r}, and the default is {field.default!r}"
    if range_in_comment(comment) != range_in_schema(field):
        yield f"the comment says {range_in_comment(comment)}, the schema {range_in_schema(field)}"


def read(field, value):
    if value is None:
        return None
    kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(kind).validate_python(tuple(value) if isinstance(value, list) else value)


def range_in_comment(comment):
    if found := re.search(r"from (\S+) to (\S+)", comment):
        return "..".join(_plain(limit) for limit in found.groups())
    if found := re.search(r"at least (\d+)", comment):
        return f"{found[1]}.."
    if re.search(r"more than 0(s|B)", comment):
        return ">0"
    if found := re.search(r"one of (.*)", comment):
        return set(found[1].split())
    return None


def _plain(limit):
    return str(parse_size_bytes(limit)) if limit.endswith("B") else limit.removesuffix("s")


def range_in_schema(field: FieldInfo):
    low = high = above = None
    for rule in constraints(field):
        low = getattr(rule, "ge", getattr(rule, "min_length", low))
        high, above = getattr(rule, "le", high), getattr(rule, "gt", above)
    choices = get_args(field.annotation)
    if isinstance(field.annotation, type) and issubclass(field.annotation, Enum):
        choices = tuple(field.annotation)
    if choices and all(isinstance(choice, str | int) for choice in choices):
        return {str(choice) for choice in choices}
    if field.metadata and field.metadata[0] in Ratio.__metadata__:
        return "0%..100%"
    if above is not None:
        return f">{above}"
    if low is not None:
        return f"{low}..{high}" if high is not None else f"{low}.."
    return None


def constraints(field: FieldInfo):
    kinds = [field.annotation, *get_args(field.annotation)]
    inner = [m for kind in kinds if get_origin(kind) is Annotated for m in kind.__metadata__]
    for rule in [*field.metadata, *inner]:
        nested = rule.metadata if isinstance(rule, FieldInfo) else [rule]
        yield from (r for r in nested if isinstance(r, annotated_types.BaseMetadata))


def test_the_example_loads():
    """
    The reference is a valid fleet file.
    """
    assert isinstance(load_fleet("example", root=ROOT), Fleet)


def test_the_example_agrees_with_the_schema():
    """
    It has every key and no other, and each comment has the schema's default and range.
    """
    assert list(differences(EXAMPLE.read_text())) == []


def test_every_key_is_explained():
    """
    Each key has a comment above it at least once.
    """
    lines = EXAMPLE.read_text().splitlines()
    document = parse_document("\n".join(lines))
    explained = set()
    for path, line in document.lines.items():
        if lines[line - 2].lstrip().startswith("#"):
            explained.add(path[-1])
    assert {path[-1] for path, _ in schema_keys()} <= explained


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("port: 22 # default 22", "port: 22 # default 23", "ssh.port: the comment says 23"),
        ("default 22, from 1 to 65535", "default 22, from 1 to 6553", "ssh.port: the comment says"),
        ("keep: 3 # default 3, from 2 to 1000", "keep: 3 # default 3", "release.keep"),
        ("max: 5% # default 5%", "max: 5% # default 4%", "http_request_error_rate.max"),
        ("memory_max: 8GiB # default 8GiB", "memory_max: 8GiB # default 4GiB", "memory_max"),
        ("one of pause revert", "one of pause stop", "action"),
        ("one of 16 32 64", "one of 16 32 48", "page_tokens"),
        ("row: torch-2.13-cu130 # required", "row: x", "row: is required"),
        ("default [1, 50%, 100%]", "default [1, 100%]", "release.waves"),
        ("  keep: 3", "  kept: 3", "release.keep: not in the example"),
        ("  keep: 3", "  kept: 3", "release.kept: not in the schema"),
        ("default ~/.ssh/known_hosts", "default none", "ssh.known_hosts"),
    ],
)
def test_the_comparison_reports_each_kind_of_difference(old, new, difference):
    """
    Negative control: a wrong default, range, choice or key in the example is reported.
    """
    text = EXAMPLE.read_text()
    assert old in text
    assert any(difference in line for line in differences(text.replace(old, new, 1)))
