"""
What a client writes into a request is no entry of the runtime's log.
"""

import asyncio
import io
import logging

import pytest

from runtime.engines.base.logs import VisibleFormatter
from runtime.server.lifecycle import Life
from runtime.server.metrics import Metrics
from runtime.server.middleware import REQUEST_ID, Middleware
from tests.hostile_text import CORPUS, complaints

FORGED = "/x\nruntime.ready version=v9"


async def failing(scope, receive, send):
    raise ValueError(scope["path"])


def logged(text, formatter):
    """
    Return the log of a request whose path, id and body are *text*, and which meets a bug.
    """
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    log = logging.getLogger("runtime.middleware")
    log.addHandler(handler)
    log.propagate = False
    metrics = Metrics("v1", "blue")
    app = Middleware(failing, version="v1", slot="blue", tokens=(), life=Life(), metrics=metrics)
    # The middleware refuses a head over 16 KiB before it calls anything.
    headers = [(b"x-request-id", text[:1000].encode(errors="surrogatepass"))]
    scope = {"type": "http", "method": "GET", "path": text, "query_string": b"", "headers": headers}
    sent = []

    async def send(message):
        sent.append(message)

    try:
        asyncio.run(app(scope, None, send))
    finally:
        log.removeHandler(handler)
        log.propagate = True
    id = dict(sent[0]["headers"])[b"x-request-id"].decode()
    assert REQUEST_ID.fullmatch(id)
    return stream.getvalue()


@pytest.mark.parametrize("text", [*CORPUS, FORGED], ids=lambda text: ascii(text)[:40])
def test_a_hostile_path_and_id_are_one_entry(text):
    shown = logged(text, VisibleFormatter("%(message)s"))
    first, *others = shown.splitlines()
    assert first.startswith("request.raised id=")
    assert all(line.startswith("  ") for line in others)
    assert complaints(shown.encode()) == []


def test_without_the_formatter_a_path_forges_an_entry():
    """
    Negative control.
    """
    shown = logged(FORGED, logging.Formatter("%(message)s"))
    assert "runtime.ready version=v9" in shown.splitlines()
