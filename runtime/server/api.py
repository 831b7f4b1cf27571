"""
The routes: translate, submit, answer.  Never imports torch.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from runtime.contract import (
    DOCS,
    GENERATE,
    HEALTHZ,
    LIVEZ,
    METRICS,
    OPENAPI,
    READYZ,
    REQUEST_ID_HEADER,
    SLOT_HEADER,
    VERSION_HEADER,
)
from runtime.server.admission import Refusal
from runtime.server.embeddings import add_embeddings
from runtime.server.errors import BUG, Failed, error_response
from runtime.server.event_stream import unless_gone
from runtime.server.generation import Generator
from runtime.server.lifecycle import Phase
from runtime.server.metrics import CONTENT_TYPE
from runtime.server.middleware import App, Middleware, outcome_of
from runtime.server.openai_routes import add_openai
from runtime.server.openapi import POLICY, openapi_document, page
from runtime.server.rate_limits import KINDS, PARTS
from runtime.server.requests import AdmittedRequest, GenerationRequest, TextDelta
from runtime.server.schemas import GenerateBody
from runtime.server.serving import WHY_NOT, Serving, admit, json_response, stream

PROBES = ["GET", "HEAD"]  # load balancers check with HEAD
CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
}


def create_app(serving: Serving) -> App:
    """
    Return the ASGI application.
    """
    config = serving.settings.config
    # No pages with scripts from elsewhere, and no redirects: they would name the client's Host.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    _add_health(app, serving)
    _add_description(app, config.version)
    _add_generate(app, serving)
    add_openai(app, serving)
    add_embeddings(app, serving)
    app.add_exception_handler(Failed, _on_failed)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    served = Middleware(
        app,
        version=config.version,
        slot=serving.settings.slot,
        tokens=serving.settings.api_tokens,
        life=serving.life,
        metrics=serving.metrics,
        keys=serving.keys,
        own_token=serving.own_token,
        logs_requests=config.request_log,
        max_body_bytes=config.max_body_bytes,
    )
    if not config.cors_origins:
        return served
    # Outermost: a browser shows an error to a page only with these headers.
    return CORSMiddleware(
        served,
        allow_origins=config.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # OpenAI's clients send x-stainless-*; nothing rests on cookies
        expose_headers=[
            *(VERSION_HEADER, SLOT_HEADER, REQUEST_ID_HEADER, "retry-after"),
            *(f"x-ratelimit-{what}-{kind}" for kind in KINDS for what in PARTS),
        ],
    )


def _add_health(app: FastAPI, serving: Serving) -> None:
    config = serving.settings.config

    @app.api_route(LIVEZ, methods=PROBES)
    async def livez() -> Response:
        return json_response({"alive": True})

    @app.api_route(READYZ, methods=PROBES)
    async def readyz() -> Response:
        phase = serving.life.phase
        found = {"ready": phase.is_ready, "phase": phase, "version": config.version}
        if phase.is_ready:
            return json_response(found)
        return json_response(found | {"reason": WHY_NOT[phase]}, status=503)

    @app.api_route(HEALTHZ, methods=PROBES)
    async def healthz(deep: bool = False) -> Response:
        found: dict[str, Any] = {"phase": serving.life.phase, "version": config.version}
        if deep:
            generator = serving.ready_generator(Phase.WARMING)
            if not generator.generates:
                return json_response(found | await _embed_check(generator, serving))
            delta = await generator.whole(await generator.admit(serving.check))
            if not delta.tokens:
                raise Failed(Refusal(500, "no_answer", "the model answered with nothing"))
            found |= {"tokens": delta.tokens, "finish_reason": str(delta.finish_reason)}
        return json_response(found)

    @app.api_route(METRICS, methods=PROBES)
    async def metrics() -> Response:
        return Response(serving.metrics.render(), media_type=CONTENT_TYPE)


async def _embed_check(generator: Generator, serving: Serving) -> dict[str, Any]:
    """
    Return what a deep check of a model that generates nothing found.
    """
    embedder, prompt = generator.embedder, serving.check.prompt
    if embedder is None or not isinstance(prompt, str):
        raise Failed(Refusal(500, "no_answer", "the model can be asked for nothing"))
    texts = await embedder.read([prompt])
    (vector,) = await embedder.embed(texts, None)
    return {"tokens": len(texts[0].tokens), "dimensions": len(vector) // 4}


def _add_description(app: FastAPI, version: str) -> None:
    document = openapi_document(version)
    shown = page(document)

    @app.get(OPENAPI)
    async def openapi() -> Response:
        return json_response(document)

    @app.get(DOCS)
    async def docs() -> Response:
        headers = {"content-security-policy": POLICY}
        return Response(shown, media_type="text/html", headers=headers)


def _add_generate(app: FastAPI, serving: Serving) -> None:
    version = serving.settings.config.version

    @app.post(GENERATE)
    async def generate(request: Request) -> Response:
        admitted, is_stream = await admit(serving, request, GenerateBody, _admit)
        generator, id = serving.serving_generator(), outcome_of(request.scope).request_id

        def shape(delta: TextDelta) -> dict[str, Any]:
            found: dict[str, Any] = {"id": id, "version": version, "text": delta.text}
            if delta.finish_reason is None:
                return found
            return found | {
                "tokens": delta.tokens,
                "prompt_tokens": delta.prompt_tokens,
                "finish_reason": delta.finish_reason,
            }

        async def events() -> AsyncGenerator[dict[str, Any], None]:
            async with aclosing(generator.deltas(admitted)) as deltas:
                async for delta in deltas:
                    yield shape(delta)

        if is_stream:
            return await stream(request, events())
        delta = await unless_gone(request, generator.whole(admitted))
        return json_response(shape(delta) | {"result": delta.text})


async def _admit(generator: Generator, body: GenerateBody) -> tuple[AdmittedRequest, bool]:
    asked = GenerationRequest(
        body.prompt, body.params, tuple(body.stop), body.timeout_s, priority=body.priority
    )
    return await generator.admit(asked), body.stream


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
