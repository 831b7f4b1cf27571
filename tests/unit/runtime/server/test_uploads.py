"""
Request bodies and connections, over a real socket and uvicorn.
"""

import asyncio
import json
from collections import Counter

import pytest

from runtime.contract import MAX_BODY_BYTES
from runtime.server import body, connection, middleware
from runtime.server.body import SMALL_BODY_BYTES
from tests.unit.runtime.server.raw_client import post, served

pytestmark = pytest.mark.anyio
GOOD = json.dumps({"prompt": "ask", "max_tokens": 9}).encode()


async def until(condition):
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


@pytest.fixture
async def server():
    async with served() as server:
        yield server


async def answer_of(server, raw):
    async with server.client() as client:
        await client.send(raw)
        return await client.answer()


# What a body is


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"[" * 100_000, 422, "invalid_request"),
        (b'{"prompt": ' + b"[" * 3000 + b"]" * 3000 + b"}", 422, "invalid_request"),
        (b'{"prompt": ' + b"[" * 2000 + b"]" * 2000 + b"}", 400, "invalid_json"),
        (b"[" + b"[]," * 1_000_000 + b"1]", 422, "invalid_request"),
        (b'{"prompt": "a", "stop": [' + b'"a",' * 100_000 + b'"a"]}', 422, "invalid_request"),
        (b'{"prompt": "a", "seed": ' + b"9" * 4_000_000 + b"}", 422, "invalid_request"),
        (b'{"prompt": "a", "seed": ' + b"9" * 4000 + b"}", 422, "invalid_request"),
        (b'{"prompt": "a", "top_p": 1e999999}', 422, "invalid_request"),
        (b'{"prompt": "a", "top_p": NaN}', 400, "invalid_json"),
        (b'{"prompt": "a", "prompt": "b"}', 422, "invalid_request"),
        (b'{"prompt": "a", "' + b"k" * 100_000 + b'": 1}', 422, "invalid_request"),
        (b'{"prompt": "\\ud800"}', 422, "invalid_request"),
        (b'{"prompt": "\xff"}', 400, "invalid_json"),
        ('{"prompt": "a"}'.encode("utf-16"), 400, "invalid_json"),
        (b'\xef\xbb\xbf{"prompt": "a"}', 400, "invalid_json"),
        (b'{"prompt": "a"} {', 400, "invalid_json"),
        (b'{"prompt": "a\\', 400, "invalid_json"),
        (b'\\"' + b"[" * 5000, 422, "invalid_request"),
        (b"", 400, "invalid_json"),
        (b"null", 422, "invalid_request"),
    ],
)
async def test_a_hostile_body_is_one_error(server, content, status, code):
    """
    Deep, wide, huge, twice, of another encoding: one document, and no traceback.
    """
    found, _, text = await answer_of(server, post(content))
    error = json.loads(text)["error"]
    assert (found, error["code"]) == (status, code)
    assert len(error["message"]) < 300


async def test_a_wide_body_is_refused_before_it_is_built(monkeypatch):
    """
    The parser never sees it; without the check it would.
    """
    seen = []
    monkeypatch.setattr(body.json, "loads", lambda text, **_: seen.append(len(text)) or {})
    wide = b"[" + b"[]," * 100_000 + b"1]"
    async with served() as server:
        assert (await answer_of(server, post(wide)))[0] == 422
        assert seen == []
        monkeypatch.setattr(body._Shape, "add", lambda *_: None)
        await answer_of(server, post(wide))
        assert seen == [len(wide)]


async def test_large_bodies_are_read_one_after_the_other(server, monkeypatch):
    """
    Each step of one takes the loop milliseconds: not those of several in one turn.
    """
    turn, parsed, real = 0, Counter(), json.loads

    async def tick():
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def loads(text, **more):
        if "prompt" in text:
            parsed[turn] += 1
        return real(text, **more)

    monkeypatch.setattr(body.json, "loads", loads)
    ticking = asyncio.create_task(tick())
    large = json.dumps({"prompt": "a " * SMALL_BODY_BYTES}).encode()
    answers = await asyncio.gather(*(answer_of(server, post(large)) for _ in range(8)))
    ticking.cancel()
    assert {status for status, _, _ in answers} == {400}
    assert parsed.total() == 8
    assert max(parsed.values()) == 1


