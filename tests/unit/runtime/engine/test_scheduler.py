from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.protocol import Ending, Submit
from runtime.engine.scheduler import Capacity, Scheduler
from tests.unit.runtime.fakes import FakeRunner

END = 1000


def make_job(id, tokens=(1,), max_tokens=3, timeout_s=10.0):
    return Submit(id, list(tokens), max_tokens, timeout_s)


def make_scheduler(max_requests=4, max_tokens=100, max_wait_s=0.0):
    runner = FakeRunner(max_requests)
    return runner, Scheduler(runner, Capacity(max_requests, max_tokens, max_wait_s), {END})


def run(scheduler, now_s=0.0):
    """
    Turn until nothing is left; return the tokens and the ending of each request.
    """
    tokens, ended = {}, {}
    while not scheduler.is_idle:
        report = scheduler.turn(now_s)
        for id, token in report.tokens:
            tokens.setdefault(id, []).append(token)
        for id, ending, _ in report.ended:
            assert id not in ended, f"{id} ends twice"
            ended[id] = ending
    return tokens, ended


def test_an_answer_ends_at_its_length_or_at_an_end_token():
    """
    max_tokens is "length"; an end token is "stop", and is not part of the answer.
    """
    _, scheduler = make_scheduler()
    scheduler.submit(make_job(1, tokens=(5,), max_tokens=3), now_s=0.0)
    scheduler.submit(make_job(2, tokens=(END - 3,), max_tokens=9), now_s=0.0)

    tokens, ended = run(scheduler)

    assert tokens == {1: [6, 7, 8], 2: [END - 2, END - 1]}
    assert ended == {1: Ending.LENGTH, 2: Ending.STOP}


def test_a_request_joins_a_running_batch_without_waiting():
    """
    While a batch runs nobody waits for company: the next step has both.
    """
    _, scheduler = make_scheduler(max_wait_s=5.0)
    scheduler.submit(make_job(1, max_tokens=9), now_s=0.0)
    assert scheduler.turn(1.0).batch == 0  # it waits for company
    assert scheduler.turn(5.0).batch == 1
    scheduler.submit(make_job(2), now_s=5.1)
    assert scheduler.turn(5.1).batch == 2


def test_numbers_that_are_not_finite_fail_one_request_alone():
    """
    Its neighbours get the answer that they would have got.
    """
    runner, scheduler = make_scheduler()
    runner.broken = {2}
    for id in (1, 2, 3):
        scheduler.submit(make_job(id, tokens=(id,)), now_s=0.0)

    tokens, ended = run(scheduler)

    assert ended == {1: Ending.LENGTH, 2: Ending.NONFINITE, 3: Ending.LENGTH}
    assert tokens == {1: [2, 3, 4], 3: [4, 5, 6]}


def test_a_model_that_raises_fails_its_batch_and_not_the_engine():
    """
    Who was computed fails; who waited is served by the next step.
    """
    runner, scheduler = make_scheduler(max_requests=2)
    for id in (1, 2, 3):
        scheduler.submit(make_job(id), now_s=0.0)
    runner.raises = RuntimeError("out of luck")

    report = scheduler.turn(0.0)

    assert [(id, ending) for id, ending, _ in report.ended] == [(1, "error"), (2, "error")]
    assert "RuntimeError" in report.ended[0][2]
    assert "out of luck" in report.ended[0][2]
    assert run(scheduler) == ({3: [2, 3, 4]}, {3: Ending.LENGTH})


def test_a_deadline_ends_waiting_and_running_requests():
    """
    Whoever is late is answered so, and its row is free for the next.
    """
    runner, scheduler = make_scheduler(max_requests=1)
    scheduler.submit(make_job(1, max_tokens=99, timeout_s=5.0), now_s=0.0)
    scheduler.submit(make_job(2, timeout_s=1.0), now_s=0.0)
    scheduler.submit(make_job(3, timeout_s=90.0), now_s=0.0)
    assert scheduler.turn(0.0).batch == 1

    assert scheduler.turn(1.0).ended == [(2, Ending.EXPIRED, "it was still waiting")]
    assert scheduler.turn(5.0).ended == [(1, Ending.EXPIRED, "2 of 99 tokens")]
    assert set(runner.rows) == {3}


