"""
Answers that a client may leave: waiting for one, and streaming one as server-sent events.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request, Response

from runtime.server.body import CLIENT_GONE
from runtime.server.errors import Failed, error_body
from runtime.server.middleware import RequestOutcome

Value = TypeVar("Value")

Document = Mapping[str, Any]  # of one event


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, result: Awaitable[Value]) -> Value:
    """
    Wait for *result*; if the client disconnects, cancel it and its request in the engine.
    """
    answering = asyncio.ensure_future(result)
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
    Server-sent events: one for each document, then [DONE]; or an error event as the last.

    A document may be JSON already.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: Document | bytes,
        rest: AsyncGenerator[Document | bytes, None],
        outcome: RequestOutcome,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._first, self._rest, self._outcome = first, rest, outcome

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

        async def event(document: Document | bytes, *, name: str = "") -> None:
            if not isinstance(document, bytes):
                document = json.dumps(document).encode()
            head = f"event: {name}\n".encode() if name else b""
            body = head + b"data: " + document + b"\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": True})

        await event(self._first)
        try:
            async with aclosing(self._rest) as documents:
                async for document in documents:
                    await event(document)
        except Failed as failed:
            self._outcome.code = failed.refused.status
            self._outcome.excuse = failed.refused.excuse
            await event(error_body(failed.refused, id, started=True), name="error")
        else:
            await event(b"[DONE]")
        await send({"type": "http.response.body", "body": b""})
