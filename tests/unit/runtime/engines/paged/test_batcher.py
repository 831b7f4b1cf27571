from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.paged.batcher import BatchPolicy, Pending, take

policies = st.builds(
    BatchPolicy,
    max_requests=st.integers(0, 5),
    max_tokens=st.integers(0, 200),
    max_wait_s=st.sampled_from([0.0, 0.05, 1.0]),
)
arrivals = st.lists(
    st.tuples(st.floats(0, 10), st.floats(0, 10), st.integers(1, 100)), max_size=12
).map(sorted)


def queue_of(rows):
    return [Pending(i, arrived, late, tokens) for i, (arrived, late, tokens) in enumerate(rows)]


@given(arrivals, st.floats(0, 10), policies)
def test_every_request_has_exactly_one_outcome(rows, now_s, policy):
    """
    None is lost, duplicated or started late; batches are never overfilled and keep the order.
    """
    queue = queue_of(rows)

    got = take(queue, now_s, policy)

    assert queue == sorted(got.batch + got.expired + got.rest, key=lambda p: p.id)
    assert len(got.batch) <= policy.max_requests
    assert sum(p.tokens for p in got.batch) <= policy.max_tokens
    assert all(p.deadline_s > now_s for p in got.batch + got.rest)
    assert all(p.deadline_s <= now_s for p in got.expired)
    assert list(got.batch + got.rest) == [p for p in queue if p.deadline_s > now_s]


@given(arrivals, st.floats(0, 10), policies)
def test_a_waiting_request_has_a_later_wake_time(rows, now_s, policy):
    """
    The wait ends, and is no busy loop.
    """
    got = take(queue_of(rows), now_s, policy)

    if not got.rest:
        assert got.wake_at_s is None
    elif got.batch:
        assert got.wake_at_s == now_s
    else:
        assert now_s < got.wake_at_s <= min(p.deadline_s for p in got.rest)


@given(arrivals, st.floats(0, 10), policies)
def test_no_request_waits_longer_than_max_wait_s_while_there_is_room(rows, now_s, policy):
    """
    After max_wait_s the oldest request starts, alone if necessary.
    """
    got = take(queue_of(rows), now_s, policy)

    if got.rest and not got.batch:
        oldest = got.rest[0]
        has_room = policy.max_requests > 0 and oldest.tokens <= policy.max_tokens
        assert not has_room or now_s < oldest.arrived_s + policy.max_wait_s


@given(arrivals, st.floats(0, 10), policies)
def test_the_wake_time_makes_progress(rows, now_s, policy):
    """
    At wake_at_s a request starts or expires.
    """
    got = take(queue_of(rows), now_s, policy)

    if got.rest and not got.batch:
        later = take(got.rest, got.wake_at_s, policy)
        assert later.batch or later.expired


def test_a_full_batch_does_not_wait():
    """
    It starts before max_wait_s.
    """
    policy = BatchPolicy(max_requests=2, max_tokens=100, max_wait_s=10)
    queue = queue_of([(0.0, 9.0, 5), (0.0, 9.0, 5)])

    assert take(queue, 0.0, policy).batch == tuple(queue)
    assert not take(queue[:1], 0.0, policy).batch
