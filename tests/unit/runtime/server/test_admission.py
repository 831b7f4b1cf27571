from hypothesis import given
from hypothesis import strategies as st

from runtime.server.admission import (
    MAX_RETRY_AFTER_S,
    AdmissionLimits,
    CurrentLoad,
    refuse,
    time_allowed_s,
)

LIMITS = AdmissionLimits(
    context_tokens=100, max_batch_requests=4, max_queue_requests=8, request_timeout_s=30.0
)
IDLE = CurrentLoad(in_flight=0, mean_s=0.0)


def test_a_request_at_the_limit_is_admitted():
    """
    The limits are inclusive.
    """
    assert refuse(60, 40, CurrentLoad(in_flight=11, mean_s=1.0), LIMITS) is None


def test_prompt_and_answer_share_the_context():
    """
    One token over the context is 400, and the message has all three numbers.
    """
    refused = refuse(60, 41, IDLE, LIMITS)

    assert (refused.status, refused.code) == (400, "context_length_exceeded")
    assert all(number in refused.message for number in ("60", "41", "100"))
    assert refused.retry_after_s is None


def test_a_full_queue_gives_retry_after():
    """
    A full server answers 503, with the estimated time of its work.
    """
    refused = refuse(1, 1, CurrentLoad(in_flight=12, mean_s=2.5), LIMITS)

    assert (refused.status, refused.code) == (503, "queue_full")
    assert refused.retry_after_s == 8


def test_a_request_that_never_fits_is_refused_even_when_full():
    """
    Too long takes precedence over too busy.
    """
    assert (
        refuse(200, 1, CurrentLoad(in_flight=99, mean_s=1.0), LIMITS).code
        == "context_length_exceeded"
    )


def test_a_prompt_without_tokens_is_refused():
    """
    The model needs at least one token.
    """
    assert refuse(0, 1, IDLE, LIMITS).status == 400


@given(st.integers(12, 10_000), st.floats(0, 1000))
def test_retry_after_is_whole_and_bounded(in_flight, mean_s):
    """
    From 1 to 30 seconds under any load.
    """
    after_s = refuse(1, 1, CurrentLoad(in_flight, mean_s), LIMITS).retry_after_s
    assert isinstance(after_s, int)
    assert 1 <= after_s <= MAX_RETRY_AFTER_S


def test_the_deadline_is_bounded_by_the_limit():
    """
    A request may ask for less time; the default is the limit.
    """
    assert time_allowed_s(None, LIMITS) == 30.0
    assert time_allowed_s(5.0, LIMITS) == 5.0
    assert time_allowed_s(300.0, LIMITS) == 30.0
