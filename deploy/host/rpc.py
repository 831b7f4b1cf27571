"""
The document that a verb is given, the line that it answers, and the error that it raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from deploy.host.layout import SLOTS

_DIGEST = re.compile(r"[0-9a-f]{64}")


class HostError(Exception):
    """
    Something that the caller is told.

    Args:
        kind: Class of `deploy.errors` that the caller raises in its place.
        what: What failed, named.
        why: What was observed, in the words of the system that said it.
        fix: What the operator does next.
    """

    def __init__(self, kind: str, what: str, why: str, fix: str) -> None:
        super().__init__(what)
        self.kind, self.what, self.why, self.fix = kind, what, why, fix

    def as_json(self) -> dict[str, str]:
        return {"kind": self.kind, "what": self.what, "why": self.why, "fix": self.fix}


class Args:
    """
    The arguments of a verb, taken one by one; `done` refuses what nobody took.

    Every method raises a UsageError that names the argument, what was found and what is allowed.
    """

    def __init__(self, verb: str, values: Mapping[str, Any]) -> None:
        self._verb = verb
        self._left = dict(values)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._take(name, default)
        if isinstance(value, str):
            return value
        raise self._refused(name, "text", value)

    def boolean(self, name: str, default: bool | None = None) -> bool:
        value = self._take(name, default)
        if isinstance(value, bool):
            return value
        raise self._refused(name, "true or false", value)

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self._take(name, default)
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise self._refused(name, f"a whole number from {low} to {high}", value)

    def seconds(self, name: str, default: float | None = None) -> float:
        value = self._take(name, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
            return float(value)
        raise self._refused(name, "a number of seconds above 0", value)

    def mapping(self, name: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
        value = self._take(name, default)
        if isinstance(value, dict):
            return value
        raise self._refused(name, "an object", value)

    def sequence(self, name: str) -> list[Any]:
        value = self._take(name, None)
        if isinstance(value, list):
            return value
        raise self._refused(name, "a list", value)

    def digest(self, name: str) -> str:
        value = self._take(name, None)
        if isinstance(value, str) and _DIGEST.fullmatch(value):
            return value
        raise self._refused(name, "64 hexadecimal digits", value)

    def slot(self) -> str:
        value = self._take("slot", None)
        if isinstance(value, str) and value in SLOTS:
            return value
        raise self._refused("slot", " or ".join(SLOTS), value)

    def done(self) -> None:
        """
        Refuse arguments that the verb does not have.
        """
        if self._left:
            unknown = ", ".join(sorted(self._left))
            raise HostError(
                "UsageError",
                f"{self._verb}: unknown argument {unknown}",
                "the host tool of this host does not know it",
                "inv provision puts the host tool of this version there",
            )

    def _take(self, name: str, default: Any) -> Any:
        return self._left.pop(name, default)

    def _refused(self, name: str, wanted: str, found: object) -> HostError:
        return HostError(
            "UsageError",
            f"{self._verb}: {name} should be {wanted}",
            f"got {found!r}",
            "give the argument as docs/reference/journal.md lists it",
        )


class Request(NamedTuple):
    """
    One call.

    Attributes:
        fence: Number of the lease that the caller holds; None: it holds none.
        release: Release that the call belongs to.
        actor: Who calls, for the journal.
    """

    verb: str
    fence: int | None
    release: str | None
    actor: str
    args: Args


def parse_request(verb: str, text: str) -> Request:
    """
    Read the document of *verb* from *text*; an empty one means no lease and no arguments.
    """
    try:
        found = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise _malformed(verb, f"it is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise _malformed(verb, f"it is a {type(found).__name__}, not an object")
    unknown = set(found) - {"fence", "release", "actor", "args"}
    if unknown:
        raise _malformed(verb, f"unknown key {', '.join(sorted(unknown))}")
    args = found.get("args") or {}
    for key, wanted in (("fence", int), ("release", str), ("actor", str)):
        if found.get(key) is not None and not isinstance(found[key], wanted):
            raise _malformed(verb, f"{key} is {found[key]!r}")
    if not isinstance(args, dict):
        raise _malformed(verb, f"args is {args!r}")
    actor = found.get("actor") or "unknown"
    return Request(verb, found.get("fence"), found.get("release"), actor, Args(verb, args))


def answer(result: Mapping[str, Any]) -> str:
    """
    Return the line that says that a verb did what it was asked.
    """
    return json.dumps({"ok": True, "result": result})


def refusal(error: HostError) -> str:
    """
    Return the line that says why a verb did not.
    """
    return json.dumps({"ok": False, "error": error.as_json()})


def one_line(text: str, last: int = 4) -> str:
    """
    Return the *last* lines of *text* that say something, on one line.
    """
    lines: Iterable[str] = (line.strip() for line in text.splitlines())
    return " / ".join([line for line in lines if line][-last:])


def _malformed(verb: str, why: str) -> HostError:
    return HostError(
        "UsageError",
        f"{verb}: the document on standard input can't be read",
        why,
        'send {"fence": 7, "release": "r1", "actor": "me", "args": {}}',
    )
