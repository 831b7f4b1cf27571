import asyncio
import contextlib
import socket
import subprocess
import sys

import pytest

from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import EngineError, ModelError
from runtime.engines.base.protocol import (
    Cancel,
    EngineReport,
    FinishReason,
    Load,
    Loaded,
    LoadFailed,
    Submit,
    Swap,
    decode_to_engine,
    encode,
)
from runtime.engines.base.sampling import SamplingParams, TokenLogprobs
from runtime.engines.paged.client import EngineClient, EngineProcess
from tests.unit.runtime.requests import make_request

pytestmark = pytest.mark.anyio

LOAD = Load("/m", 1.0, EngineOptions(max_batch_requests=8), [7])


class Peer:
    """
    The engine's end of the socket, driven by the test.
    """

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer

    async def hears(self):
        return decode_to_engine(await self._reader.readline())

    def says(self, *messages):
        self._writer.writelines(encode(message) for message in messages)

    def report(self, tokens=(), ended=(), **more):
        self.says(EngineReport(tokens, ended, 0, 0, 1, 1, **more))

    def hang_up(self):
        self._writer.close()


def exited(status):
    """
    Return a process that exits with *status* at once.
    """
    return subprocess.Popen([sys.executable, "-Sc", f"raise SystemExit({status})"])


@contextlib.asynccontextmanager
async def connected(exit_status=0):
    ours, theirs = socket.socketpair()
    process = exited(exit_status)
    reports = []
    client = EngineClient(EngineProcess(process, ours), reports.append)
    peer = Peer(*await asyncio.open_unix_connection(sock=theirs))
    await client.connect()
    client.reports = reports
    try:
        async with asyncio.timeout(5):
            yield client, peer
    finally:
        peer.hang_up()
        await client.close()


async def test_texts_to_embed_are_no_answers_in_flight():
    """
    But a drain waits for them, too.
    """
    async with connected() as (client, peer):
        done, text = client.embed([1, 2], 9.0)
        left, _ = client.embed([3], 9.0)
        assert client.in_flight == 0
        assert await client.drain(0.01) == 2
        peer.report(ended=[(done, FinishReason.STOP, "")])
        assert await text.end() is FinishReason.STOP
        client.cancel(left)
        assert (client.in_flight, await client.drain(0.01)) == (0, 0)


async def test_tokens_and_ends_reach_their_request():
    """
    Two interleaved requests each get their own tokens.
    """
    async with connected() as (client, peer):
        one, first = client.submit([1, 2], SamplingParams(4), 9.0)
        two, second = client.submit([3], SamplingParams(4, temperature=0.5, seed=7), 9.0)
        assert await peer.hears() == make_request(one, [1, 2], 4, 9.0)
        assert await peer.hears() == make_request(two, [3], 4, 9.0, temperature=0.5, seed=7)
        assert client.in_flight == 2

        peer.report(tokens=[(one, 10), (two, 20)])
        assert await first.more(0) == [10]
        peer.report(tokens=[(one, 11)], ended=[(two, FinishReason.STOP, "")])
        assert await second.end() is FinishReason.STOP
        assert await first.more(1) == [11]
        peer.report(ended=[(one, FinishReason.ERROR, "it broke")])

        assert await first.more(2) == []
        assert (first.finish_reason, first.detail) == (FinishReason.ERROR, "it broke")
        assert second.tokens == [20]
        assert client.in_flight == 0
        assert len(client.reports) == 3


async def test_a_cancel_is_sent_to_the_engine_once():
    """
    Later reports of it are ignored; cancelling an ended request sends nothing.
    """
    async with connected() as (client, peer):
        one, _ = client.submit([1], SamplingParams(4), 9.0)
        client.cancel(one)
        client.cancel(one)
        peer.report(tokens=[(one, 10)], ended=[(one, FinishReason.STOP, "")])
        two, _ = client.submit([2], SamplingParams(4), 9.0)

        heard = [await peer.hears() for _ in range(3)]

        assert [type(message) for message in heard] == [Submit, Cancel, Submit]
        assert (heard[1].id, heard[2].id) == (one, two)
        assert client.in_flight == 1


