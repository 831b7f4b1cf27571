import asyncio

import pytest

from runtime.engines.base.in_flight import InFlight
from runtime.engines.base.protocol import FinishReason

pytestmark = pytest.mark.anyio


async def test_ids_are_never_reused():
    """
    Also when nothing is in flight: a late report must not reach another request.
    """
    answers = InFlight()
    first, answer = answers.new()
    assert answers.finish(first, FinishReason.STOP)
    second, _ = answers.new()
    assert second != first
    answers.push(first, 7)
    assert answer.tokens == []


async def test_an_answer_ends_once():
    """
    A second end, or a cancel after it, reports that the request was not in flight.
    """
    answers = InFlight()
    id, answer = answers.new()
    assert answers.finish(id, FinishReason.STOP)
    assert not answers.finish(id, FinishReason.DIED, "killed")
    assert not answers.forget(id)
    assert (answer.finish_reason, answer.detail) == (FinishReason.STOP, "")

    id, answer = answers.new()
    assert answers.forget(id)
    assert not answers.finish(id, FinishReason.STOP)
    assert answer.finish_reason is None


async def test_all_requests_can_be_ended_at_once():
    """
    Requests that had ended keep their own finish reason.
    """
    answers = InFlight()
    (one, first), (two, second), (three, third) = (answers.new() for _ in range(3))
    answers.finish(two, FinishReason.LENGTH)
    assert answers.finish_all(FinishReason.ABANDONED, "drained") == [one, three]
    assert [first.finish_reason, second.finish_reason, third.finish_reason] == [
        FinishReason.ABANDONED,
        FinishReason.LENGTH,
        FinishReason.ABANDONED,
    ]
    assert len(answers) == 0


async def test_drain_waits_for_the_last_one():
    """
    On timeout it returns the number of requests in flight.
    """
    answers = InFlight()
    assert await answers.drain(0.0) == 0
    one, _ = answers.new()
    two, _ = answers.new()
    assert await answers.drain(0.01) == 2
    draining = asyncio.create_task(answers.drain(10.0))
    await asyncio.sleep(0)
    answers.forget(one)
    await asyncio.sleep(0)
    assert not draining.done()
    answers.finish(two, FinishReason.STOP)
    assert await draining == 0


async def test_a_drain_waits_for_the_parts_of_one_call():
    """
    All of the first part may end before the next one begins.
    """
    answers = InFlight()
    with answers.hold():
        id, _ = answers.new()
        draining = asyncio.create_task(answers.drain(60))
        answers.finish(id, FinishReason.STOP)
        await asyncio.sleep(0)
        assert not draining.done()
        id, _ = answers.new()
    assert not draining.done(), "a part still runs"
    answers.finish(id, FinishReason.STOP)
    assert await draining == 0
