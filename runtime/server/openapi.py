"""
The description of the API: an OpenAPI document, and a page that shows it without a script.
"""

import html
import json
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema

from runtime.contract import (
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    DOCS,
    EMBEDDINGS,
    GENERATE,
    HEALTHZ,
    LIVEZ,
    METRICS,
    MODEL,
    MODELS,
    OPENAPI,
    READYZ,
    REQUEST_ID_HEADER,
    SLOT_HEADER,
    TIMEOUT_HEADER,
    TOKENIZE,
    VERSION_HEADER,
)
from runtime.server.embeddings import EmbeddingBody
from runtime.server.openai_bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from runtime.server.openapi_answers import ANSWERS, STRING, Schema, event_of, ref
from runtime.server.openapi_errors import error_responses, error_schemas, shared_responses
from runtime.server.rate_limits import KINDS, PARTS
from runtime.server.schemas import Body, GenerateBody

JSON, TEXT, HTML, EVENTS = "application/json", "text/plain", "text/html", "text/event-stream"
# Of a route with a body, before the model is asked, and of one whose answer the engine computes.
READ = (401, 403, 404, 408, 415, 422, 429, 503, 504)
COMPUTED = (*READ, 502)
# A deep check is a request of its own; the query is checked first.
DEEP = (401, 422, 502, 503, 504)
DESCRIPTION = (
    "What one runtime answers. Any other path is 404, `not_found`, and any other method 405, "
    "`method_not_allowed`, with the header Allow. A proxy in front may answer any route with an "
    "error of its own, in the same form: 400, 403, 404, 408, 413, 429, 500, 502, 503 or 504."
)
STYLE = "body{font:16px/1.5 sans-serif;margin:2em auto;max-width:60em}pre{overflow:auto}"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


@dataclass(frozen=True, slots=True)
class Operation:
    """
    One method of one route.

    Attributes:
        id: Name of the function that a generated client has for it.
        answer: Name of the schema of its answer; None for an answer that is no JSON.
        errors: Statuses of its errors, beside those of every route.
        body: None for a GET.
        chunk: Name of the schema of the documents of its stream; None if it has no stream.
        token: Whether it needs a token; None where that depends on the query.
    """

    id: str
    summary: str
    answer: str | None
    errors: tuple[int, ...] = ()
    body: type[Body] | None = None
    chunk: str | None = None
    kind: str = JSON
    token: bool | None = True
    parameters: tuple[str, ...] = ()


POSTS = {
    GENERATE: Operation(
        *("generate", "Continue a prompt", "Generated", COMPUTED, GenerateBody, "GeneratedPiece")
    ),
    CHAT: Operation(
        "createChatCompletion",
        "Answer a conversation, as OpenAI does",
        "ChatCompletion",
        COMPUTED,
        ChatBody,
        "ChatCompletionChunk",
    ),
    COMPLETIONS: Operation(
        "createCompletion",
        "Continue one or more prompts, as OpenAI does",
        "Completion",
        COMPUTED,
        CompletionBody,
        "CompletionChunk",
    ),
    EMBEDDINGS: Operation(
        "createEmbedding",
        "Return the vectors of texts, as OpenAI does",
        "Embeddings",
        COMPUTED,
        EmbeddingBody,
    ),
    TOKENIZE: Operation(
        *("tokenize", "Return the token ids of a text or a conversation", "Tokens"),
        *(READ, TokenizeBody),
    ),
    DETOKENIZE: Operation(
        "detokenize", "Return the text of token ids", "Detokenized", READ, DetokenizeBody
    ),
}
GETS = {
    MODELS: Operation("listModels", "List the one model", "Models", (401,)),
    MODEL: Operation(
        *("retrieveModel", "Return the model of this name", "Model", (401, 403, 404)),
        parameters=("id",),
    ),
    LIVEZ: Operation("livez", "Tell whether the process runs", "Live", token=False),
    READYZ: Operation("readyz", "Tell whether the runtime answers requests", "Ready", token=False),
    HEALTHZ: Operation(
        *("healthz", "Return the phase; with deep=1, let the model answer", "Health", DEEP),
        token=None,
        parameters=("deep",),
    ),
    METRICS: Operation(
        *("metrics", "Return the metrics of Prometheus", None), kind=TEXT, token=False
    ),
    OPENAPI: Operation("openapi", "Return this document", "OpenAPI", token=False),
    DOCS: Operation("docs", "Return a page of this document", None, kind=HTML, token=False),
}
PARAMETERS: dict[str, Schema] = {
    "id": {
        "in": "path",
        "required": True,
        "description": "Name of the model; one with a slash is one name, too",
        "schema": {"type": "string", "minLength": 1},
    },
    "deep": {
        "in": "query",
        "description": "Let the model answer; needs a token",
        "schema": {"type": "boolean"},
    },
    REQUEST_ID_HEADER: {
        "in": "header",
        "description": (
            "Name of the request in answers and logs, of 1 to 128 letters, digits, `.`, `_` and "
            "`-`; any other is replaced"
        ),
        "schema": STRING,
    },
    TIMEOUT_HEADER: {
        "in": "header",
        "description": "Seconds that the client waits for the whole answer",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    },
}


