"""
The routes: translate, submit, answer.  Never imports torch.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from runtime.contract import (
    HEALTHZ,
    LIVEZ,
    METRICS,
    READYZ,
    REQUEST_ID_HEADER,
    SLOT_HEADER,
    VERSION_HEADER,
)
from runtime.engines.base.sampling import SamplingParams
from runtime.server.admission import Refusal
from runtime.server.config import Settings
from runtime.server.generation import Failed, GenerationRequest, Generator, TextDelta
from runtime.server.lifecycle import Life, Phase
from runtime.server.metrics import CONTENT_TYPE, Metrics
from runtime.server.middleware import (
    BUG,
    MODELS,
    App,
    Middleware,
    RequestOutcome,
    error_body,
    error_response,
    outcome_of,
)
from runtime.server.schemas import CompletionBody, GenerateBody

CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
}
CLIENT_GONE = Refusal(499, "client_closed_request", "the client went away")
WHY_NOT = {
    Phase.LOADING: "the model is being loaded",
    Phase.WARMING: "the model is warming up",
    Phase.DRAINING: "the runtime is draining",
    Phase.STOPPED: "the runtime is stopping",
    Phase.FAILED: "the engine is gone",
}


@dataclass(slots=True)
class Serving:
    """
    State that the routes share.

    Attributes:
        generator: None until the model is loaded.
        check: Request of the deep health check.
        since: When the model was loaded, seconds of the Unix epoch.
    """

    settings: Settings
    life: Life
    metrics: Metrics
    check: GenerationRequest
    generator: Generator | None = None
    since: int = 0


# Turns a delta into the document of one answer or event.
Formatter = Callable[[TextDelta, str], dict[str, Any]]


def create_app(serving: Serving) -> App:
    """
    Return the ASGI application.
    """
    config = serving.settings.config
    app = FastAPI(openapi_url=None)
    _add_health(app, serving)
    _add_generation(app, serving)
    app.add_exception_handler(Failed, _on_failed)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", REQUEST_ID_HEADER],
            expose_headers=[VERSION_HEADER, SLOT_HEADER, REQUEST_ID_HEADER],
        )
    return Middleware(
        app,
        version=config.version,
        slot=serving.settings.slot,
        tokens=serving.settings.api_tokens,
        life=serving.life,
        metrics=serving.metrics,
    )


def _add_health(app: FastAPI, serving: Serving) -> None:
    config = serving.settings.config

    @app.get(LIVEZ)
    async def livez() -> Response:
        return _json({"alive": True})

    @app.get(READYZ)
    async def readyz() -> Response:
        phase = serving.life.phase
        found = {"ready": phase.is_ready, "phase": phase, "version": config.version}
        if phase.is_ready:
            return _json(found)
        return _json(found | {"reason": WHY_NOT[phase]}, status=503)

    @app.get(HEALTHZ)
    async def healthz(deep: bool = False) -> Response:
        found: dict[str, Any] = {"phase": serving.life.phase, "version": config.version}
        if deep:
            delta = await _generator(serving, Phase.WARMING).whole(serving.check)
            if not delta.tokens:
                raise Failed(Refusal(500, "no_answer", "the model answered with nothing"))
            found |= {"tokens": delta.tokens, "finish_reason": str(delta.finish_reason)}
        return _json(found)

    @app.get(METRICS)
    async def metrics() -> Response:
        return Response(serving.metrics.render(), media_type=CONTENT_TYPE)


def _add_generation(app: FastAPI, serving: Serving) -> None:
    config = serving.settings.config

    @app.post("/generate")
    async def generate(body: GenerateBody, request: Request) -> Response:
        def shape(delta: TextDelta, id: str) -> dict[str, Any]:
            found: dict[str, Any] = {"id": id, "version": config.version, "text": delta.text}
            if delta.finish_reason is None:
                return found
            return found | {
                "tokens": delta.tokens,
                "prompt_tokens": delta.prompt_tokens,
                "finish_reason": delta.finish_reason,
            }

        return await _answer(serving, body, request, shape)

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        if body.model not in (None, config.model_name):
            message = f"this runtime serves {config.model_name}, not {body.model}"
            raise Failed(Refusal(404, "model_not_found", message))
        created = int(time.time())

        def shape(delta: TextDelta, id: str) -> dict[str, Any]:
            choice = {
                "index": 0,
                "text": delta.text,
                "logprobs": None,
                "finish_reason": delta.finish_reason,
            }
            found: dict[str, Any] = {
                "id": f"cmpl-{id}",
                "object": "text_completion",
                "created": created,
                "model": config.model_name,
                "version": config.version,
                "choices": [choice],
            }
            if delta.finish_reason is None:
                return found
            return found | {
                "usage": {
                    "prompt_tokens": delta.prompt_tokens,
                    "completion_tokens": delta.tokens,
                    "total_tokens": delta.prompt_tokens + delta.tokens,
                }
            }

        return await _answer(serving, body, request, shape)

    @app.get(MODELS)
    async def models() -> Response:
        model = {
            "id": config.model_name,
            "object": "model",
            "created": serving.since,
            "owned_by": "slipway",
            "version": config.version,
        }
        return _json({"object": "list", "data": [model]})


async def _answer(
    serving: Serving, body: GenerateBody | CompletionBody, request: Request, shape: Formatter
) -> Response:
    params = SamplingParams(body.max_tokens, body.temperature, body.top_p, body.seed)
    asked = GenerationRequest(body.prompt, params, tuple(body.stop), body.timeout_s)
    outcome = outcome_of(request.scope)
    generator = _generator(serving)
    if body.stream:
        deltas = generator.deltas(asked)
        # The first delta decides the status line: a failure before it is a plain error.
        first = await _unless_gone(request, anext(deltas))
        return EventStream(first, deltas, shape, outcome)
    delta = await _unless_gone(request, generator.whole(asked))
    return _json(shape(delta, outcome.request_id))


def _generator(serving: Serving, also: Phase = Phase.READY) -> Generator:
    phase = serving.life.phase
    if phase in (Phase.READY, also) and serving.generator is not None:
        return serving.generator
    raise Failed(Refusal(503, "not_ready", WHY_NOT[phase], retry_after_s=1))


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(request: Request, delta: Awaitable[TextDelta]) -> TextDelta:
    """
    Wait for *delta*; if the client disconnects, cancel it and its request in the engine.
    """
    answering = asyncio.ensure_future(delta)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        raise Failed(CLIENT_GONE)
    finally:
        for task in (answering, gone):
            task.cancel()
        await asyncio.wait((answering, gone))


class EventStream(Response):
    """
    Server-sent events: one for each delta, then [DONE]; or an error event as the last.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: TextDelta,
        rest: AsyncGenerator[TextDelta, None],
        shape: Formatter,
        outcome: RequestOutcome,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._first, self._rest, self._shape, self._outcome = first, rest, shape, outcome

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raw = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        sending = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(_gone(Request(scope, receive)))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._outcome.code = CLIENT_GONE.status
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.wait((sending, gone))
            await self._rest.aclose()
        if not sending.cancelled() and (error := sending.exception()):
            raise error

    async def _send_all(self, send: Any) -> None:
        id = self._outcome.request_id

        async def event(data: bytes, *, name: str = "") -> None:
            head = f"event: {name}\n".encode() if name else b""
            body = head + b"data: " + data + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

        await event(json.dumps(self._shape(self._first, id)).encode())
        try:
            async with aclosing(self._rest) as deltas:
                async for delta in deltas:
                    await event(json.dumps(self._shape(delta, id)).encode())
        except Failed as failed:
            self._outcome.code = failed.refused.status
            await event(error_body(failed.refused, id, started=True), name="error")
        else:
            await event(b"[DONE]")
        await send({"type": "http.response.body", "body": b""})


def _json(document: Any, status: int = 200) -> Response:
    body = json.dumps(document, ensure_ascii=False).encode()
    return Response(body, status_code=status, media_type="application/json")


def _error(request: Request, refused: Refusal) -> Response:
    status, headers, body = error_response(refused, outcome_of(request.scope).request_id)
    return Response(body, status_code=status, headers=headers)


async def _on_failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, Failed)
    return _error(request, error.refused)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(one["type"] == "json_invalid" for one in found):
        return _error(request, Refusal(400, "invalid_json", "the body is not JSON"))
    if any(one["loc"] == ("body",) for one in found):
        message = "send a JSON object, with content-type: application/json"
        return _error(request, Refusal(422, "invalid_request", message))
    # Values stay out of the message: it is logged, and prompts must not be.
    message = "; ".join(
        f"{'.'.join(str(part) for part in one['loc'][1:]) or 'body'}: {one['msg']}" for one in found
    )
    return _error(request, Refusal(422, "invalid_request", message))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "http_error")
    response = _error(request, Refusal(error.status_code, code, str(error.detail)))
    response.headers.update(error.headers or {})  # Allow, with a 405
    return response


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer; the middleware logs it with the request's id.
    return _error(request, BUG)