async def test_white_space_and_escapes_are_allowed(server):
    """
    A body that another library wrote.
    """
    server.runtime.engine.will("hello")
    text = b'{\r\n\t"prompt" : "\\"a\\\\\\u0041\\n",\r\n  "stop": ["\\\\", "x"]\r\n}\r\n'
    status, _, _ = await answer_of(server, post(text))
    assert status == 200
    assert server.runtime.engine.asked[0]["prompt"] == '"a\\A\n'


async def test_a_compressed_body_is_refused_unread(server):
    """
    A small body could be a large one.
    """
    raw = post(b"", "content-encoding: gzip", length=1000)
    assert await server.ask(raw) == (415, "unsupported_encoding")


# How a body comes


async def test_a_slow_body_is_408_and_the_end(monkeypatch):
    """
    Under the least rate: bytes that drip prolong nothing; the connection ends.
    """
    monkeypatch.setattr(body, "GRACE_S", 0.2)
    async with served() as server, server.client() as client:
        await client.send(post(b"{", length=1000))

        async def drip():
            while True:
                await client.send(b" ")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert await client.error() == (408, "upload_too_slow")
        dripping.cancel()
        assert server.runtime.counted("/generate", 408) == 1
        assert server.runtime.serving.uploads.held == 0


async def test_a_long_body_has_a_deadline_too(monkeypatch):
    """
    Also where its rate is high enough.
    """
    monkeypatch.setattr(body, "UPLOAD_TIMEOUT_S", 0.2)
    async with served() as server:
        raw = post(b'{"prompt": "' + b"a" * 500_000, length=1_000_000)
        assert await server.ask(raw) == (408, "upload_too_slow")


async def test_without_a_deadline_a_silent_upload_stays(monkeypatch):
    """
    Negative control: nothing else ends it.
    """
    monkeypatch.setattr(body, "GRACE_S", 1000.0)
    monkeypatch.setattr(body, "UPLOAD_TIMEOUT_S", 1000.0)
    async with served() as server, server.client() as client:
        await client.send(post(b"{", length=1000))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.answer()


async def test_a_large_body_is_refused_unread(server):
    """
    By its content-length, which nothing has to follow.
    """
    raw = post(b"", length=MAX_BODY_BYTES + 1)
    assert await server.ask(raw) == (413, "body_too_large")


async def test_a_body_that_no_prompt_needs_is_refused_unread(server):
    """
    7.9 MiB for a context of 100 tokens of 4 bytes.
    """
    server.runtime.serving.uploads.fit_context(100, 4)
    raw = post(b"", length=7_900_000)
    assert await server.ask(raw) == (413, "body_too_large")
    server.runtime.serving.uploads.fit_context(100, None)  # no bound is known: the limit stays
    assert server.runtime.serving.uploads.max_body_bytes == SMALL_BODY_BYTES + 2400


async def test_after_a_refusal_the_rest_is_dropped_for_a_moment(monkeypatch):
    """
    So that the peer can read the answer; then the connection is gone, whatever is sent.
    """
    monkeypatch.setattr(connection, "LINGER_S", 0.3)

    async def send_without_end(client):
        while True:
            await client.send(b"a" * 100_000)

    async with served() as server, server.client() as client:
        await client.send(post(b"", length=MAX_BODY_BYTES + 1) + b"a" * 200_000)
        assert await client.error() == (413, "body_too_large")
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send_without_end(client), 20)
        assert server.runtime.serving.uploads.held == 0


async def test_uploads_together_are_bounded(monkeypatch):
    """
    429 beyond the total; a small body still has the reserve, and an ended one counts no more.
    """
    monkeypatch.setattr(body, "MAX_BUFFERED_BYTES", 1_000_000)
    monkeypatch.setattr(body, "RESERVED_BYTES", 300_000)
    half = post(b'{"prompt": "' + b"a" * 400_000, length=500_000)
    async with served() as server, server.client() as first, server.client() as second:
        uploads = server.runtime.serving.uploads
        await first.send(half)
        await until(lambda: uploads.held > 400_000)
        await second.send(half)
        assert await second.error() == (429, "uploads_full")
        await until(lambda: uploads.held < 500_000)
        server.runtime.engine.will("hello")
        assert (await answer_of(server, post(GOOD)))[0] == 200
        first.writer.close()
        await until(lambda: uploads.held == 0)


