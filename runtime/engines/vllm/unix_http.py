"""
HTTP over a Unix socket: one connection for each request, with h11 for the protocol.

Leaving `request` closes the connection, which cancels the request at the server.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import h11

CHUNK_BYTES = 1 << 16
LINE_LIMIT_BYTES = 64 << 20


class Garbled(ConnectionError):
    """
    The answer is not HTTP, or was cut.
    """


class NotOk(ConnectionError):
    """
    The status of `get` was not 200.
    """

    def __init__(self, target: str, status: int) -> None:
        super().__init__(f"{target} was answered with {status}")
        self.status = status


class Response:
    """
    An answer whose head has arrived.
    """

    def __init__(self, status: int, wire: "_Wire") -> None:
        self.status = status
        self._wire = wire

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """
        Yield the body as it comes.

        Raises:
            OSError: The connection broke; Garbled if the body was cut.
        """
        while not isinstance(event := await self._wire.event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    async def whole(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def events(self) -> AsyncGenerator[bytes, None]:
        """
        Yield the data of each server-sent event, which has to be one line; comments are skipped.
        """
        rest = b""
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LINE_LIMIT_BYTES:
                    raise Garbled(f"a line of more than {LINE_LIMIT_BYTES} bytes")
                for line in lines:
                    if line.startswith(b"data:"):
                        yield line.removeprefix(b"data:").strip()


@asynccontextmanager
async def request(
    socket: Path, method: str, target: str, document: object = None
) -> AsyncGenerator[Response, None]:
    """
    Send *document* as JSON, if any, and wait for the head of the answer.

    Raises:
        OSError: The connection was refused or broke; Garbled if the answer is not HTTP.
    """
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        wire = _Wire(reader)
        body = b"" if document is None else json.dumps(document, separators=(",", ":")).encode()
        writer.write(wire.say(method, target, body))
        while not isinstance(event := await wire.event(), h11.Response):
            pass  # 100 Continue and the like
        yield Response(event.status_code, wire)
    finally:
        writer.transport.abort()  # at once, without flushing


async def get(socket: Path, target: str, timeout_s: float) -> bytes:
    """
    Return the body of *target*.

    Raises:
        OSError: As `request`; TimeoutError after *timeout_s*, NotOk for an answer that is not 200.
    """
    async with asyncio.timeout(timeout_s), request(socket, "GET", target) as response:
        if response.status != 200:
            raise NotOk(target, response.status)
        return await response.whole()


class _Wire:
    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._connection = h11.Connection(h11.CLIENT)

    def say(self, method: str, target: str, body: bytes) -> bytes:
        headers = [("host", "engine"), ("connection", "close")]
        if body:
            headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
        head = self._connection.send(h11.Request(method=method, target=target, headers=headers))
        rest = self._connection.send(h11.Data(data=body)) if body else b""
        end = self._connection.send(h11.EndOfMessage())
        return (head or b"") + (rest or b"") + (end or b"")

    async def event(self) -> h11.Event:
        try:
            while (event := self._connection.next_event()) is h11.NEED_DATA:
                self._connection.receive_data(await self._reader.read(CHUNK_BYTES))
        except h11.ProtocolError as error:
            raise Garbled(str(error)) from error
        if not isinstance(event, h11.Event) or isinstance(event, h11.ConnectionClosed):
            raise Garbled("the connection was closed")
        return event
