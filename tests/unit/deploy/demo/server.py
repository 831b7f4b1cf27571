"""
A small HTTP/1.1 server on loopback whose behaviour a test scripts, request by request.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable

VERSION = "v1"


def answer(status=200, *, version=VERSION, body=b"{}"):
    reason = {200: "OK", 429: "Too Many Requests", 500: "Error", 503: "Unavailable"}[status]
    version_header = f"x-slipway-version: {version}\r\n" if version else ""
    head = f"HTTP/1.1 {status} {reason}\r\n{version_header}content-length: {len(body)}\r\n\r\n"
    return [head.encode() + body]


def stream(*events, end="data: [DONE]\n\n", version=VERSION):
    """
    Return the pieces of a chunked SSE answer; with *end* None the last chunk is missing.
    """
    head = f"HTTP/1.1 200 OK\r\nx-slipway-version: {version}\r\n"
    pieces = [
        (head + "content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").encode()
    ]
    for text in [*(f"data: {json.dumps(event)}\n\n" for event in events), *([end] if end else [])]:
        pieces.append(f"{len(text):x}\r\n{text}\r\n".encode())
    if end is not None:
        pieces.append(b"0\r\n\r\n")
    return pieces


RESET = "reset"  # close without a byte of answer, after the request was read
CUT = "cut"  # close after a part of the answer
HANG = "hang"  # never answer
CLOSE_AFTER = "close after"  # close the idle connection after a complete answer


class Server:
    """
    Answers request number n (from 0) with *script(n, body)*: pieces to send, or RESET, CUT, ...

    Attributes:
        bodies, paths, heads: Of the requests, in order of arrival; heads in lower case.
        connections: Number of connections that were opened.

    Args:
        tls: Context of an https server; None for plain http.
    """

    def __init__(self, script: Callable[[int, dict], list], tls=None):
        self._script, self._tls = script, tls
        self.bodies: list[dict] = []
        self.paths: list[str] = []
        self.heads: list[str] = []
        self.connections = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self._arrived = asyncio.Condition()
        port = self._server.sockets[0].getsockname()[1]
        scheme = "https" if self._tls else "http"
        self.url = f"{scheme}://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def wait_for(self, count):
        """
        Wait until *count* requests have been read.
        """
        async with asyncio.timeout(60), self._arrived:
            await self._arrived.wait_for(lambda: len(self.bodies) >= count)

    async def _serve(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._serve_one(reader, writer):
                pass
        writer.close()

    async def _serve_one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        async with self._arrived:
            number = len(self.bodies)
            self.bodies.append(body)
            self.paths.append(head.split()[1])
            self.heads.append(head)
            self._arrived.notify_all()
        for piece in self._script(number, body):
            if piece in (RESET, CUT):
                writer.transport.abort()
                return False
            if piece == HANG:
                await asyncio.Event().wait()
            if piece == CLOSE_AFTER:
                return False
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # drain() does not yield while the buffer has room
        return True