def openapi_document(version: str) -> dict[str, Any]:
    """
    Return the OpenAPI document of a release of this *version*.

    Its version of OpenAPI is the first that describes the events of a stream (`itemSchema`).
    """
    kinds = [post.body for post in POSTS.values() if post.body is not None]
    names, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for route, each in POSTS.items():
        assert each.body is not None, "a POST has a body"
        content = {JSON: {"schema": names[each.body, "validation"]}}
        body = {"requestBody": {"required": True, "content": content}}
        paths[route] = {"post": _operation(each) | body}
    for route, each in GETS.items():
        paths[route] = {"get": _operation(each)}
    paths[READYZ]["get"]["responses"]["503"] = {
        "description": "It does not, and why",
        "headers": _headers(),
        "content": {JSON: {"schema": ref("Ready")}},
    }
    # A document that describes itself.  Source: OpenAPI 3.2, "OpenAPI Object".
    own = {"OpenAPI": {"type": "object", "required": ["openapi", "info", "paths", "components"]}}
    return {
        "openapi": "3.2.0",
        "info": {"title": "slipway runtime", "version": version, "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {**definitions.get("$defs", {}), **ANSWERS, **own, **error_schemas()},
            "responses": shared_responses(_headers()),
            "parameters": {name: {"name": name} | each for name, each in PARAMETERS.items()},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token or an API key of the fleet; any text if it has none",
                }
            },
        },
    }


def page(document: dict[str, Any]) -> str:
    """
    Return *document* as HTML.
    """
    info = document["info"]
    title = html.escape(f"{info['title']} {info['version']}")
    routes = [
        f"<h2>{method.upper()} {html.escape(route)}</h2><p>{html.escape(each['summary'])}. "
        f"Answers {', '.join(each['responses'])}.</p>"
        for route, operations in document["paths"].items()
        for method, each in operations.items()
    ]
    schemas = html.escape(json.dumps(document["components"]["schemas"], indent=2))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{STYLE}</style><h1>{title}</h1><p>{html.escape(info['description'])}</p>"
        f"{''.join(routes)}<h2>Schemas</h2><pre>{schemas}</pre></html>"
    )


def _operation(each: Operation) -> dict[str, Any]:
    parameters = [*each.parameters, REQUEST_ID_HEADER]
    if each.body is not None:
        parameters.append(TIMEOUT_HEADER)
    content: dict[str, Any] = {
        each.kind: {"schema": STRING if each.answer is None else ref(each.answer)}
    }
    if each.chunk is not None:
        content[EVENTS] = {"itemSchema": event_of(each.chunk)}
    words, headers = "The answer", _headers()
    if each.chunk is not None:
        words = "The answer; with `stream: true` as server-sent events"
    security: list[dict[str, list[str]]] = [] if each.token else [{}]
    if each.token is not False:
        security.append({"token": []})
        headers |= _limit_headers()
    answer = {"description": words, "headers": headers, "content": content}
    return {
        "operationId": each.id,
        "summary": each.summary,
        "security": security,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in parameters],
        "responses": {"200": answer} | error_responses(each.errors),
    }


def _headers() -> dict[str, Any]:
    return {
        name: {"description": words, "required": True, "schema": STRING}
        for name, words in {
            REQUEST_ID_HEADER: "Name of the request in the logs",
            VERSION_HEADER: "Version of the release that answered",
            SLOT_HEADER: "Slot that answered",
        }.items()
    }


def _limit_headers() -> dict[str, Any]:
    """
    Return OpenAI's headers, which answers to an API key with limits have.
    """
    kinds: dict[str, Schema] = {part: {"type": "integer", "minimum": 0} for part in PARTS}
    kinds["reset"] = STRING  # such as 1m5s
    return {
        f"x-ratelimit-{part}-{kind}": {
            "description": f"{part.capitalize()} of the {kind} a minute of the API key",
            "schema": kinds[part],
        }
        for kind in KINDS
        for part in PARTS
    }
