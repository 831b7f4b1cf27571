"""
The description of the API: an OpenAPI document, and a page that shows it without a script.
"""

import html
import json
from typing import Any

from pydantic.json_schema import models_json_schema

from runtime.contract import (
    CHAT,
    COMPLETIONS,
    DETOKENIZE,
    EMBEDDINGS,
    GENERATE,
    HEALTHZ,
    LIVEZ,
    METRICS,
    MODEL,
    MODELS,
    READYZ,
    TOKENIZE,
)
from runtime.contract.error_document import error_document
from runtime.server.embeddings import EmbeddingBody
from runtime.server.openai_bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from runtime.server.schemas import Body, GenerateBody

BODIES: dict[str, tuple[type[Body], str]] = {
    GENERATE: (GenerateBody, "Continue a prompt"),
    CHAT: (ChatBody, "Answer a conversation, as OpenAI does"),
    COMPLETIONS: (CompletionBody, "Continue one or more prompts, as OpenAI does"),
    EMBEDDINGS: (EmbeddingBody, "Return the vectors of texts, as OpenAI does"),
    TOKENIZE: (TokenizeBody, "Return the token ids of a text or a conversation"),
    DETOKENIZE: (DetokenizeBody, "Return the text of token ids"),
}
PAGES = {
    MODELS: "List the one model",
    MODEL: "Return the model of this name",
    LIVEZ: "Tell whether the process runs",
    READYZ: "Tell whether the runtime answers requests",
    HEALTHZ: "Return the phase; with deep=1, let the model answer",
    METRICS: "Return the metrics of Prometheus",
}
STYLE = "body{font:16px/1.5 sans-serif;margin:2em auto;max-width:60em}pre{overflow:auto}"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


def openapi_document(version: str) -> dict[str, Any]:
    """
    Return the OpenAPI document of a release of this *version*.
    """
    kinds = [kind for kind, _ in BODIES.values()]
    names, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    schemas = {**definitions.get("$defs", {}), "Error": _error_schema()}
    paths: dict[str, Any] = {}
    for route, (kind, summary) in BODIES.items():
        content = {"application/json": {"schema": names[kind, "validation"]}}
        operation = {"requestBody": {"required": True, "content": content}}
        paths[route] = {"post": _operation(summary) | operation}
    for route, summary in PAGES.items():
        paths[route] = {"get": _operation(summary)}
    paths[MODEL]["get"]["parameters"] = [_parameter("path", "id", {"type": "string"})]
    paths[HEALTHZ]["get"]["parameters"] = [_parameter("query", "deep", {"type": "boolean"})]
    return {
        "openapi": "3.1.0",
        "info": {"title": "slipway runtime", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def page(document: dict[str, Any]) -> str:
    """
    Return *document* as HTML.
    """
    info = document["info"]
    title = html.escape(f"{info['title']} {info['version']}")
    routes = [
        f"<h2>{method.upper()} {html.escape(route)}</h2><p>{html.escape(each['summary'])}.</p>"
        for route, operations in document["paths"].items()
        for method, each in operations.items()
    ]
    schemas = html.escape(json.dumps(document["components"]["schemas"], indent=2))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{STYLE}</style><h1>{title}</h1>{''.join(routes)}"
        f"<h2>Bodies</h2><pre>{schemas}</pre></html>"
    )


def _operation(summary: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer"},
            "default": {"description": "An error", "content": error},
        },
    }


def _parameter(place: str, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"in": place, "name": name, "required": place == "path", "schema": schema}


def _error_schema() -> dict[str, Any]:
    error = error_document(400, "", "", request_id="", retry_safe=False)["error"]
    kinds: dict[str, Any] = {key: {"type": "string"} for key in error}
    kinds |= {"param": {"type": ["string", "null"]}, "retry_safe": {"type": "boolean"}}
    inner = {"type": "object", "required": list(error), "properties": kinds}
    return {"type": "object", "required": ["error"], "properties": {"error": inner}}
