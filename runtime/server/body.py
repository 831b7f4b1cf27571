"""
Request bodies: received under a deadline, a least rate and a total, then parsed.
"""

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

from pydantic import ValidationError

from runtime.contract import MAX_BODY_BYTES, UPLOAD_TIMEOUT_S
from runtime.server.admission import Refusal
from runtime.server.errors import Failed
from runtime.server.schemas import Body

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Model = TypeVar("Model", bound=Body)

DRAIN_S = 5.0  # for the rest of a body that is on its way when the runtime begins to leave
GRACE_S = 5.0  # of an upload, before the least rate counts
LEAST_BYTES_PER_S = 8 << 10
SMALL_BODY_BYTES = 64 << 10
MAX_BUFFERED_BYTES = 64 << 20  # of all uploads together
RESERVED_BYTES = 16 << 20  # of them for bodies that are small
JSON_BYTES_PER_BYTE = 6  # "\\u0061" is one byte of a prompt

SHAPE_BYTES = 1 << 20  # of a body that are counted at once
MAX_KEYS = 256  # of one object: pydantic builds an error for each that is unknown
MAX_NAMED_CHARS = 64  # of a key that an error names
MAX_PROBLEMS = 5  # that an error names
# What pydantic adds to the place of a value of several types: which of them it tried.
TRIED_TYPE = re.compile(r"str|int|list\[.*|constrained-.*|function-.*")

NOT_AN_OBJECT = "send a JSON object, with content-type: application/json"
LEAVING = Refusal(
    503, "shutting_down", "the runtime shut down before the whole request had come", retry_after_s=1
)
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
        self._uploads: set[Upload] = set()
        self._reading = asyncio.Lock()

    def fit_context(self, context_tokens: int, longest_token_bytes: int | None) -> None:
        """
        Lower the limit of one body to what the longest prompt can need.
        """
        if longest_token_bytes is not None:
            prompt = context_tokens * longest_token_bytes
            fitting = prompt * JSON_BYTES_PER_BYTE + SMALL_BODY_BYTES
            self.max_body_bytes = min(self.max_body_bytes, fitting)

    @contextmanager
    def upload(self) -> "Iterator[Upload]":
        """
        Yield a new upload; afterwards its bytes no longer count.
        """
        upload = Upload(self)
        self._uploads.add(upload)
        try:
            yield upload
        finally:
            self._uploads.remove(upload)
            self.held -= upload.size

    def reading(self, body: bytes | bytearray) -> AbstractAsyncContextManager[object]:
        """
        Return a context for the steps of reading *body*: of large ones, one at a time.

        Each step takes the loop some ten milliseconds, and of several bodies all would come in one
        turn.
        """
        return self._reading if len(body) > SMALL_BODY_BYTES else nullcontext()

    def end_in(self, seconds: float) -> None:
        """
        Refuse the uploads that are under way and not whole after *seconds*: a drain waits for them.
        """
        end_s = asyncio.get_running_loop().time() + seconds
        for upload in self._uploads:
            upload.end_by(end_s)


class Upload:
    """
    One body.

    Attributes:
        size: Bytes so far.
    """

    def __init__(self, budget: UploadBudget) -> None:
        self.size = 0
        self._budget = budget
        self._end_s = math.inf
        self._timeout: asyncio.Timeout | None = None  # while it waits

    def end_by(self, end_s: float) -> None:
        """
        Refuse it if it is not whole at *end_s* of the loop's clock.
        """
        self._end_s = end_s
        if self._timeout is not None and end_s < (self._timeout.when() or end_s):
            self._timeout.reschedule(end_s)

    async def receive(self, receive: Receive, headers: Mapping[str, str]) -> bytearray:
        """
        Return the whole body.

        Raises:
            Failed: 408 too slow, 413 too large, 415 not JSON as it is, 499 the client left,
                429 all uploads together are too large, 503 the runtime leaves.
        """
        _check_headers(headers)
        if int(headers.get("content-length", 0)) > self._budget.max_body_bytes:
            raise Failed(too_large(self._budget.max_body_bytes))
        body = bytearray()
        started_s = asyncio.get_running_loop().time()
        while True:
            rate_s = GRACE_S + len(body) / LEAST_BYTES_PER_S
            message = await self._next(receive, started_s + min(rate_s, UPLOAD_TIMEOUT_S))
            if message["type"] != "http.request":
                raise Failed(CLIENT_GONE)
            body += self._count(message.get("body", b""))
            if not message.get("more_body", False):
                return body

    async def _next(self, receive: Receive, late_s: float) -> MutableMapping[str, Any]:
        try:
            async with asyncio.timeout_at(min(late_s, self._end_s)) as self._timeout:
                return await receive()
        except TimeoutError:
            raise Failed(_too_slow() if late_s < self._end_s else LEAVING) from None
        finally:
            self._timeout = None

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


