"""
Answers of one prompt, and what ends an answer.
"""

from dataclasses import replace

import pytest

from runtime.engines.base.protocol import FinishReason
from tests.unit.runtime.engines.paged.test_scheduler import END, make_scheduler, make_submit, run

# Answers of one prompt


def make_sibling(id, first, tokens, max_tokens=3, timeout_s=10.0):
    return replace(make_submit(id, tokens, max_tokens, timeout_s), prefix_of=first)


def play(scheduler, requests):
    """
    Submit *requests* at once; return their tokens and the number of computed prompt tokens.
    """
    for request in requests:
        scheduler.submit(request, now_s=0.0)
    tokens, computed = {request.id: [] for request in requests}, 0
    while not scheduler.is_idle:
        report = scheduler.turn(0.0)
        computed += report.prompt_tokens
        for id, token in report.tokens:
            tokens[id].append(token)
    assert scheduler.allocator.used == 0
    return tokens, computed


@pytest.mark.parametrize("length", [1, 4, 5, 8, 11, 23])
@pytest.mark.parametrize("step_tokens", [9, 64])
def test_answers_of_one_prompt_compute_it_once(length, step_tokens):
    """
    n: 8 computes the prompt once, and seven times its last, unfinished block of 4 tokens.
    """
    prompt = list(range(10, 10 + length))
    first = make_submit(1, prompt)
    siblings = [make_sibling(id, 1, prompt) for id in range(2, 9)]
    rest = length - (length - 1) // 4 * 4

    _, scheduler = make_scheduler(max_requests=8, step_tokens=step_tokens)
    tokens, computed = play(scheduler, [first, *siblings])
    assert computed == length + 7 * rest
    assert all(answer == tokens[1] for answer in tokens.values())

    # The negative control: requests of their own compute all of it in the same step.
    _, scheduler = make_scheduler(max_requests=8, step_tokens=1024)
    _, computed = play(scheduler, [make_submit(id, prompt) for id in range(1, 9)])
    assert computed == 8 * length


def test_each_answer_reports_what_of_its_prompt_was_cached():
    """
    The first nothing, the others all full blocks.
    """
    _, scheduler = make_scheduler()
    prompt = list(range(10))
    scheduler.submit(make_submit(1, prompt), 0.0)
    scheduler.submit(make_sibling(2, 1, prompt), 0.0)
    cached = []
    while not scheduler.is_idle:
        cached += scheduler.turn(0.0).cached
    assert cached == [(2, 8)]


def test_answers_of_one_prompt_join_before_later_requests():
    """
    They came with the first.
    """
    runner, scheduler = make_scheduler(max_requests=2)
    prompt = list(range(10))
    for request in (
        make_submit(1, prompt),
        make_sibling(2, 1, prompt),
        make_sibling(3, 1, prompt),
        make_submit(4, (500,)),
    ):
        scheduler.submit(request, 0.0)
    order = []
    while not scheduler.is_idle:
        for id, _ in scheduler.turn(0.0).tokens:
            if id not in order:
                order.append(id)
    # A slot was free while 2 and 3 waited for the prompt.
    assert order == [1, 4, 2, 3]
    assert len(runner.steps[0].joins) == 2


@pytest.mark.parametrize("end", ["cancel", "expire", "refuse", "fail"])
def test_an_answer_does_not_wait_for_one_that_has_ended(end):
    """
    However the first ends, queued or running.
    """
    runner, scheduler = make_scheduler(step_tokens=5, pages=40)
    prompt = list(range(12))
    first = make_submit(1, prompt, timeout_s=1.0 if end == "expire" else 10.0)
    if end == "refuse":
        first = make_submit(1, prompt, max_tokens=1000)
    scheduler.submit(first, 0.0)
    scheduler.submit(make_sibling(2, 1, prompt, timeout_s=20.0), 0.0)
    now_s = 0.0
    if end in ("cancel", "expire"):
        scheduler.turn(0.0)  # it has begun its prompt
    if end == "cancel":
        scheduler.cancel(1)
    if end == "expire":
        now_s = 2.0
    if end == "fail":
        runner.launch_raises = RuntimeError("once")
    tokens, ended = run(scheduler, now_s)
    assert tokens[2] == [12, 13, 14]
    assert ended[2] == FinishReason.LENGTH
    assert ended.get(1) != FinishReason.LENGTH


def test_a_held_answer_can_be_cancelled_and_can_expire():
    """
    While the first still computes the prompt.
    """
    _, scheduler = make_scheduler(step_tokens=5)
    prompt = list(range(40))
    scheduler.submit(make_submit(1, prompt, timeout_s=50.0), 0.0)
    scheduler.submit(make_sibling(2, 1, prompt, timeout_s=1.0), 0.0)
    scheduler.submit(make_sibling(3, 1, prompt, timeout_s=50.0), 0.0)
    assert scheduler.turn(0.0).waiting == 2
    scheduler.cancel(3)
    report = scheduler.turn(1.5)
    assert [(id, reason) for id, reason, _ in report.ended] == [(2, FinishReason.EXPIRED)]
    assert report.waiting == 0
    tokens, _ = run(scheduler, 1.5)
    assert tokens.keys() == {1}


# Stop tokens


def make_sampled(id, tokens, max_tokens, **params):
    request = make_submit(id, tokens, max_tokens)
    return replace(request, params=replace(request.params, **params))


@pytest.mark.parametrize(
    ("params", "tokens", "reason"),
    [
        ({}, [997, 998, 999], FinishReason.STOP),
        ({"ignore_eos": True}, [997, 998, 999, 1000, 1001, 1002], FinishReason.LENGTH),
        ({"stop_token_ids": (998,)}, [997], FinishReason.STOP),
        ({"stop_token_ids": (1500,)}, [997, 998, 999], FinishReason.STOP),
        ({"stop_token_ids": (1001,), "ignore_eos": True}, [997, 998, 999, 1000], FinishReason.STOP),
    ],
)
def test_the_request_says_which_tokens_end_it(params, tokens, reason):
    """
    Its own in addition to the model's, or in their place; a neighbour has the model's.
    """
    _, scheduler = make_scheduler()
    scheduler.submit(make_sampled(1, (996,), 6, **params), 0.0)
    scheduler.submit(make_submit(2, (998,), 6), 0.0)
    found, ended = run(scheduler)
    assert (found[1], ended[1]) == (tokens, reason)
    assert (found[2], ended[2]) == ([999], FinishReason.STOP)


def test_the_runner_learns_what_it_needs_and_no_more():
    """
    The prompt for a repetition penalty, the stop tokens for min_tokens.
    """
    runner, scheduler = make_scheduler()
    prompt = (5, 6, 7)
    for id, params in enumerate(
        [
            {},
            {"repetition_penalty": 1.5},
            {"min_tokens": 4, "stop_token_ids": (3,)},
            {"frequency_penalty": 1.0, "stop_token_ids": (3,)},
        ]
    ):
        scheduler.submit(make_sampled(id, prompt, 6, **params), 0.0)
    scheduler.turn(0.0)
    joins = [
        (list(j.prompt), sorted(j.stop_token_ids), j.stops_from) for j in runner.steps[0].joins
    ]
    # The logits of position 2 are those of the first token of the answer.
    assert joins == [([], [], 0), ([5, 6, 7], [], 0), ([], [3, END], 6), ([], [], 0)]
