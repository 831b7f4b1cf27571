"""
Admission of long prompts: refused by their size, tokenized beside the event loop.
"""

import asyncio
import threading

import pytest

from runtime.engines.base.sampling import SamplingParams
from runtime.server import prompts, requests
from runtime.server.errors import Failed
from runtime.server.generation import Generator
from runtime.server.requests import GenerationRequest
from tests.unit.runtime.fakes import CharCodec, FakeEngine
from tests.unit.runtime.serving import CONTEXT, Runtime

pytestmark = pytest.mark.anyio
LONG = "a" * prompts.LONG_PROMPT_CHARS


class SlowCodec(CharCodec):
    """
    Tokenizes when the test says so, and bounds nothing.
    """

    def __init__(self):
        self.texts = []
        self.gate = threading.Event()

    def least_tokens(self, text, enough):
        return 0

    def encode(self, text, *, adds_special=True):
        self.texts.append(text)
        assert self.gate.wait(60)
        return [1] * 10


def make_generator(codec):
    return Generator(FakeEngine(), codec, Runtime().settings.config.limits(CONTEXT), lambda _: None)


def make_request(prompt=LONG, timeout_s=None):
    return GenerationRequest(prompt, SamplingParams(max_tokens=9), (), timeout_s)


async def until(condition):
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


async def refused(awaitable):
    with pytest.raises(Failed) as caught:
        await awaitable
    return caught.value.refused.status, caught.value.refused.code


async def test_a_prompt_over_the_context_is_not_tokenized(monkeypatch):
    """
    Its size alone refuses it; without the bound the codec would get it.
    """
    codec = SlowCodec()
    codec.gate.set()
    generator = make_generator(codec)
    monkeypatch.setattr(codec, "least_tokens", CharCodec().least_tokens)
    assert await refused(generator.admit(make_request())) == (400, "context_length_exceeded")
    assert codec.texts == []
    monkeypatch.setattr(codec, "least_tokens", lambda *_: 0)
    assert len((await generator.admit(make_request())).prompt) == 10
    assert codec.texts == [LONG]


async def test_a_text_of_very_many_characters_is_not_tokenized(monkeypatch):
    """
    White space may be no token at all, and takes memory all the same.
    """
    monkeypatch.setattr(prompts, "FEWEST_CHARS", len(LONG))
    codec = SlowCodec()
    codec.gate.set()
    generator = make_generator(codec)
    with pytest.raises(Failed) as caught:
        await generator.admit(make_request(f"{LONG} "))
    refused = caught.value.refused
    assert (refused.status, refused.code) == (400, "context_length_exceeded")
    assert refused.message.endswith(
        "the prompt has 20001 characters, and at most 20000 are read for it."
    )
    assert codec.texts == []
    assert len((await generator.admit(make_request(LONG))).prompt) == 10


async def test_the_loop_goes_on_while_a_long_prompt_is_tokenized():
    """
    A short request is admitted meanwhile.
    """
    codec = SlowCodec()
    generator = make_generator(codec)
    long = asyncio.create_task(generator.admit(make_request()))
    await until(lambda: codec.texts)
    assert generator.load.in_flight == 1
    assert not long.done()
    codec.gate.set()
    assert len((await long).prompt) == 10


async def test_few_long_prompts_are_tokenized_at_once():
    """
    Their memory is bounded; one that was given up before its turn is never tokenized.
    """
    codec = SlowCodec()
    generator = make_generator(codec)
    many = [asyncio.create_task(generator.admit(make_request(f"{n}{LONG}"))) for n in range(6)]
    await until(lambda: len(codec.texts) == prompts.LONG_PROMPT_THREADS)
    assert generator.load.in_flight == 6
    for task in many:
        task.cancel()
    await asyncio.wait(many)
    codec.gate.set()
    await until(lambda: generator.load.in_flight == 0)
    assert len(codec.texts) == prompts.LONG_PROMPT_THREADS


async def test_tokenizing_counts_to_the_deadline(monkeypatch):
    """
    504, and the load goes down only when the thread is done.
    """
    monkeypatch.setattr(requests, "GRACE_S", 0.0)
    codec = SlowCodec()
    generator = make_generator(codec)
    late = await refused(generator.admit(make_request(timeout_s=0.5)))
    assert late == (504, "deadline_exceeded")
    assert generator.load.in_flight == 1
    codec.gate.set()
    await until(lambda: generator.load.in_flight == 0)
