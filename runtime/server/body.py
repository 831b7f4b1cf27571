"""
Request bodies: received under a deadline, a least rate and a total, then parsed.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from runtime.contract import MAX_BODY_BYTES, UPLOAD_TIMEOUT_S
from runtime.server.admission import Refusal
from runtime.server.generation import Failed

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Model = TypeVar("Model", bound=BaseModel)

GRACE_S = 5.0  # of an upload, before the least rate counts
LEAST_BYTES_PER_S = 8 << 10
SMALL_BODY_BYTES = 64 << 10
MAX_BUFFERED_BYTES = 64 << 20  # of all uploads together
RESERVED_BYTES = 16 << 20  # of them for bodies that are small
JSON_BYTES_PER_BYTE = 6  # "\\u0061" is one byte of a prompt

# A body is an object of at most ten keys with flat values.  Everything but its strings:
MAX_STRUCTURE_BYTES = 4096
MAX_STRINGS = 64
MAX_NAMED_CHARS = 64  # of a key that an error names

CLIENT_GONE = Refusal(499, "client_closed_request", "the client went away")


class UploadBudget:
    """
    The memory that all uploads may hold together.

    Attributes:
        held: Bytes that they hold now.
        max_body_bytes: Of one body.
    """

    def __init__(self) -> None:
        self.held = 0
        self.max_body_bytes = MAX_BODY_BYTES

    def fit_context(self, context_tokens: int, longest_token_bytes: int | None) -> None:
        """
        Lower the limit of one body to what the longest prompt can need.
        """
        if longest_token_bytes is not None:
            prompt = context_tokens * longest_token_bytes
            fitting = prompt * JSON_BYTES_PER_BYTE + SMALL_BODY_BYTES
            self.max_body_bytes = min(MAX_BODY_BYTES, fitting)

    @contextmanager
    def upload(self) -> "Iterator[Upload]":
        """
        Yield a new upload; afterwards its bytes no longer count.
        """
        upload = Upload(self)
        try:
            yield upload
        finally:
            self.held -= upload.size


class Upload:
    """
    One body.

    Attributes:
        size: Bytes so far.
    """

    def __init__(self, budget: UploadBudget) -> None:
        self.size = 0
        self._budget = budget

    async def receive(self, receive: Receive, headers: Mapping[str, str]) -> bytearray:
        """
        Return the whole body.

        Raises:
            Failed: 408 too slow, 413 too large, 415 not JSON as it is, 499 the client left,
                429 all uploads together are too large.
        """
        _check_headers(headers)
        if int(headers.get("content-length", 0)) > self._budget.max_body_bytes:
            raise Failed(too_large(self._budget.max_body_bytes))
        body = bytearray()
        started_s = asyncio.get_running_loop().time()
        while True:
            rate_s = GRACE_S + len(body) / LEAST_BYTES_PER_S
            try:
                async with asyncio.timeout_at(started_s + min(rate_s, UPLOAD_TIMEOUT_S)):
                    message = await receive()
            except TimeoutError:
                raise Failed(_too_slow()) from None
            if message["type"] != "http.request":
                raise Failed(CLIENT_GONE)
            body += self._count(message.get("body", b""))
            if not message.get("more_body", False):
                return body

    def _count(self, part: bytes) -> bytes:
        budget = self._budget
        self.size += len(part)
        budget.held += len(part)
        if self.size > budget.max_body_bytes:
            raise Failed(too_large(budget.max_body_bytes))
        is_small = self.size <= SMALL_BODY_BYTES
        if budget.held > MAX_BUFFERED_BYTES - (0 if is_small else RESERVED_BYTES):
            message = "the requests that are being received have too many bytes together"
            raise Failed(Refusal(429, "uploads_full", message, retry_after_s=1))
        return part


def parse(body: bytearray, kind: type[Model]) -> Model:
    """
    Return the *kind* of a body.

    Raises:
        Failed: 400 not JSON, 422 not a *kind*.  The message has no values: it is logged, and
            prompts must not be.
    """
    _check_shape(body)
    try:
        document = json.loads(
            body.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except UnicodeDecodeError:
        raise Failed(Refusal(400, "invalid_json", "the body is not UTF-8")) from None
    except (ValueError, RecursionError):
        raise Failed(Refusal(400, "invalid_json", "the body is not JSON")) from None
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise Failed(_invalid(error)) from None


def too_large(most: int) -> Refusal:
    return Refusal(413, "body_too_large", f"a body may have {most} bytes")


def _too_slow() -> Refusal:
    message = (
        f"the body took longer than {UPLOAD_TIMEOUT_S:.0f} s, or came slower than "
        f"{LEAST_BYTES_PER_S} bytes a second"
    )
    return Refusal(408, "upload_too_slow", message)


def _check_headers(headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Failed(Refusal(415, "unsupported_encoding", "send the body without content-encoding"))
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )
    if not is_json:
        raise Failed(_not_an_object())


def _check_shape(body: bytearray) -> None:
    """
    Refuse what has more values than any body, before it is built: 8 MiB of "[]," are a GiB then.

    Without its escapes, a quotation mark begins or ends a string.  A backslash outside of strings
    is not JSON: the parser stops there, before what this may have counted wrongly.
    """
    plain = bytes(body).replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = plain.split(b'"', 2 * MAX_STRINGS)
    if len(parts) > 2 * MAX_STRINGS or sum(map(len, parts[::2])) > MAX_STRUCTURE_BYTES:
        message = "the body has more than the keys of a request, or too much white space"
        raise Failed(Refusal(422, "invalid_request", message))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            field = key[:MAX_NAMED_CHARS]
            raise Failed(Refusal(422, "invalid_request", "a key is given twice", param=field))
        document[key] = value
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _not_an_object() -> Refusal:
    message = "send a JSON object, with content-type: application/json"
    return Refusal(422, "invalid_request", message)


def _invalid(error: ValidationError) -> Refusal:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if any(not problem["loc"] for problem in problems):
        return _not_an_object()
    fields = [_field(problem["loc"]) for problem in problems]
    message = "; ".join(
        f"{field}: {problem['msg']}" for field, problem in zip(fields, problems, strict=True)
    )
    return Refusal(422, "invalid_request", message, param=fields[0])


def _field(location: Sequence[str | int]) -> str:
    """
    Return the path of a field as OpenAI writes it, such as `messages[0].content`.
    """
    first, *others = location
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in others]
    return f"{first}{''.join(parts)}"[:MAX_NAMED_CHARS]
