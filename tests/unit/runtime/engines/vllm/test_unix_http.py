import asyncio
import contextlib

import pytest

from runtime.engines.vllm.unix_http import Garbled, NotOk, get, request

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def serving(folder, *pieces):
    """
    A server that reads one request and sends *pieces*, with a pause between them.
    """
    heard, left = bytearray(), asyncio.Event()

    async def on_connection(reader, writer):
        heard.extend(await reader.readuntil(b"\r\n\r\n"))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.005)
        if pieces[-1:] != (b"",):
            while data := await reader.read(100):
                heard.extend(data)
            left.set()
        writer.close()

    path = folder / "server.sock"
    server = await asyncio.start_unix_server(on_connection, path)
    async with server, asyncio.timeout(20):
        yield path, heard, left


def chunked(*texts):
    return [b"%x\r\n%b\r\n" % (len(text), text) for text in texts]


async def test_events_are_complete_for_any_division_of_the_bytes(tmp_path):
    """
    Comments, empty lines and carriage returns are not events.
    """
    texts = (b'data: {"a"', b": 1}\n\n: still here\n\nda", b"ta:[DONE]\r\n", b"\r\nid: 7\n")
    async with (
        serving(tmp_path, HEAD, *chunked(*texts), b"0\r\n\r\n") as (path, _, _),
        request(path, "GET", "/") as response,
    ):
        assert [event async for event in response.events()] == [b'{"a": 1}', b"[DONE]"]


async def test_an_answer_of_a_known_length_is_read_to_its_end(tmp_path):
    """
    The body follows an interim answer and a content-length.
    """
    pieces = (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 404 No\r\ncontent-length: 3\r\n\r\nwhy")
    async with serving(tmp_path, *pieces) as (path, heard, left):
        async with request(path, "POST", "/x", {"a": [1]}) as response:
            assert (response.status, await response.whole()) == (404, b"why")
        await left.wait()
    assert heard.startswith(b"POST /x HTTP/1.1\r\n")
    assert heard.endswith(b'{"a":[1]}')


async def test_leaving_the_context_closes_the_connection_at_once(tmp_path):
    """
    In the middle of a body, without waiting for its end.
    """
    async with serving(tmp_path, HEAD, *chunked(b"data: 1\n")) as (path, _, left):
        async with request(path, "GET", "/") as response:
            assert await anext(response.events()) == b"1"
            assert not left.is_set()
        await left.wait()


@pytest.mark.parametrize(
    "pieces",
    [(b"",), (b"no\r\n\r\n", b""), (HEAD, b""), (HEAD, *chunked(b"data: 1\n"), b"")],
    ids=["nothing", "garbage", "a head alone", "half a body"],
)
async def test_an_incomplete_answer_is_an_os_error(tmp_path, pieces):
    """
    Like a connection that breaks.
    """
    async with serving(tmp_path, *pieces) as (path, _, _):
        with pytest.raises(Garbled):
            async with request(path, "GET", "/") as response:
                await response.whole()
    assert issubclass(Garbled, OSError)


async def test_a_missing_listener_is_an_os_error(tmp_path):
    """
    As while the server loads.
    """
    with pytest.raises(OSError, match="No such file"):
        async with request(tmp_path / "server.sock", "GET", "/"):
            pass


async def test_get_accepts_only_a_200_in_time(tmp_path):
    """
    Any other answer, and a timeout, is an OSError.
    """
    (tmp_path / "a").mkdir()
    async with serving(tmp_path / "a", b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n") as (
        path,
        *_,
    ):
        with pytest.raises(NotOk) as caught:
            await get(path, "/health", 20)
        assert caught.value.status == 503
    async with serving(tmp_path, HEAD, *chunked(b"slow")) as (path, *_):
        with pytest.raises(TimeoutError):
            await get(path, "/", 0.05)