async def parse(body: bytearray, kind: type[Model]) -> Model:
    """
    Return the *kind* of a body.

    The loop goes on between its steps: one of 8 MiB takes 0.1 s in all.

    Raises:
        Failed: 400 not JSON, the status of the *kind* if it is JSON and no such body.  The message
            has no values: it is logged, and prompts must not be.
    """
    shape = _Shape(kind)
    for start in range(0, len(body), SHAPE_BYTES):
        shape.add(bytes(body[start : start + SHAPE_BYTES]))
        await asyncio.sleep(0)
    try:
        text = body.decode()
        await asyncio.sleep(0)
        document = json.loads(
            text, object_pairs_hook=partial(_object, kind), parse_constant=_no_constant
        )
    except UnicodeDecodeError:
        raise Failed(Refusal(400, "invalid_json", "the body is not UTF-8")) from None
    except RecursionError:
        raise Failed(Refusal(400, "invalid_json", "the body is nested too deeply")) from None
    except ValueError:
        raise Failed(Refusal(400, "invalid_json", "the body is not JSON")) from None
    await asyncio.sleep(0)
    if not isinstance(document, dict):
        raise _invalid(kind, NOT_AN_OBJECT)
    if unknown := [key for key in document if key not in kind.model_fields]:
        raise _problems(kind, [((key,), "Extra inputs are not permitted") for key in unknown])
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise _problems(kind, [(one["loc"], one["msg"]) for one in found]) from None


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
        raise Failed(Refusal(422, "invalid_request", NOT_AN_OBJECT))


class _Shape:
    """
    Refuses what has more values than any body of the *kind*, before it is built.

    Without its escapes, a quotation mark begins or ends a string.  A backslash outside of strings
    is not JSON: the parser stops there, before what this may have counted wrongly.
    """

    def __init__(self, kind: type[Body]) -> None:
        self._kind = kind
        self._quotes = self._structure_bytes = self._containers = self._escapes = 0
        self._held = b""  # a backslash, whose other half comes next

    def add(self, part: bytes) -> None:
        """
        Count the next *part* of the body.

        Raises:
            Failed: It is too much.
        """
        bounds, part = self._kind.BOUNDS, self._held + part
        slashes = len(part) - len(part.rstrip(b"\\"))
        self._held = part[len(part) - slashes % 2 :]
        part = part[: len(part) - slashes % 2]
        plain = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        self._escapes += (len(part) - len(plain)) // 2 + plain.count(b"\\")
        pieces = plain.split(b'"', 2 * bounds.strings)
        structure = b"".join(pieces[self._quotes % 2 :: 2])
        self._quotes += len(pieces) - 1
        self._structure_bytes += len(structure)
        self._containers += structure.count(b"[") + structure.count(b"{")
        if (
            self._quotes >= 2 * bounds.strings
            or self._structure_bytes > bounds.structure_bytes
            or self._containers > bounds.containers
            or self._escapes > bounds.escapes
        ):
            words = "the body has more than a request may have, or too much white space or escapes"
            raise _invalid(self._kind, words)


def _object(kind: type[Body], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise _invalid(kind, f"an object has more than {MAX_KEYS} keys")
    document = dict(pairs)
    if len(document) == len(pairs):
        return document
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise _invalid(kind, "a key is given twice", key[:MAX_NAMED_CHARS])
        seen.add(key)
    raise AssertionError("some key repeats")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _problems(kind: type[Body], found: Sequence[tuple[Sequence[str | int], str]]) -> Failed:
    named = [(_field(location), words) for location, words in found[:MAX_PROBLEMS]]
    return _invalid(kind, "; ".join(f"{field}: {words}" for field, words in named), named[0][0])


def _invalid(kind: type[Body], message: str, param: str | None = None) -> Failed:
    return Failed(Refusal(kind.INVALID, "invalid_request", message, param=param))


def _field(location: Sequence[str | int]) -> str:
    """
    Return the path of a field as OpenAI writes it, such as `messages[0].content`.
    """
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not path or not TRIED_TYPE.fullmatch(part):
            path += f".{part}" if path else part
    return path[:MAX_NAMED_CHARS]
