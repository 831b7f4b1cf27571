"""
The documents that carry the protocol: one JSON request, one JSON answer for each run.

    {"schema": 3, "fence": 7, "release": "r1", "actor": "ann@desk", "args": {"slot": "green"}}
    {"ok": true, "schema": 3, "result": {...}}
    {"ok": false, "schema": 3, "error": {"kind": "LeaseLost", "what": ..., "why": ..., "fix": ...}}
"""

from __future__ import annotations

import json
from typing import Any

from deploy.host.codec import Malformed, decode, encode
from deploy.host.message import dataclass
from deploy.host.protocol import (
    REQUESTS,
    SCHEMA,
    Call,
    ErrorKind,
    HostError,
    Request,
    ResultT,
    result_type,
)

_BYTES_PER_VALUE = 32  # an answer of its full size has no more values than bytes / this


def encode_request(request: Request[Any], call: Call) -> bytes:
    """
    Return the document of *request* for the host program's standard input.
    """
    document = {"schema": SCHEMA, **call._asdict(), "args": encode(request)}
    return json.dumps(document).encode()


def parse_request(verb: str, text: str) -> tuple[Request[Any], Call]:
    """
    Return the request of *verb* in *text*; an empty text means no lease and no arguments.

    Raises:
        HostError: The verb is unknown, the schema is another, or the document is not valid.
    """
    document = _parse_object(verb, text)
    schema = document.pop("schema", 1 if document else SCHEMA)
    if schema != SCHEMA:
        raise HostError(
            ErrorKind.SCHEMA,
            f"{verb}: the controller speaks another protocol than this host",
            f"it sent schema {schema!r}; the host program reads {SCHEMA}",
            "inv provision installs the host program of your release of slipway, or use the "
            "newer release",
        )
    if verb not in REQUESTS:
        raise HostError(
            ErrorKind.USAGE,
            f"the host program has no verb {verb!r}",
            f"it has {', '.join(REQUESTS)}",
            "inv provision installs the host program of this version",
        )
    try:
        unknown = sorted(set(document) - {*Call._fields, "args"})
        if unknown:
            raise Malformed(f"unknown key {', '.join(unknown)}")
        request = decode(REQUESTS[verb], document.get("args") or {}, "args")
        return request, _parse_call(document)
    except Malformed as error:
        raise _malformed(verb, str(error)) from None


def encode_result(result: Any) -> str:
    """
    Return the answer that carries *result*, on one line.
    """
    return json.dumps({"ok": True, "schema": SCHEMA, "result": encode(result)})


def encode_error(error: HostError) -> str:
    """
    Return the answer that carries *error*, on one line.
    """
    return json.dumps({"ok": False, "schema": SCHEMA, "error": error.as_json()})


def parse_answer(request: Request[ResultT], text: str) -> ResultT:
    """
    Return the result of *request* in *text*.

    What passes has the types of `protocol`, and no more bytes than the request allows.

    Raises:
        HostError: The host reports an error, or speaks another schema.
        Malformed: The text is not an answer of this protocol.
    """
    # Characters: never more than the bytes that came.
    if len(text) > request.ANSWER_MAX:
        raise Malformed(f"answer: longer than {request.ANSWER_MAX} bytes")
    # Counted before parsing: a small value costs 60 times the bytes of its text.
    if sum(map(text.count, ",:[{")) > request.ANSWER_MAX // _BYTES_PER_VALUE:
        raise Malformed("answer: too many values")
    try:
        document = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except Malformed:
        raise
    except (ValueError, RecursionError):
        raise Malformed(f"answer: not JSON: {text[:200]!r}") from None
    if not isinstance(document, dict):
        raise Malformed(f"answer: should be an object, got {text[:200]!r}")
    schema = document.get("schema", 1)
    if schema != SCHEMA:
        raise HostError(
            ErrorKind.SCHEMA,
            f"{request.VERB}: the host program is of another release of slipway",
            f"it answered with schema {schema!r}; this release reads {SCHEMA}",
            "inv provision installs the host program of this release",
        )
    if document.get("ok") is True and set(document) == {"ok", "schema", "result"}:
        return decode(result_type(type(request)), document["result"], "result")
    if document.get("ok") is False and set(document) == {"ok", "schema", "error"}:
        error = decode(_Error, document["error"], "error")
        raise HostError(error.kind, error.what, error.why, error.fix)
    raise Malformed(f"answer: neither a result nor an error: {text[:200]!r}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise Malformed("answer: a key stands twice in one object")
    return document


def _no_constant(name: str) -> None:
    raise Malformed(f"answer: {name} is no number")


@dataclass(frozen=True)
class _Error:
    kind: ErrorKind
    what: str
    why: str
    fix: str


def _parse_object(verb: str, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise _malformed(verb, f"it is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise _malformed(verb, f"it is a {type(document).__name__}, not an object")
    return document


def _parse_call(document: dict[str, Any]) -> Call:
    fence, release, actor = (document.get(name) for name in Call._fields)
    if fence is not None and (not isinstance(fence, int) or isinstance(fence, bool) or fence < 0):
        raise Malformed(f"fence is {fence!r}")
    for name, value in (("release", release), ("actor", actor)):
        if value is not None and not isinstance(value, str):
            raise Malformed(f"{name} is {value!r}")
    return Call(fence, release, actor or "unknown")


def _malformed(verb: str, why: str) -> HostError:
    return HostError(
        ErrorKind.USAGE,
        f"{verb}: the document on standard input is not valid",
        why,
        "docs/reference/protocol.md lists the fields of each verb",
    )