async def test_a_full_queue_reads_no_body(server):
    """
    The refusal comes before the body.
    """
    server.runtime.engine.busy = 32 + 256
    assert await server.ask(post(b"", length=1000)) == (503, "queue_full")


async def test_without_a_token_no_body_is_read():
    """
    401 with the head alone.
    """
    async with served(tokens=("one",)) as server:
        assert await server.ask(post(b"", length=1000)) == (401, "invalid_api_key")


# Heads and connections


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\na: " + b"b" * 20_000,
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_one_error(server, raw):
    """
    The same document as everywhere, then the end.
    """
    assert await server.ask(raw) == (400, "bad_request")


async def test_no_client_writes_to_the_log(server, caplog):
    """
    Neither with what is not HTTP, nor with a protocol that the runtime does not speak.
    """
    upgrade = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    assert await server.ask(b"\x16\x03\x01 not HTTP\r\n\r\n") == (400, "bad_request")
    raw = b"GET /livez HTTP/1.1\r\nhost: x\r\n" + upgrade + b"\r\n"
    assert (await answer_of(server, raw))[0] == 200
    assert caplog.records == []


async def test_many_headers_are_431(server):
    """
    By number and by size; both at once arrive in one piece.
    """
    many = [f"x-{number}: y" for number in range(middleware.MAX_HEADERS)]
    assert await server.ask(post(GOOD, *many, length=99)) == (431, "headers_too_large")
    large = f"x: {'y' * middleware.MAX_HEADER_BYTES}"
    assert await server.ask(post(GOOD, large, length=99)) == (431, "headers_too_large")


async def test_a_slow_head_ends(monkeypatch):
    """
    Bytes that drip do not prolong it, on a new connection and on one that is kept.
    """
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.3)
    async with served() as server, server.client() as kept:
        await kept.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await kept.answer())[0] == 200
        async with server.client() as silent:
            assert await silent.is_closed()  # idle between two requests is not slow
        async with server.client() as fresh:
            await drips_until_closed(fresh)
        await drips_until_closed(kept)


async def drips_until_closed(client):
    await client.send(b"GET /li")

    async def drip():
        while True:
            await client.send(b"v")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    assert await client.is_closed()
    dripping.cancel()


async def test_a_client_that_does_not_read_is_cut(monkeypatch):
    """
    Its request in the engine is cancelled: it holds no memory of the model.
    """
    monkeypatch.setattr(connection, "READ_TIMEOUT_S", 0.3)
    async with served() as server, server.client() as client:
        engine = server.runtime.engine
        engine.will("", ending=None)
        await client.send(post(json.dumps({"prompt": "x", "stream": True}).encode()))
        client.reader._transport.pause_reading()
        await until(lambda: engine.running)
        (stream,) = engine.running.values()

        async def speak():
            while engine.running:
                for _ in range(2000):
                    stream.push(ord("a"))
                await asyncio.sleep(0.005)

        await asyncio.wait_for(speak(), 20)
        assert engine.cancelled == [0]


async def test_pipelined_requests_are_answered_in_order(server):
    """
    Two requests in one piece, also after a body.
    """
    server.runtime.engine.will("one")
    async with server.client() as client:
        await client.send(post(GOOD) + b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert json.loads((await client.answer())[2])["text"] == "one"
        assert json.loads((await client.answer())[2]) == {"alive": True}


async def test_http_1_0_is_answered_and_closed(server):
    """
    Without a host header, as load balancers check.
    """
    async with server.client() as client:
        await client.send(b"GET /livez HTTP/1.0\r\n\r\n")
        assert (await client.answer())[0] == 200
        assert await client.is_closed()


@pytest.mark.parametrize("path", ["/generate/", "/docs/", "/redoc", "/openapi.json/"])
async def test_there_are_no_redirects(server, path):
    """
    A redirect would name the Host that the client sent.
    """
    raw = f"GET {path} HTTP/1.1\r\nhost: evil.example\r\n\r\n".encode()
    status, headers, text = await answer_of(server, raw)
    assert status == 404
    assert "location" not in headers
    assert b"evil.example" not in text