def test_a_cancelled_request_is_gone_before_the_next_step():
    """
    Waiting or running, nothing of it is left, and the runner is told.
    """
    runner, scheduler = make_scheduler(max_requests=1)
    scheduler.submit(make_job(1, max_tokens=99), now_s=0.0)
    scheduler.submit(make_job(2), now_s=0.0)
    scheduler.turn(0.0)
    scheduler.cancel(2)
    scheduler.cancel(1)
    scheduler.cancel(77)  # ended long ago

    assert scheduler.is_idle
    assert runner.rows == {}


def test_the_token_budget_holds_requests_back():
    """
    Prompt and answer count; who does not fit waits for a row to leave.
    """
    _, scheduler = make_scheduler(max_requests=4, max_tokens=10)
    scheduler.submit(make_job(1, tokens=(1, 2, 3), max_tokens=3), now_s=0.0)
    scheduler.submit(make_job(2, tokens=(1, 2, 3), max_tokens=3), now_s=0.0)

    assert [scheduler.turn(0.0).batch for _ in range(6)] == [1, 1, 1, 1, 1, 1]
    assert scheduler.is_idle


def test_an_idle_engine_may_sleep_and_a_busy_one_may_not():
    """
    The wait is none while rows run, the batcher's while requests wait, unbounded otherwise.
    """
    _, scheduler = make_scheduler(max_wait_s=5.0)
    assert scheduler.wait_s(0.0) is None
    scheduler.submit(make_job(1, max_tokens=9), now_s=1.0)
    assert scheduler.wait_s(2.0) == 4.0
    assert scheduler.wait_s(6.0) == 0.0
    scheduler.turn(6.0)
    assert scheduler.wait_s(6.0) == 0.0


def test_who_is_left_behind_by_a_full_batch_is_not_slept_on():
    """
    When the last row leaves and others wait, the next turn is due at once.
    """
    _, scheduler = make_scheduler(max_requests=1, max_wait_s=0.0)
    for id in (1, 2):
        scheduler.submit(make_job(id, max_tokens=1), now_s=0.0)
    assert scheduler.turn(0.0).ended == [(1, Ending.LENGTH, "")]
    assert scheduler.wait_s(0.0) == 0.0
    assert scheduler.turn(0.0).ended == [(2, Ending.LENGTH, "")]
    assert scheduler.wait_s(0.0) is None


jobs = st.builds(
    lambda at, prompt, more, timeout_s, cancel_at: (at, prompt, more, timeout_s, cancel_at),
    st.integers(0, 8),
    st.integers(1, 4),
    st.integers(1, 6),
    st.sampled_from([0.5, 3.0, 99.0]),
    st.none() | st.integers(0, 12),
)


@given(st.lists(jobs, max_size=12), st.integers(1, 3), st.sampled_from([0.0, 2.0]), st.data())
def test_every_request_is_answered_exactly_once(asked, max_requests, max_wait_s, data):
    """
    Whatever comes, leaves, breaks and is late: one answer each, none beyond its length.
    """
    runner, scheduler = make_scheduler(max_requests, max_tokens=12, max_wait_s=max_wait_s)
    made, ended, cancelled = {}, {}, set()
    runner.broken = set(data.draw(st.lists(st.integers(0, 11), max_size=2)))
    raises_at = data.draw(st.none() | st.integers(0, 10))

    for now in range(60):
        for id, (at, prompt, more, timeout_s, cancel_at) in enumerate(asked):
            if at == now:
                scheduler.submit(make_job(id, range(prompt), more, timeout_s), float(now))
            if cancel_at == now and now > at and id not in ended:
                scheduler.cancel(id)
                cancelled.add(id)
        if raises_at == now:
            runner.raises = RuntimeError
        wait_s = scheduler.wait_s(float(now))
        report = scheduler.turn(float(now))
        has_acted = report.batch or report.ended
        assert bool(has_acted) == (wait_s == 0.0)  # neither slept on nor a busy loop
        assert report.running <= max_requests
        for id, _ in report.tokens:
            made[id] = made.get(id, 0) + 1
            assert id not in ended
            assert id not in cancelled
        for id, ending, _ in report.ended:
            assert id not in ended
            assert id not in cancelled
            ended[id] = ending

    assert scheduler.is_idle
    assert runner.rows == {}
    assert set(ended) | cancelled == set(range(len(asked)))
    for id, ending in ended.items():
        if ending == Ending.LENGTH:
            assert made[id] == asked[id][2]
