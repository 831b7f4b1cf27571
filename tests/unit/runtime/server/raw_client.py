"""
The application behind a real uvicorn on a Unix socket, and a client that sends raw bytes.
"""

import asyncio
import contextlib
import json
import socket
import tempfile
from pathlib import Path

from runtime.server.process import make_http_server
from tests.unit.runtime.serving import ERROR_KEYS, Runtime

DEADLINE_S = 20.0


class RawClient:
    """
    One connection.
    """

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def send(self, raw):
        self.writer.write(raw)
        await self.writer.drain()

    async def answer(self):
        """
        Return the status, headers and body of the next answer; None at the end of the connection.
        """
        async with asyncio.timeout(DEADLINE_S):
            try:
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
            return int(head[0].split()[1]), headers, body

    async def error(self):
        """
        Return the status and the code of the next answer, which is the one error document, and
        check that the connection ends after it.
        """
        status, headers, body = await self.answer()
        error = json.loads(body)["error"]
        assert set(error) == ERROR_KEYS
        assert headers["connection"] == "close"
        assert await self.is_closed()
        return status, error["code"]

    async def is_closed(self):
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


class Served:
    """
    Attributes:
        runtime: The application's parts, with a fake engine.
        path: The Unix socket.
    """

    def __init__(self, runtime, path):
        self.runtime, self.path = runtime, path

    def close(self):
        """
        Do nothing: `served` ends the server.
        """

    @contextlib.asynccontextmanager
    async def client(self):
        reader, writer = await asyncio.open_unix_connection(self.path, limit=1 << 24)
        try:
            yield RawClient(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(self, raw):
        async with self.client() as client:
            with contextlib.suppress(ConnectionError):
                await client.send(raw)
            return await client.error()


@contextlib.asynccontextmanager
async def served(**settings):
    with tempfile.TemporaryDirectory(prefix="sw-") as folder:
        path = Path(folder) / "blue" / "runtime.sock"
        path.parent.mkdir()
        runtime = Runtime(**settings)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(128)
        server = make_http_server(runtime.app)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield Served(runtime, path)
        finally:
            server.should_exit = True
            server.force_exit = True
            await task


def post(body, *headers, length=None, target="/generate"):
    lines = [f"POST {target} HTTP/1.1", "host: x", "content-type: application/json", *headers]
    lines.append(f"content-length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body
