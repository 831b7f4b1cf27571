from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.paged.oom_splits import halves, launch
from runtime.engines.paged.step import Chunk, Decode, OutOfMemory, Step
from tests.unit.runtime.requests import make_join

steps = st.builds(
    lambda decodes, sizes: Step(
        joins=tuple(make_join(100 + i, [i + 1], 0.0, 1.0, 0) for i in range(len(sizes))),
        decodes=tuple(Decode(slot, 5) for slot in range(decodes)),
        chunks=tuple(Chunk(100 + i, 3 * i, range(n), i % 2 == 0) for i, n in enumerate(sizes)),
    ),
    st.integers(0, 5),
    st.lists(st.integers(1, 6), max_size=4),
).filter(lambda step: step.tokens)


class LimitedDevice:
    """
    Launches steps of at most the given tokens, with none of the *cursed* slots.
    """

    def __init__(self, tokens=99, cursed=(), error=OutOfMemory):
        self.tokens, self.cursed, self.error = tokens, cursed, error

    def launch(self, step):
        slots = {each.slot for each in (*step.decodes, *step.chunks)}
        if step.tokens > self.tokens or slots & set(self.cursed):
            raise self.error("no")
        return step


def expected_tokens(step):
    """
    Return the tokens to be computed, one entry each, in the order of each row.
    """
    tokens = [(d.slot, d.position, None, True) for d in step.decodes]
    for chunk in step.chunks:
        count = len(chunk.tokens)
        tokens += [
            (chunk.slot, chunk.start + i, token, chunk.is_last and i == count - 1)
            for i, token in enumerate(chunk.tokens)
        ]
    return tokens


@given(steps.filter(lambda step: step.tokens > 1))
def test_a_mask_stays_with_the_part_that_samples_its_slot(step):
    """
    Each mask once, and none with a part that samples no token of it.
    """
    step = replace(step, masks=tuple((slot, bytes([slot])) for slot in step.sampled))
    first, second = halves(step)
    assert sorted(first.masks + second.masks) == sorted(step.masks)
    for half in (first, second):
        assert [slot for slot, _ in half.masks] == half.sampled


@given(steps.filter(lambda step: step.tokens > 1))
def test_halves_are_smaller_and_together_equal_the_step(step):
    """
    The same tokens in the same order; each row joins with its first token.
    """
    first, second = halves(step)

    assert first.tokens
    assert second.tokens
    assert expected_tokens(first) + expected_tokens(second) == expected_tokens(step)
    assert first.joins + second.joins == step.joins
    for half in (first, second):
        assert {join.slot for join in half.joins} <= {chunk.slot for chunk in half.chunks}


@given(steps, st.integers(1, 30))
def test_a_step_that_does_not_fit_is_computed_in_parts(step, tokens):
    """
    In order, with parts only as small as necessary; a step that fits stays whole.
    """
    done = launch(LimitedDevice(tokens), step)

    assert not done.failures
    assert [token for part, _ in done.parts for token in expected_tokens(part)] == expected_tokens(
        step
    )
    assert all(part.tokens <= tokens for part, _ in done.parts)
    assert done.splits == len(done.parts) - 1


@given(steps, st.data())
def test_a_row_that_does_not_fit_alone_fails_alone(step, data):
    """
    All others are computed, and none of its tokens after the failure.
    """
    slots = [each.slot for each in (*step.decodes, *step.chunks)]
    cursed = set(data.draw(st.lists(st.sampled_from(slots))))

    done = launch(LimitedDevice(cursed=cursed), step)

    assert {slot for slots, _ in done.failures for slot in slots} == cursed
    assert all(len(slots) == 1 for slots, _ in done.failures)
    computed = [token for part, _ in done.parts for token in expected_tokens(part)]
    assert computed == [token for token in expected_tokens(step) if token[0] not in cursed]


def test_a_failed_row_is_not_continued():
    """
    Later tokens would depend on the missing one.
    """

    class FirstTokenDoesNotFit:
        def launch(self, step):
            if step.chunks[0].start < 1:
                raise OutOfMemory("no")
            return step

    done = launch(FirstTokenDoesNotFit(), Step((), (), (Chunk(1, 0, [7, 8, 9, 10], True),)))

    assert [slots for slots, _ in done.failures] == [[1]]
    assert done.parts == []


def test_any_other_error_fails_the_step_at_once():
    """
    Its effects are unknown, so it is not retried.
    """
    step = Step((), (Decode(1, 5), Decode(2, 5)), (Chunk(3, 0, [1, 2], True),))

    done = launch(LimitedDevice(cursed={2}, error=RuntimeError), step)

    ((slots, error),) = done.failures
    assert slots == [1, 2, 3]
    assert isinstance(error, RuntimeError)
    assert (done.parts, done.splits) == ([], 0)


def test_a_single_token_cannot_be_split():
    """
    The caller must fail its row.
    """
    with pytest.raises(AssertionError):
        halves(Step((), (Decode(1, 5),), ()))
