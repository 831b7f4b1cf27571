"""
Uploads through a real HAProxy to the application: the client gets each refusal, whole.
"""

import asyncio
import contextlib
import functools
import json
import time
from pathlib import Path

import pytest

from runtime.contract import MAX_BODY_BYTES
from runtime.server import body, connection
from tests.unit.deploy.provision.public_port import PROGRAM, PublicPort, read_answer
from tests.unit.runtime.server.raw_client import post, served

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not Path(PROGRAM).exists(), reason="haproxy is not installed"),
]


class Public:
    """
    Attributes:
        port: HAProxy, whose methods block: call them through `ask` and `stat`.
        runtime: The parts of the application behind it.
    """

    def __init__(self, port, runtime):
        self.port, self.runtime = port, runtime

    async def ask(self, raw):
        """
        Send as a client does that reads only after it has sent; return status and code.
        """
        return await asyncio.to_thread(self._ask, raw)

    def _ask(self, raw):
        with self.port.connect() as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(raw)
            status, content = read_answer(client)
            return status, json.loads(content)["error"]["code"]

    async def stat(self, column):
        row = await asyncio.to_thread(self.port.stat, "runtime", "blue")
        return int(row[column])


@contextlib.asynccontextmanager
async def public(**changes):
    async with served() as server:
        start = functools.partial(PublicPort, server.path.parent.parent, slot=server, **changes)
        port = await asyncio.to_thread(start)
        try:
            yield Public(port, server.runtime)
        finally:
            await asyncio.to_thread(port.close)


async def refusals(proxy):
    """
    Return the answer to each body that is refused before it was sent whole.
    """
    found = [await proxy.ask(post(b"a" * (MAX_BODY_BYTES + 1)))]
    proxy.runtime.serving.uploads.fit_context(100, 4)
    found.append(await proxy.ask(post(b"a" * 7_900_000)))
    proxy.runtime.engine.busy = 32 + 256
    found.append(await proxy.ask(post(b"a" * 4_000_000)))
    return found


async def test_a_client_gets_the_refusal_of_a_large_body():
    """
    Sent in one go, far beyond all buffers; no error of the slot is counted, which would stop a
    canary.
    """
    async with public() as proxy:
        for _ in range(3):
            assert await refusals(proxy) == [
                (413, "body_too_large"),
                (413, "body_too_large"),
                (503, "queue_full"),
            ]
            proxy.runtime.engine.busy = 0
            proxy.runtime.serving.uploads.max_body_bytes = MAX_BODY_BYTES
        assert await proxy.stat("eresp") == 0
        async with asyncio.timeout(20):
            while await proxy.stat("scur"):  # a drain would wait for them
                pass


async def ignore(proxy):
    """
    Go on sending after the refusals, and read nothing; return the slot's response errors.
    """
    proxy.runtime.engine.busy = 32 + 256

    def send():
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(proxy.port.connect()) for _ in range(5)]
            for client in clients:
                client.sendall(post(b"a" * 100_000, length=4_000_000))
            for _ in range(30):
                time.sleep(0.05)
                for client in clients:
                    with contextlib.suppress(OSError):
                        client.sendall(b"a")

    await asyncio.to_thread(send)
    return await proxy.stat("eresp")


async def test_a_client_that_ignores_a_refusal_is_no_error_of_the_slot(monkeypatch):
    """
    HAProxy answers in the slot's place; without its rules a canary would be blamed.
    """
    monkeypatch.setattr(connection, "LINGER_S", 0.3)
    async with public() as proxy:
        assert await ignore(proxy) == 0
    async with public(edit=lambda text: text.replace("http-response return", "#")) as proxy:
        assert await ignore(proxy) > 0


async def test_the_answer_in_its_place_has_its_labels(monkeypatch):
    """
    The document's code and request id are the slot's, and so are the version and the slot.
    """
    async with public() as proxy:
        proxy.runtime.engine.busy = 32 + 256

        def ask():
            with proxy.port.connect() as client:
                client.sendall(post(b"a" * 100_000, "x-request-id: mine", length=4_000_000))
                return b"".join(iter(lambda: client.recv(65536), b"")).decode()

        head, _, content = (await asyncio.to_thread(ask)).partition("\r\n\r\n")
        error = json.loads(content)["error"]
        assert (error["code"], error["request_id"]) == ("queue_full", "mine")
        assert error["retry_safe"] is True
        lines = head.lower().split("\r\n")
        assert lines[0].startswith("http/1.1 503 ")
        assert {"x-slipway-version: v1.2.0", "x-slipway-slot: blue", "retry-after: 1"} <= set(lines)


async def test_without_lingering_refusals_are_errors_of_the_slot(monkeypatch):
    """
    Negative control: HAProxy loses the answer and counts a response error.
    """

    def close(self):
        self._transport.close()

    monkeypatch.setattr(connection.LingeringTransport, "close", close)
    async with public() as proxy:
        for _ in range(30):  # whether HAProxy has read the answer by then is a race
            with contextlib.suppress(ValueError):
                await refusals(proxy)
            proxy.runtime.engine.busy = 0
            if await proxy.stat("eresp") > 0:
                return
        pytest.fail("HAProxy lost no answer")


async def test_a_long_upload_that_stops_is_408(monkeypatch):
    """
    Beyond what HAProxy buffers the runtime has the deadline: HAProxy itself waits for 600 s.
    """
    monkeypatch.setattr(body, "UPLOAD_TIMEOUT_S", 0.3)
    async with public() as proxy:
        raw = post(b"a" * 200_000, length=1_000_000)
        assert await proxy.ask(raw) == (408, "upload_too_slow")
        assert await proxy.stat("eresp") == 0
        async with asyncio.timeout(20):
            while await proxy.stat("scur"):  # a drain would wait for them
                pass


async def test_a_body_of_many_chunks_is_joined_on_the_way():
    """
    HAProxy joins the chunks of one byte that would cost the runtime a turn each.
    """
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    async with public() as proxy:
        chunks = b"1\r\n \r\n" * 50_000 + b"0\r\n\r\n"
        raw = head + b"transfer-encoding: chunked\r\n\r\n" + chunks
        assert await proxy.ask(raw) == (422, "invalid_request")


async def test_a_hidden_request_is_not_answered():
    """
    A body with two lengths: what follows it is no request past the list of routes.
    """
    hidden = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % (len(hidden) + 5)
    async with public() as proxy:
        raw = head + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + hidden
        assert await proxy.ask(raw) == (422, "invalid_request")
        assert proxy.runtime.counted("/metrics", 200) == 0
