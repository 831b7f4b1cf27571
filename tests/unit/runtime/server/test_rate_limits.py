"""
Buckets of requests and tokens a minute; the clock is an argument.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.server.key_file import ServedKey
from runtime.server.rate_limits import MOST_KEYS, Bucket, KeyLimits, RateLimits, duration_text


def test_a_minute_s_worth_at_once_and_then_as_it_flows_in():
    bucket = Bucket(60, 0.0)
    assert sum(bucket.take(1, 0.0) for _ in range(100)) == 60
    assert bucket.wait_s(1, 0.0) == 1.0
    assert not bucket.take(1, 0.9)
    assert bucket.take(1, 1.0)
    assert bucket.left(31.0) == 30


@given(st.integers(1, 500), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60))
def test_no_minute_has_more_than_two_minutes_worth(limit, asked):
    """
    A full bucket, and what flows in meanwhile.
    """
    bucket, now_s, taken = Bucket(limit, 0.0), 0.0, []
    for wait_s, count in asked:
        now_s += wait_s
        if bucket.take(min(count, limit), now_s):
            taken.append((now_s, min(count, limit)))
    for began_s, _ in taken:
        spent = sum(count for at_s, count in taken if began_s <= at_s < began_s + 60)
        assert spent <= 2 * limit + 1e-6


def test_what_is_larger_than_the_limit_needs_a_full_bucket_and_leaves_a_debt():
    """
    Or it could never be sent.
    """
    bucket = Bucket(100, 0.0)
    assert bucket.take(150, 0.0)
    assert bucket.left(0.0) == 0
    assert not bucket.take(1, 30.0)
    assert bucket.take(1, 31.0)


def test_what_was_reserved_and_not_used_is_given_back():
    bucket = Bucket(100, 0.0)
    bucket.take(80, 0.0)
    bucket.settle(70, 0.0)
    assert bucket.left(0.0) == 90
    bucket.settle(-100, 0.0)  # used beyond what was reserved
    assert bucket.left(0.0) == 0
    bucket.settle(10**9, 0.0)
    assert bucket.left(0.0) == 100  # the control: never more than a minute's worth


def test_a_clock_that_goes_back_gives_nothing():
    bucket = Bucket(60, 100.0)
    bucket.take(60, 100.0)
    assert bucket.left(50.0) == 0


def test_a_changed_limit_keeps_what_was_spent():
    limits = RateLimits()

    def left(most):
        return limits.of(ServedKey(name="web", requests_per_minute=most), 0.0).requests.left(0.0)

    assert left(60) == 60
    limits.of(ServedKey(name="web", requests_per_minute=60), 0.0).requests.take(50, 0.0)
    assert (left(100), left(10), left(60)) == (50, 0, 10)
    assert limits.of(ServedKey(name="web"), 0.0).requests is None


def test_headers_are_those_of_openai():
    limits = KeyLimits(Bucket(60, 0.0), Bucket(6000, 0.0))
    limits.requests.take(1, 0.0)
    limits.tokens.take(2500, 0.0)
    assert dict(limits.headers(0.0)) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1s",
        b"x-ratelimit-limit-tokens": b"6000",
        b"x-ratelimit-remaining-tokens": b"3500",
        b"x-ratelimit-reset-tokens": b"25s",
    }
    assert KeyLimits().headers(0.0) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0125, "13ms"), (1, "1s"), (59.2, "1m0s"), (65, "1m5s"), (3600, "60m0s")],
)
def test_durations_are_written_as_openai_does(seconds, text):
    assert duration_text(seconds) == text


def test_keys_that_come_and_go_take_no_memory_without_end():
    limits = RateLimits()
    for number in range(3 * MOST_KEYS):
        limits.of(ServedKey(name=f"k{number}"), 0.0)
    assert len(limits._by_name) <= MOST_KEYS


def test_other_keys_never_reset_what_a_key_has_spent():
    """
    However many come; a key that is full again is forgotten, which changes nothing.
    """
    limits = RateLimits()
    owing = ServedKey(name="owing", requests_per_minute=60, tokens_per_minute=100)
    limits.of(owing, 0.0).tokens.settle(-250, 0.0)
    spent = [ServedKey(name=f"spent{n}", requests_per_minute=60) for n in range(MOST_KEYS)]
    for key in spent:
        assert limits.of(key, 0.0).requests.take(60, 0.0)
    for number in range(2 * MOST_KEYS):
        limits.of(ServedKey(name=f"k{number}"), 1.0)
    assert not limits.of(owing, 1.0).tokens.take(1, 1.0)
    assert {limits.of(key, 1.0).requests.left(1.0) for key in spent} == {1}

    for number in range(3 * MOST_KEYS):
        limits.of(ServedKey(name=f"later{number}"), 600.0)
    assert len(limits._by_name) <= 2 * MOST_KEYS
    assert limits.of(owing, 600.0).tokens.take(100, 600.0)
