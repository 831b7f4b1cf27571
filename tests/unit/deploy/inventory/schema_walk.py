"""
Every key of the fleet file's schema, found in the pydantic models: a new key is found by itself.
"""

import copy
import itertools
from pathlib import Path
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from deploy.inventory.schema import FleetFile

EXAMPLE = yaml.safe_load(
    (Path(__file__).parents[4] / "inventories/example.yml").read_text(encoding="utf-8")
)
NAME = "NAME"  # stands for a name that the operator chooses


def leaves(kind=FleetFile, above=()):
    """
    Yield the path of each key that has a value of its own; an entry of a list ends in 0.
    """
    kind = _plain(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield from leaves(field.annotation, (*above, name))
    elif get_origin(kind) is dict:
        yield from leaves(get_args(kind)[1], (*above, NAME))
    elif get_origin(kind) is tuple:
        yield from leaves(get_args(kind)[0], (*above, 0))
    else:
        yield above


def mappings(kind=FleetFile, above=()):
    """
    Yield the path of each mapping whose keys are names that the operator chooses.
    """
    kind = _plain(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield from mappings(field.annotation, (*above, name))
    elif get_origin(kind) is dict:
        yield above
        yield from mappings(get_args(kind)[1], (*above, NAME))
    elif get_origin(kind) is tuple:
        yield from mappings(get_args(kind)[0], (*above, 0))


def _plain(kind):
    while get_origin(kind) in (Annotated, Union, UnionType):
        inner = [k for k in get_args(kind) if k is not type(None)]
        if get_origin(kind) is not Annotated and len(inner) > 1:
            return str  # a scalar of several types
        kind = inner[0]
    return kind


def concrete(path, data=EXAMPLE):
    """
    Return *path* with the first name of the example that has the key.
    """
    if not path:
        return ()
    head, rest = path[0], path[1:]
    if head != NAME:
        inner = data[head] if _has(data, head) else None
        return (head, *concrete(rest, inner))
    names = [name for name, value in data.items() if all(_reaches(value, p) for p in [rest])]
    name = names[0] if names else next(iter(data))
    return (name, *concrete(rest, data[name]))


def _reaches(value, path):
    for part in path:
        if part == NAME:
            return isinstance(value, dict) and bool(value)
        if not _has(value, part):
            return False
        value = value[part]
    return True


def _has(data, part):
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def with_value(data, path, value):
    """
    Return a copy of *data* with *value* at *path*.
    """
    data = copy.deepcopy(data)
    put(data, path, value)
    return data


def put(data, path, value):
    for part, following in itertools.pairwise(path):
        if isinstance(data, dict):
            data = data.setdefault(part, [] if following == 0 else {})
        else:
            if part == len(data):
                data.append({})
            data = data[part]
    if isinstance(data, list) and path[-1] == len(data):
        data.append(value)
    else:
        data[path[-1]] = value
