"""
The routes: translate, submit, answer.  Never imports torch.
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from runtime.contract import (
    HEALTHZ,
    LIVEZ,
    METRICS,
    MODELS,
    READYZ,
    REQUEST_ID_HEADER,
    SLOT_HEADER,
    VERSION_HEADER,
)
from runtime.engines.base.sampling import SamplingParams
from runtime.server.admission import Refusal
from runtime.server.body import UploadBudget, parse
from runtime.server.config import Settings
from runtime.server.errors import BUG, error_response
from runtime.server.event_stream import EventStream, Formatter, unless_gone
from runtime.server.generation import (
    AdmittedRequest,
    Failed,
    GenerationRequest,
    Generator,
    TextDelta,
)
from runtime.server.lifecycle import Life, Phase
from runtime.server.metrics import CONTENT_TYPE, Metrics
from runtime.server.middleware import App, Middleware, outcome_of
from runtime.server.schemas import CompletionBody, GenerateBody

CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
}
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
    uploads: UploadBudget = field(default_factory=UploadBudget)


def create_app(serving: Serving) -> App:
    """
    Return the ASGI application.
    """
    config = serving.settings.config
    # No pages of documentation, and no redirects: they would name the Host of the client.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
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
            generator = _generator(serving, Phase.WARMING)
            delta = await generator.whole(await generator.admit(serving.check))
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
    async def generate(request: Request) -> Response:
        def shape(delta: TextDelta, id: str) -> dict[str, Any]:
            found: dict[str, Any] = {"id": id, "version": config.version, "text": delta.text}
            if delta.finish_reason is None:
                return found
            return found | {
                "tokens": delta.tokens,
                "prompt_tokens": delta.prompt_tokens,
                "finish_reason": delta.finish_reason,
            }

        return await _answer(serving, request, GenerateBody, shape)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
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

        return await _answer(serving, request, CompletionBody, shape)

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
    serving: Serving,
    request: Request,
    kind: type[GenerateBody] | type[CompletionBody],
    shape: Formatter,
) -> Response:
    outcome = outcome_of(request.scope)
    generator = _generator(serving)
    admitted, is_stream = await _receive(serving, generator, request, kind)
    if is_stream:
        deltas = generator.deltas(admitted)
        # The first delta decides the status line: a failure before it is a plain error.
        first = await unless_gone(request, anext(deltas))
        return EventStream(first, deltas, shape, outcome)
    delta = await unless_gone(request, generator.whole(admitted))
    return _json(shape(delta, outcome.request_id))


async def _receive(
    serving: Serving,
    generator: Generator,
    request: Request,
    kind: type[GenerateBody] | type[CompletionBody],
) -> tuple[AdmittedRequest, bool]:
    """
    Return the request of the body, and whether its answer is a stream.

    The body and the text of its prompt are freed here: an answer may take a minute.
    """
    generator.refuse_if_full()
    with serving.uploads.upload() as upload:
        body = parse(await upload.receive(request.receive, request.headers), kind)
        serves = serving.settings.config.model_name
        if body.model not in (None, serves):
            message = f"this runtime serves {serves}, and no other model"
            raise Failed(Refusal(404, "model_not_found", message, param="model"))
        params = SamplingParams(body.max_tokens, body.temperature, body.top_p, body.seed)
        asked = GenerationRequest(body.prompt, params, tuple(body.stop), body.timeout_s)
        return await unless_gone(request, generator.admit(asked)), body.stream


def _generator(serving: Serving, also: Phase = Phase.READY) -> Generator:
    phase = serving.life.phase
    if phase in (Phase.READY, also) and serving.generator is not None:
        return serving.generator
    raise Failed(Refusal(503, "not_ready", WHY_NOT[phase], retry_after_s=1))


def _json(document: Any, status: int = 200) -> Response:
    body = json.dumps(document, ensure_ascii=False).encode()
    return Response(body, status_code=status, media_type="application/json")


def _error(request: Request, refused: Refusal) -> Response:
    outcome = outcome_of(request.scope)
    outcome.excuse = refused.excuse
    status, headers, body = error_response(refused, outcome.request_id)
    return Response(body, status_code=status, headers=headers)


async def _on_failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, Failed)
    return _error(request, error.refused)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    # Only of a query: bodies are parsed by `body.parse`.
    fields = [str(one["loc"][-1]) for one in found]
    message = "; ".join(f"{field}: {one['msg']}" for field, one in zip(fields, found, strict=True))
    return _error(request, Refusal(422, "invalid_request", message, param=fields[0]))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "http_error")
    response = _error(request, Refusal(error.status_code, code, str(error.detail)))
    response.headers.update(error.headers or {})  # Allow, with a 405
    return response


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer; the middleware logs it with the request's id.
    return _error(request, BUG)
