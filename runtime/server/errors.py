"""
How a request fails, and the error document of all routes, as bytes.
"""

import json

from runtime.contract import UNREAD_HEADER
from runtime.contract.error_document import error_document
from runtime.server.admission import Refusal

# Statuses of requests that may succeed if they are sent again unchanged.
RETRY_SAFE = frozenset({408, 429, 499, 500, 502, 503, 504})

BUG = Refusal(500, "internal", "internal error; the runtime's log has the details under this id")


class Failed(Exception):
    """
    The request ends with an error response.
    """

    def __init__(self, refused: Refusal) -> None:
        super().__init__(refused.message)
        self.refused = refused


def error_response(refused: Refusal, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """
    Return status, headers and body of an error.

    The middleware removes UNREAD_HEADER from the answer to a request that came whole.
    """
    body = error_body(refused, request_id)
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers[UNREAD_HEADER] = refused.code
    if refused.retry_after_s is not None:
        headers["retry-after"] = str(refused.retry_after_s)
    if refused.never_repeat:
        headers["x-should-retry"] = "false"  # OpenAI's clients repeat any 5xx without it
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return refused.status, headers, body


def error_body(refused: Refusal, request_id: str, *, started: bool = False) -> bytes:
    """
    Args:
        started: Whether part of the answer was sent; a retry would then repeat it.
    """
    retry_safe = refused.status in RETRY_SAFE and not (started or refused.never_repeat)
    document = error_document(
        refused.status,
        refused.code,
        refused.message,
        request_id=request_id,
        retry_safe=retry_safe,
        param=refused.param,
    )
    return json.dumps(document).encode()
