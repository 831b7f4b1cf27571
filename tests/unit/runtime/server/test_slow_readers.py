"""
Clients that do not read, over TCP: real server, scheduler and pages; a test makes each step.
"""

import asyncio
import contextlib
import json
import random
import socket

import pytest

from runtime.engines.base.protocol import (
    Cancel,
    Submit,
    decode_from_engine,
    decode_to_engine,
    encode,
)
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.client import EngineClient
from runtime.engines.paged.scheduler import Capacity, Scheduler
from runtime.server.generation import Generator
from runtime.server.process import make_http_server
from tests.unit.runtime.fakes import CharCodec, FakeRunner
from tests.unit.runtime.server.raw_client import DEADLINE_S, RawClient, post
from tests.unit.runtime.serving import VOCABULARY, Runtime

pytestmark = pytest.mark.anyio

PAGE_TOKENS, PAGES = 16, 100
LONG = 1000  # tokens of an answer whose events are more than all buffers hold
NEXT = 700  # of one that has no pages beside it
BUFFER_BYTES = 4096


class SteppedEngine(EngineClient):
    """
    The client of an engine that computes a step when a test says so.

    Attributes:
        cancelled: Ids of requests that their clients left.
    """

    def __init__(self):
        super().__init__(None, lambda report: None)
        runner = FakeRunner(8, PAGES, PAGE_TOKENS)
        allocator = BlockAllocator(PAGES, PAGE_TOKENS)
        capacity = Capacity(8, 256, 0.0)
        self.scheduler = Scheduler(runner, capacity, (), allocator, random.Random(1))
        self.cancelled = []

    def _send(self, message):
        match decode_to_engine(encode(message)):
            case Submit() as request:
                self.scheduler.submit(request, 0.0)
            case Cancel(id):
                self.cancelled.append(id)
                self.scheduler.cancel(id)

    def step(self):
        self._take_in(decode_from_engine(encode(self.scheduler.turn(0.0))))

    @property
    def used(self):
        return self.scheduler.allocator.used


@contextlib.asynccontextmanager
async def served():
    """
    Yield the engine, a function that opens a connection, and one that tells whether the server
    waits for a client to read.
    """
    runtime, engine = Runtime(request_timeout_s=600), SteppedEngine()
    limits = runtime.settings.config.limits(2 * LONG, VOCABULARY)
    runtime.serving.generator = Generator(engine, CharCodec(), limits, lambda seconds: None)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    server = make_http_server(runtime.app)
    task = asyncio.create_task(server.serve(sockets=[listener]))

    async def connect():
        end = socket.socket()
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        end.setblocking(False)
        await asyncio.get_running_loop().sock_connect(end, listener.getsockname())
        return end

    def is_full():
        return any(each.flow.write_paused for each in server.server_state.connections)

    try:
        yield engine, connect, is_full
    finally:
        server.should_exit = server.force_exit = True
        await task


def ask(max_tokens, *, stream):
    body = {"prompt": "x", "max_tokens": max_tokens, "stream": stream}
    return post(json.dumps(body).encode(), f"x-request-id: {'x' * 120}")


async def until(condition):
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - a condition of another part
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def stalled():
    """
    Yield an engine, `connect` and a connection that reads nothing of its stream, when all buffers
    are full.
    """
    async with served() as (engine, connect, is_full):
        end = await connect()
        await asyncio.get_running_loop().sock_sendall(end, ask(LONG, stream=True))
        await until(lambda: engine.in_flight == 1)
        while not is_full():
            engine.step()
            assert engine.in_flight == 1, "the buffers take a whole answer"
            for _ in range(8):  # from the token to the socket
                await asyncio.sleep(0)
        with end:
            yield engine, connect, end


async def test_a_client_that_does_not_read_holds_nobody_back():
    """
    The others are answered with the steps that they take alone.
    """

    async def answer(engine, connect):
        """
        Return the steps that a request of 8 tokens takes.
        """
        others = engine.in_flight
        reader, writer = await asyncio.open_connection(sock=await connect())
        writer.write(ask(8, stream=False))
        await until(lambda: engine.in_flight == others + 1)
        steps = 0
        while engine.in_flight > others:
            engine.step()
            steps += 1
            assert steps < 50
        status, _, body = await RawClient(reader, writer).answer()
        assert (status, json.loads(body)["tokens"]) == (200, 8)
        writer.close()
        return steps

    async with served() as (engine, connect, _):
        alone = await answer(engine, connect)
    async with stalled() as (engine, connect, _):
        beside = [await answer(engine, connect) for _ in range(3)]
        assert engine.in_flight == 1
    assert beside == [alone] * 3


async def test_a_client_that_left_frees_its_pages_within_a_step():
    """
    Without a step the engine is told; with the next one a request that waits for pages has them.
    """
    async with stalled() as (engine, connect, end):
        reader, writer = await asyncio.open_connection(sock=await connect())
        writer.write(ask(NEXT, stream=False))
        await until(lambda: engine.in_flight == 2)
        for _ in range(5):
            engine.step()
        held = engine.used
        assert held == -(-(1 + LONG) // PAGE_TOKENS)
        assert engine.scheduler.turn(0.0).waiting == 1

        end.close()
        await until(lambda: engine.cancelled)
        assert engine.used == 0
        engine.step()
        assert 0 < engine.used < held
        while engine.in_flight:
            engine.step()
        status, _, body = await RawClient(reader, writer).answer()
        assert (status, json.loads(body)["tokens"]) == (200, NEXT)
        writer.close()
