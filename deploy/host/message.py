"""
Frozen dataclasses without generated code, for modules that declare many of them.

`dataclasses` compiles six functions for each class: 0.5 ms a class, a fifth of the processor time
of a call of the host program.  These classes share their functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any


def dataclass(*, frozen: bool) -> Callable[[type], type]:
    """
    Return a class decorator that acts as `dataclasses.dataclass(frozen=True)` does.

    Args:
        frozen: True; there is no other kind.
    """
    assert frozen

    def decorate(cls: type) -> type:
        documentation = cls.__doc__
        cls.__doc__ = "set"  # or `dataclasses` computes a signature, which takes long
        cls = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
        cls.__doc__ = documentation
        for name, function in _METHODS.items():
            setattr(cls, name, function)
        return cls

    return decorate


def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    kind: Any = type(self)
    fields = _fields(kind)
    values = self.__dict__
    if args:
        if len(args) > len(fields):
            raise TypeError(f"{kind.__name__}: {len(args)} arguments for {len(fields)} fields")
        values.update(zip(fields, args))
    for name, value in kwargs.items():
        if name not in fields or name in values:
            raise TypeError(f"{kind.__name__}: unknown or repeated argument {name!r}")
        values[name] = value
    if len(values) < len(fields):
        for name, field in fields.items():
            if name not in values:
                values[name] = _default(self, field)


@cache
def _fields(kind: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(kind)}


def _default(self: Any, field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise TypeError(f"{type(self).__name__}: missing argument {field.name!r}")


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


def _eq(self: Any, other: object) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    return _values(self) == _values(other)


def _hash(self: Any) -> int:
    return hash(_values(self))


def _repr(self: Any) -> str:
    values = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__qualname__}({', '.join(values)})"


def _setattr(self: Any, name: str, value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


_METHODS = {
    "__init__": _init,
    "__eq__": _eq,
    "__hash__": _hash,
    "__repr__": _repr,
    "__setattr__": _setattr,
    "__delattr__": _delattr,
}
