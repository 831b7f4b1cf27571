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


class Device:
    """
    Launches what has few enough tokens and none of the *cursed* slots.
    """

    def __init__(self, tokens=99, cursed=(), error=OutOfMemory):
        self.tokens, self.cursed, self.error = tokens, cursed, error

    def launch(self, step):
        slots = {each.slot for each in (*step.decodes, *step.chunks)}
        if step.tokens > self.tokens or slots & set(self.cursed):
            raise self.error("no")
        return step


def asked(step):
    """
    Return what is to be computed, a token each, in the order of each row.
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
def test_halves_are_smaller_and_together_the_whole(step):
    """
    The same tokens in the same order, each row joining with its first.
    """
    first, second = halves(step)

    assert first.tokens
    assert second.tokens
    assert asked(first) + asked(second) == asked(step)
    assert first.joins + second.joins == step.joins
    for half in (first, second):
        assert {join.slot for join in half.joins} <= {chunk.slot for chunk in half.chunks}


@given(steps, st.integers(1, 30))
def test_where_memory_is_short_everything_is_computed_in_parts(step, tokens):
    """
    In order, each part as small as it must be; the whole step if it fits.
    """
    done = launch(Device(tokens), step)

    assert not done.failures
    assert [token for part, _ in done.parts for token in asked(part)] == asked(step)
    assert all(part.tokens <= tokens for part, _ in done.parts)
    assert done.splits == len(done.parts) - 1


@given(steps, st.data())
def test_a_row_that_does_not_fit_alone_fails_alone(step, data):
    """
    All others are computed, and nothing of it once it has failed.
    """
    slots = [each.slot for each in (*step.decodes, *step.chunks)]
    cursed = set(data.draw(st.lists(st.sampled_from(slots))))

    done = launch(Device(cursed=cursed), step)

    assert {slot for slots, _ in done.failures for slot in slots} == cursed
    assert all(len(slots) == 1 for slots, _ in done.failures)
    computed = [token for part, _ in done.parts for token in asked(part)]
    assert computed == [token for token in asked(step) if token[0] not in cursed]


def test_a_row_that_has_failed_is_not_gone_on_with():
    """
    What comes behind the token that did not fit would stand on nothing.
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
    Nobody knows what it has written: there is no second try.
    """
    step = Step((), (Decode(1, 5), Decode(2, 5)), (Chunk(3, 0, [1, 2], True),))

    done = launch(Device(cursed={2}, error=RuntimeError), step)

    ((slots, error),) = done.failures
    assert slots == [1, 2, 3]
    assert isinstance(error, RuntimeError)
    assert (done.parts, done.splits) == ([], 0)


def test_a_token_has_no_halves():
    """
    Whoever asks has a row that fails.
    """
    with pytest.raises(AssertionError):
        halves(Step((), (Decode(1, 5),), ()))
