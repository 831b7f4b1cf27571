"""
The errors that the description of the API has.
"""

from collections.abc import Iterable
from typing import Any

from runtime.contract.error_document import error_document, error_type
from runtime.server.openapi_answers import BOOLEAN, STRING, Schema, an_object, const, or_null, ref

# Of each status, the codes that the runtime answers with.
CODES: dict[int, tuple[str, ...]] = {
    400: (
        "bad_request",
        "chat_template_refused",
        "context_length_exceeded",
        "empty_prompt",
        "grammar_refused",
        "invalid_json",
        "invalid_request",
        "no_chat_template",
        "no_structured_output",
        "not_supported",
        "too_many_answers",
        "tools_not_supported",
        "unknown_token",
    ),
    401: ("invalid_api_key",),
    403: ("model_not_found",),
    404: ("model_not_found", "not_found"),
    405: ("method_not_allowed",),
    408: ("upload_too_slow",),
    413: ("body_too_large",),
    415: ("unsupported_encoding",),
    422: ("invalid_request",),
    429: ("rate_limit_exceeded", "uploads_full"),
    431: ("headers_too_large",),
    500: ("engine_error", "engine_nonfinite", "internal", "no_answer"),
    502: ("engine_died",),
    503: ("grammar_check_failed", "not_ready", "queue_full", "shutting_down"),
    504: ("deadline_exceeded",),
}
WORDS = {
    400: "The request is not valid, or the model cannot answer it",
    401: "A token or an API key is needed",
    403: "The API key may not use the model",
    404: "No such model",
    408: "The body came too slowly",
    413: "The body is too large",
    415: "The body has a content-encoding",
    422: "The request is not of the form that the route reads",
    429: "The API key is over its limits, or all uploads together are too large",
    431: "The headers are too many or too large",
    500: "The model or the runtime failed",
    502: "The engine ended; do not send the request again",
    503: "The runtime is not ready, full or leaving; another one may answer",
    504: "The deadline passed; do not send the request again",
}
# Of every route: of a request that is not HTTP, is too large, or meets a bug.
EVERYWHERE = (400, 413, 431, 500)
HEADERS: dict[int, dict[str, Any]] = {
    401: {
        "www-authenticate": {
            "description": "How to authenticate",
            "required": True,
            "schema": const("Bearer"),
        }
    },
    429: {
        "retry-after": {
            "description": "Seconds until the same request may succeed",
            "required": True,
            "schema": {"type": "integer", "minimum": 1},
        }
    },
    503: {
        "retry-after": {
            "description": "Seconds until the same request may succeed, where that is known",
            "schema": {"type": "integer", "minimum": 1},
        }
    },
    **{
        status: {
            "x-should-retry": {
                "description": "false: OpenAI's clients do not repeat the request by themselves",
                "required": True,
                "schema": const("false"),
            }
        }
        for status in (502, 504)
    },
}


def error_schemas() -> dict[str, Schema]:
    """
    Return the schema of every error document, and one for each status.
    """
    keys = error_document(400, "", "", request_id="", retry_safe=False)["error"]
    kinds: Schema = dict.fromkeys(keys, STRING)
    kinds |= {"param": or_null(STRING), "retry_safe": BOOLEAN}
    return {"Error": an_object({"error": an_object(kinds)})} | {
        _name(status): an_object({"error": _error_of(status, kinds)}) for status in WORDS
    }


def error_responses(statuses: Iterable[int]) -> Schema:
    """
    Return the responses of an operation that answers with *statuses*, and those of every route.
    """
    return {
        str(status): {"$ref": f"#/components/responses/{_name(status)}"}
        for status in sorted({*statuses, *EVERYWHERE})
    }


def shared_responses(headers: Schema) -> Schema:
    """
    Return the responses that operations refer to.

    Args:
        headers: Of every answer.
    """
    return {
        _name(status): {
            "description": f"{words}: {', '.join(CODES[status])}.",
            "headers": headers | HEADERS.get(status, {}),
            "content": {"application/json": {"schema": ref(_name(status))}},
        }
        for status, words in WORDS.items()
    }


def _error_of(status: int, kinds: Schema) -> Schema:
    # Examples and not an enumeration: the proxy in front of a slot has codes of its own.
    code = STRING | {"examples": list(CODES[status])}
    return an_object(kinds | {"type": const(error_type(status)), "code": code})


def _name(status: int) -> str:
    return f"Error{status}"
