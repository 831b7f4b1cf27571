"""
What all routes share: request ids, headers, body limit, API tokens, metrics.

Plain ASGI around the whole application, so that its errors pass through it, too.
"""

import logging
import re
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from pydantic import SecretStr

from runtime.contract import (
    DETOKENIZE,
    GENERATE,
    HEALTHZ,
    MAX_BODY_BYTES,
    MODEL,
    MODELS,
    MONITORING_ROUTES,
    PUBLIC_ROUTES,
    REQUEST_ID_HEADER,
    SLOT_HEADER,
    TOKENIZE,
    UNREAD_HEADER,
    VERSION_HEADER,
)
from runtime.server.access import Access
from runtime.server.admission import Refusal
from runtime.server.body import too_large
from runtime.server.caller import CALLER, Caller
from runtime.server.errors import BUG, error_response
from runtime.server.key_watch import KeyWatch
from runtime.server.lifecycle import Life
from runtime.server.metrics import Metrics

log = logging.getLogger("runtime.middleware")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

GUARDED = frozenset({GENERATE, TOKENIZE, DETOKENIZE})  # beside those under /v1/
ROUTES = frozenset({*PUBLIC_ROUTES, MODEL, *MONITORING_ROUTES})
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 << 10
CLOSE = (b"connection", b"close")
UNREAD = UNREAD_HEADER.encode()
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestOutcome:
    """
    The state of a request beside its ASGI scope.

    Attributes:
        code: Its final status, if the status line can't have it: a stream that failed later.
        excuse: Why its 5xx says nothing about this runtime, one of `EXCUSES`.
        caller: Whose request it is.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.caller = Caller()
        self.code: int | None = None
        self.excuse: str | None = None


def outcome_of(scope: Scope) -> RequestOutcome:
    outcome = scope["slipway"]
    assert isinstance(outcome, RequestOutcome)
    return outcome


class Middleware:
    """
    Wraps the application.

    Args:
        tokens: Bearer tokens accepted on all routes but health, metrics and the description of the
            API; without any, and without a file of keys, no token is required.
        keys: Keys that are accepted as well.
        own_token: What the warm-up of this process sends.
        logs_requests: Log a line for each request.
        max_body_bytes: Longest body.
    """

    def __init__(
        self,
        app: App,
        *,
        version: str,
        slot: str,
        tokens: Sequence[SecretStr],
        life: Life,
        metrics: Metrics,
        keys: KeyWatch | None = None,
        own_token: SecretStr | None = None,
        logs_requests: bool = False,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._app, self._life, self._metrics = app, life, metrics
        own_token = own_token or SecretStr(secrets.token_urlsafe(32))
        self._access = Access(tokens, keys or KeyWatch(None), own_token)
        self._logs_requests, self._max_body_bytes = logs_requests, max_body_bytes
        self._headers = [
            (VERSION_HEADER.encode(), version.encode()),
            (SLOT_HEADER.encode(), slot.encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started_s = time.monotonic()
        headers = dict(scope["headers"])
        outcome = scope["slipway"] = RequestOutcome(_request_id(headers))
        exchange = _Exchange(
            lambda: self._extra(outcome), receive, send, has_body=_has_body(headers)
        )
        entered = None
        try:
            if refused := self._refuse(scope, headers, outcome):
                await exchange.refuse(refused, outcome.request_id)
            else:
                entered = CALLER.set(outcome.caller)
                await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("request.raised id=%s route=%s", outcome.request_id, _route(scope))
            if exchange.status is None:
                await exchange.refuse(BUG, outcome.request_id)
            outcome.code, outcome.excuse = 500, None
        finally:
            if entered is not None:
                CALLER.reset(entered)
            self._end(scope, outcome, exchange.status, time.monotonic() - started_s)

    def _end(
        self, scope: Scope, outcome: RequestOutcome, status: int | None, took_s: float
    ) -> None:
        code, route, caller = outcome.code or status or 499, _route(scope), outcome.caller
        caller.settle()
        self._metrics.answered(route, code, took_s, excuse=outcome.excuse)
        if caller.name:
            self._metrics.used(caller.name, code, caller.usage)
        if self._logs_requests:
            usage = caller.usage
            log.info(
                "request.answered id=%s route=%s code=%d took_s=%.3f key=%s prompt_tokens=%d "
                "cached_tokens=%d generated_tokens=%d",
                *(outcome.request_id, route, code, took_s, caller.name or "-"),
                *(usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens),
            )

    def _extra(self, outcome: RequestOutcome) -> list[tuple[bytes, bytes]]:
        extra = [*self._headers, (REQUEST_ID_HEADER.encode(), outcome.request_id.encode())]
        if (limits := outcome.caller.limits) is not None:
            extra += limits.headers(time.monotonic())
        # Clients with open connections reach the other slot sooner.
        return [*extra, CLOSE] if self._life.phase.is_leaving else extra

    def _refuse(
        self, scope: Scope, headers: dict[bytes, bytes], outcome: RequestOutcome
    ) -> Refusal | None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if len(scope["headers"]) > MAX_HEADERS or size > MAX_HEADER_BYTES:
            message = f"a request may have {MAX_HEADERS} headers with {MAX_HEADER_BYTES} bytes"
            return Refusal(431, "headers_too_large", message)
        if int(headers.get(b"content-length", b"0")) > self._max_body_bytes:
            return too_large(self._max_body_bytes)
        if _is_guarded(scope):
            found = self._access.identify(headers)
            if isinstance(found, Refusal):
                return found
            outcome.caller = found
        return None


class _Exchange:
    """
    One request and its response: adds headers, and closes the connection of an unread body.
    """

    def __init__(
        self,
        extra: Callable[[], list[tuple[bytes, bytes]]],
        receive: Receive,
        send: Send,
        *,
        has_body: bool,
    ) -> None:
        self.status: int | None = None
        self._extra, self._receive, self._send = extra, receive, send
        self._is_whole = not has_body

    async def receive(self) -> Message:
        message = await self._receive()
        self._is_whole = self._is_whole or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = dict([*message.get("headers", ()), *self._extra()])
            code = given.pop(UNREAD, b"refused")
            if not self._is_whole:
                # An answer before the whole request ends the connection: nothing reads the rest.
                given |= {CLOSE[0]: CLOSE[1], UNREAD: code}
            headers = list(given.items())
            message["headers"] = headers
        await self._send(message)

    async def refuse(self, refused: Refusal, request_id: str) -> None:
        status, headers, body = error_response(refused, request_id)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _route(scope: Scope) -> str:
    """
    Return the path for metrics and logs, which have no other text of a client.
    """
    path: str = scope["path"]
    if path.startswith(f"{MODELS}/"):
        return MODEL
    return path if path in ROUTES else "other"


def _is_guarded(scope: Scope) -> bool:
    if scope["method"] == "OPTIONS":
        return False  # a CORS preflight carries no token
    path: str = scope["path"]
    is_deep = path == HEALTHZ and scope["query_string"] != b""
    return is_deep or path in GUARDED or path.startswith("/v1/")


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(REQUEST_ID_HEADER.encode(), b"").decode("latin-1")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
