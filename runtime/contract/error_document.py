"""
The error document of every route, from the runtime and from HAProxy.  Pure.

OpenAI's `message`, `type`, `param` and `code`, with `request_id` and `retry_safe` beside them.
"""

from typing import Any

# OpenAI's error types, by status; `error_type` has the others.
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_type(status: int) -> str:
    return _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")


def error_document(
    status: int,
    code: str,
    message: str,
    *,
    request_id: str,
    retry_safe: bool,
    param: str | None = None,
) -> dict[str, Any]:
    """
    Return the body of an error response.

    Args:
        retry_safe: Whether the same request may be sent again unchanged, here or elsewhere.
        param: The field of the request that is at fault; None if no single one is.
    """
    return {
        "error": {
            "message": message,
            "type": error_type(status),
            "param": param,
            "code": code,
            "request_id": request_id,
            "retry_safe": retry_safe,
        }
    }