async def test_a_dead_engine_fails_all_requests():
    """
    Current and later requests get an error that says how the engine died.
    """
    async with connected(exit_status=3) as (client, peer):
        _, waiting = client.submit([1], SamplingParams(4), 9.0)
        peer.hang_up()
        assert await waiting.end() is FinishReason.DIED
        assert waiting.detail == "exit status 3"
        assert client.died.done()

        _, late = client.submit([1], SamplingParams(4), 9.0)
        assert await late.end() is FinishReason.DIED


async def test_an_invalid_model_and_a_failed_engine_are_different_errors():
    """
    The first is the release's fault, the second the engine's.
    """
    async with connected() as (client, peer):
        peer.says(Loaded(256, 700, 10, 0.5))
        assert (await client.load(LOAD)).context_tokens == 256
        assert await peer.hears() == LOAD
        peer.says(LoadFailed("what", "why", "fix", is_model=True))
        with pytest.raises(ModelError, match="what"):
            await client.load(LOAD)
        peer.says(LoadFailed("what", "why", "fix", is_model=False))
        with pytest.raises(EngineError, match="what"):
            await client.load(LOAD)


async def test_an_engine_that_dies_while_loading_is_an_engine_error():
    """
    The load fails at once.
    """
    async with connected(exit_status=3) as (client, peer):
        loading = asyncio.create_task(client.load(LOAD))
        assert await peer.hears() == LOAD
        peer.hang_up()
        with pytest.raises(EngineError) as caught:
            await loading
        assert "exit status 3" in caught.value.why


async def test_weights_are_swapped_while_requests_run():
    """
    A swap is answered like a load, and requests continue meanwhile; a second swap is refused.
    """
    async with connected() as (client, peer):
        one, answer = client.submit([1], SamplingParams(4), 9.0)
        swapping = asyncio.create_task(client.swap("/m2"))
        assert isinstance(await peer.hears(), Submit)
        assert await peer.hears() == Swap("/m2")
        with pytest.raises(EngineError, match="/m3"):
            await client.swap("/m3")
        peer.report(tokens=[(one, 10)], ended=[(one, FinishReason.STOP, "")])
        assert await answer.end() is FinishReason.STOP
        peer.says(Loaded(256, 700, 10, 0.5))
        assert (await swapping).took_s == 0.5
        peer.says(LoadFailed("what", "why", "fix", is_model=True))
        with pytest.raises(ModelError, match="what"):
            await client.swap("/m3")


async def test_drain_waits_for_the_last_request_up_to_its_limit():
    """
    It returns the number of requests in flight.
    """
    async with connected() as (client, peer):
        assert await client.drain(5.0) == 0
        one, _ = client.submit([1], SamplingParams(4), 9.0)
        assert await client.drain(0.01) == 1
        draining = asyncio.create_task(client.drain(5.0))
        peer.report(ended=[(one, FinishReason.STOP, "")])
        assert await draining == 0


async def test_abandoned_requests_are_answered():
    """
    Each request that outlasts the drain gets an end.
    """
    async with connected() as (client, _):
        _, left = client.submit([1], SamplingParams(4), 9.0)
        assert client.abandon() == 1
        assert await left.end() is FinishReason.ABANDONED
        assert client.in_flight == 0


async def test_log_probabilities_and_cached_tokens_reach_their_request():
    """
    They are there when the token is; those of a cancelled request are dropped.
    """
    async with connected() as (client, peer):
        one, first = client.submit([1, 2], SamplingParams(4, logprobs=1), 9.0)
        two, second = client.submit([1, 2], SamplingParams(4), 9.0, prefix_of=one)
        three, _ = client.submit([1], SamplingParams(4, logprobs=0), 9.0)
        assert [(await peer.hears()).prefix_of for _ in range(3)] == [None, one, None]
        client.cancel(three)
        peer.report(
            tokens=[(three, 9), (one, 10), (two, 20)],
            cached=[(two, 16), (three, 8)],
            logprobs=[(three, -1.0, []), (one, -0.5, [(10, -0.5)])],
        )
        assert await first.more(0) == [10]
        assert await second.more(0) == [20]
        assert first.logprobs == [TokenLogprobs(-0.5, ((10, -0.5),))]
        assert (first.cached_tokens, second.cached_tokens) == (0, 16)
        assert second.logprobs == []
