"""
What all routes share: request ids, headers, body limit, API tokens, metrics.

Plain ASGI around the whole application, so that its errors pass through it, too.
"""

import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from hmac import compare_digest
from typing import Any

from pydantic import SecretStr
from starlette.exceptions import HTTPException

from runtime.contract import (
    GENERATE_ROUTES,
    HEALTHZ,
    LIVEZ,
    METRICS,
    READYZ,
    REQUEST_ID_HEADER,
    SLOT_HEADER,
    VERSION_HEADER,
)
from runtime.server.admission import Refusal
from runtime.server.lifecycle import Life
from runtime.server.metrics import Metrics
from runtime.server.schemas import error_document

log = logging.getLogger("runtime.middleware")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MODELS = "/v1/models"
ROUTES = frozenset({*GENERATE_ROUTES, LIVEZ, READYZ, HEALTHZ, METRICS, MODELS})
MAX_BODY_BYTES = 8 << 20
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Statuses of requests that may succeed if they are sent again unchanged.
RETRY_SAFE = frozenset({429, 499, 500, 503, 504})

BUG = Refusal(500, "internal", "internal error; the runtime's log has the details under this id")


class RequestOutcome:
    """
    The state of a request beside its ASGI scope.

    Attributes:
        code: Its final status, if the status line can't have it: a stream that failed later.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.code: int | None = None


def outcome_of(scope: Scope) -> RequestOutcome:
    outcome = scope["slipway"]
    assert isinstance(outcome, RequestOutcome)
    return outcome


class Middleware:
    """
    Wraps the application.

    Args:
        tokens: Bearer tokens accepted on /generate and /v1 routes; empty: no token is required.
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
    ) -> None:
        self._app, self._life, self._metrics = app, life, metrics
        self._tokens = [token.get_secret_value().encode() for token in tokens]
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
        exchange = _Exchange(self._extra(outcome), receive, send)
        try:
            if refused := self._refuse(scope, headers):
                await exchange.refuse(refused, outcome.request_id)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("request.raised id=%s route=%s", outcome.request_id, scope["path"])
            if exchange.status is None:
                await exchange.refuse(BUG, outcome.request_id)
            outcome.code = 500
        finally:
            code = outcome.code or exchange.status or 499
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self._metrics.answered(route, code, time.monotonic() - started_s)

    def _extra(self, outcome: RequestOutcome) -> list[tuple[bytes, bytes]]:
        extra = [*self._headers, (REQUEST_ID_HEADER.encode(), outcome.request_id.encode())]
        # Clients with open connections reach the other slot sooner.
        return [*extra, (b"connection", b"close")] if self._life.phase.is_leaving else extra

    def _refuse(self, scope: Scope, headers: dict[bytes, bytes]) -> Refusal | None:
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return _too_large()
        if self._tokens and _is_guarded(scope):
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            known = [compare_digest(given.strip(), token) for token in self._tokens]
            if kind.lower() != b"bearer" or not any(known):
                return Refusal(401, "unauthorized", "send Authorization: Bearer TOKEN")
        return None


class _Exchange:
    """
    One request and its response: limits the body, adds headers.
    """

    def __init__(self, extra: list[tuple[bytes, bytes]], receive: Receive, send: Send) -> None:
        self.status: int | None = None
        self._extra, self._receive, self._send = extra, receive, send
        self._body_bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._body_bytes += len(message.get("body", b""))
        if self._body_bytes > MAX_BODY_BYTES:
            # Of this type: FastAPI turns any other error of reading a body into a 400.
            raise HTTPException(413, _too_large().message)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._extra]
        await self._send(message)

    async def refuse(self, refused: Refusal, request_id: str) -> None:
        status, headers, body = error_response(refused, request_id)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def error_response(refused: Refusal, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """
    Return status, headers and body of an error.
    """
    body = error_body(refused, request_id)
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    if refused.retry_after_s is not None:
        headers["retry-after"] = str(refused.retry_after_s)
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return refused.status, headers, body


def error_body(refused: Refusal, request_id: str, *, started: bool = False) -> bytes:
    """
    Args:
        started: Whether part of the answer was sent; a retry would then repeat it.
    """
    retry_safe = refused.status in RETRY_SAFE and not started
    document = error_document(refused.code, refused.message, request_id, retry_safe=retry_safe)
    return json.dumps(document).encode()


def _too_large() -> Refusal:
    return Refusal(413, "body_too_large", f"a body may have {MAX_BODY_BYTES} bytes")


def _is_guarded(scope: Scope) -> bool:
    if scope["method"] == "OPTIONS":
        return False  # a CORS preflight carries no token
    path: str = scope["path"]
    is_deep = path == HEALTHZ and scope["query_string"] != b""
    return is_deep or path == "/generate" or path.startswith("/v1/")


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(REQUEST_ID_HEADER.encode(), b"").decode("latin-1")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
