import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines.base.protocol import FinishReason
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.oom_splits import REGROW_STEPS
from runtime.engines.paged.scheduler import Capacity, Scheduler
from runtime.engines.paged.step import Chunk, Decode, DeviceLost, Step
from tests.unit.runtime.fakes import FakeRunner, count_up
from tests.unit.runtime.requests import make_join, make_request

END = 1000


def make_submit(id, tokens=(1,), max_tokens=3, timeout_s=10.0, seed=None):
    return make_request(id, list(tokens), max_tokens, timeout_s, seed=seed)


def make_scheduler(
    max_requests=4,
    step_tokens=64,
    max_wait_s=0.0,
    pages=64,
    page_tokens=4,
    rule=count_up,
    stop_token_ids=(END,),
    is_synchronous=False,
):
    runner = FakeRunner(max_requests, pages, page_tokens, rule)
    capacity = Capacity(max_requests, step_tokens, max_wait_s)
    allocator = BlockAllocator(pages, page_tokens)
    return runner, Scheduler(
        runner,
        capacity,
        stop_token_ids,
        allocator,
        random.Random(1),
        is_synchronous=is_synchronous,
    )


def run(scheduler, now_s=0.0):
    """
    Run turns until the scheduler is idle; return the tokens and the ending of each request.
    """
    tokens, ended = {}, {}
    while not scheduler.is_idle:
        report = scheduler.turn(now_s)
        for id, token in report.tokens:
            tokens.setdefault(id, []).append(token)
        for id, ending, _ in report.ended:
            assert id not in ended, f"{id} ends twice"
            ended[id] = ending
    assert scheduler.allocator.used == 0
    return tokens, ended


def answer(scheduler, id, tokens, max_tokens=3):
    """
    Compute one request alone; return its tokens and the number of computed prompt tokens.
    """
    scheduler.submit(make_submit(id, tokens, max_tokens), now_s=0.0)
    generated, computed = [], 0
    while not scheduler.is_idle:
        report = scheduler.turn(0.0)
        generated += [token for _, token in report.tokens]
        computed += report.prompt_tokens
    return generated, computed


def test_an_answer_ends_at_its_length_or_at_an_end_token():
    """
    max_tokens gives "length"; a stop token gives "stop" and is not part of the answer.
    """
    _, scheduler = make_scheduler()
    scheduler.submit(make_submit(1, tokens=(5,), max_tokens=3), now_s=0.0)
    scheduler.submit(make_submit(2, tokens=(END - 3,), max_tokens=9), now_s=0.0)

    tokens, ended = run(scheduler)

    assert tokens == {1: [6, 7, 8], 2: [END - 2, END - 1]}
    assert ended == {1: FinishReason.LENGTH, 2: FinishReason.STOP}


def test_a_step_is_launched_before_the_previous_one_is_collected():
    """
    The report covers the previous step; no unneeded step is launched.
    """
    runner, scheduler = make_scheduler()
    scheduler.submit(make_submit(1, tokens=(5,), max_tokens=3), now_s=0.0)

    reports = [scheduler.turn(0.0) for _ in range(4)]

    assert [report.tokens for report in reports] == [[], [(1, 6)], [(1, 7)], [(1, 8)]]
    assert [report.batch for report in reports] == [0, 1, 1, 1]
    assert reports[0].is_beat
    assert (len(runner.steps), runner.overlaps) == (3, 2)
    assert runner.steps[1:] == [Step((), (Decode(0, p),), ()) for p in (1, 2)]


def test_on_a_cpu_a_step_is_collected_in_its_own_turn():
    """
    A launch has computed it.  No row is computed after its end, and no token waits for a turn.
    """
    runner, scheduler = make_scheduler(is_synchronous=True)
    scheduler.submit(make_submit(1, tokens=(5,), max_tokens=3), now_s=0.0)
    scheduler.submit(make_submit(2, tokens=(END - 1,), max_tokens=9), now_s=0.0)

    reports = [scheduler.turn(0.0) for _ in range(3)]

    assert [report.tokens for report in reports] == [[(1, 6)], [(1, 7)], [(1, 8)]]
    assert [report.batch for report in reports] == [2, 1, 1]
    assert [[id for id, _, _ in report.ended] for report in reports] == [[2], [], [1]]
    assert (len(runner.steps), runner.overlaps) == (3, 0)
    assert scheduler.is_idle


def test_an_ended_row_is_computed_once_more_and_discarded():
    """
    Its slot goes to the next request.
    """
    runner, scheduler = make_scheduler(max_requests=1)
    scheduler.submit(make_submit(1, tokens=(END - 1,), max_tokens=9), now_s=0.0)
    scheduler.submit(make_submit(2, tokens=(5,), max_tokens=2), now_s=0.0)

    assert run(scheduler) == ({2: [6, 7]}, {1: FinishReason.STOP, 2: FinishReason.LENGTH})
    assert [step.tokens for step in runner.steps] == [1, 1, 1, 1]


def test_a_request_joins_a_running_batch_without_waiting():
    """
    max_wait_s does not apply while a batch runs: the next step has both.
    """
    runner, scheduler = make_scheduler(max_wait_s=5.0)
    scheduler.submit(make_submit(1, max_tokens=9), now_s=0.0)
    scheduler.turn(1.0)
    assert not runner.steps  # it waits for company
    scheduler.turn(5.0)
    assert len(runner.steps) == 1
    scheduler.submit(make_submit(2), now_s=5.1)
    scheduler.turn(5.1)
    assert (len(runner.steps[1].decodes), len(runner.steps[1].joins)) == (1, 1)
    assert scheduler.turn(5.1).batch == 2


def test_long_prompts_are_chunked_and_never_delay_decodes():
    """
    A step has all decodes and, in arrival order, as many prompt tokens as still fit.
    """
    runner, scheduler = make_scheduler(step_tokens=8)
    scheduler.submit(make_submit(1, tokens=(5,), max_tokens=9), now_s=0.0)
    scheduler.turn(0.0)
    scheduler.submit(make_submit(2, tokens=range(20), max_tokens=2), now_s=0.0)
    scheduler.submit(make_submit(3, tokens=range(50, 56), max_tokens=2), now_s=0.0)

    tokens, _ = run(scheduler)

    assert tokens == {1: list(range(6, 15)), 2: [20, 21], 3: [56, 57]}
    assert all(len(step.decodes) >= 1 for step in runner.steps[1:9])
    sizes = [[len(chunk.tokens) for chunk in step.chunks] for step in runner.steps[1:6]]
    assert sizes == [[7], [7], [6, 1], [5], []]
    assert [chunk.is_last for step in runner.steps[1:5] for chunk in step.chunks] == [
        *(False, False),
        *(True, False),
        True,
    ]
    assert all(step.tokens <= 8 for step in runner.steps)


def test_rows_that_do_not_fit_in_one_step_take_turns():
    """
    With memory for only some rows, all are computed equally often.
    """
    runner, scheduler = make_scheduler(max_requests=4)
    for id in range(4):
        scheduler.submit(make_submit(id, tokens=(20 * id,), max_tokens=18), now_s=0.0)
    scheduler.turn(0.0)
    runner.has_memory = lambda step: step.tokens <= 3

    tokens, _ = run(scheduler)

    assert tokens == {id: list(range(20 * id + 1, 20 * id + 19)) for id in range(4)}
    counts = [0] * 4
    for step in runner.steps[:20]:
        for slot in step.sampled:
            counts[slot] += 1
    assert max(counts) - min(counts) <= 1
    assert scheduler.oom_splits == 1


def test_non_finite_logits_fail_one_request_alone():
    """
    Its neighbours get their usual answers.
    """
    runner, scheduler = make_scheduler()
    runner.broken = {20}
    for id in (1, 2, 3):
        scheduler.submit(make_submit(id, tokens=(10 * id,)), now_s=0.0)

    tokens, ended = run(scheduler)

    assert ended == {1: FinishReason.LENGTH, 2: FinishReason.NONFINITE, 3: FinishReason.LENGTH}
    assert tokens == {1: [11, 12, 13], 3: [31, 32, 33]}


def forget_nothing(allocation):
    pass


def test_pages_with_non_finite_values_are_not_reused():
    """
    The next request with the same prompt recomputes it and is answered.
    """
    runner, scheduler = make_scheduler(page_tokens=2)
    runner.spoils = True
    assert answer(scheduler, 1, [1, 2, 3, 4, 5]) == ([], 5)
    assert answer(scheduler, 2, [1, 2, 3, 4, 5]) == ([6, 7, 8], 5)


def test_non_finite_pages_of_a_cancelled_row_are_not_reused():
    """
    The values arrive after the cancel; the next request with the same prompt recomputes it.
    """
    runner, scheduler = make_scheduler(page_tokens=2)
    runner.spoils = True
    scheduler.submit(make_submit(1, tokens=(1, 2, 3, 4, 5)), now_s=0.0)
    scheduler.turn(0.0)
    scheduler.cancel(1)
    run(scheduler)
    assert answer(scheduler, 2, [1, 2, 3, 4, 5]) == ([6, 7, 8], 5)


def test_a_reused_non_finite_page_would_be_noticed():
    """
    Negative control of the test before.
    """
    runner, scheduler = make_scheduler(page_tokens=2)
    scheduler.allocator.forget = forget_nothing
    runner.spoils = True
    assert answer(scheduler, 1, [1, 2, 3, 4, 5]) == ([], 5)
    assert answer(scheduler, 2, [1, 2, 3, 4, 5]) == ([], 1)


def test_computed_prefixes_are_not_recomputed():
    """
    Neither prompts nor answers that a request continues; the answers stay the same.
    """
    rule = lambda tokens: sum(tokens) % 97  # noqa: E731
    _, scheduler = make_scheduler(page_tokens=2, rule=rule)
    prompt = [3, 1, 4, 1, 5]
    first, computed = answer(scheduler, 1, prompt, max_tokens=4)
    assert computed == 5
    assert answer(scheduler, 2, prompt, max_tokens=4) == (first, 1)
    second, computed = answer(scheduler, 3, [*prompt, *first, 9], max_tokens=2)
    assert computed == 2  # of 10: the 4 pages that are full, and whose tokens were computed
    _, fresh = make_scheduler(page_tokens=2, rule=rule)
    assert answer(fresh, 3, [*prompt, *first, 9], max_tokens=2) == (second, 10)


def test_the_report_counts_computed_cached_and_held():
    """
    Tokens of the reported step; pages as of the end of the turn.
    """
    _, scheduler = make_scheduler(page_tokens=2, pages=11)
    scheduler.submit(make_submit(1, tokens=[1, 2, 3, 4, 5], max_tokens=9), now_s=0.0)
    report = scheduler.turn(0.0)
    assert (report.prompt_tokens, report.pages_used, report.pages) == (0, 7, 10)
    scheduler.submit(make_submit(2, tokens=[1, 2, 3, 4, 6], max_tokens=2), now_s=0.0)
    report = scheduler.turn(0.0)
    assert (report.prompt_tokens, report.cached_tokens, report.pages_used) == (5, 0, 9)
    report = scheduler.turn(0.0)
    assert (report.prompt_tokens, report.cached_tokens, report.pages_used) == (1, 4, 9)
    assert scheduler.turn(0.0).pages_used == 7
    assert scheduler.allocator.hit_tokens == 4


def test_a_launch_that_raises_fails_its_rows_and_not_the_engine():
    """
    The rows of the step fail; waiting requests are served by the next step.
    """
    runner, scheduler = make_scheduler(max_requests=2)
    for id in (1, 2, 3):
        scheduler.submit(make_submit(id), now_s=0.0)
    runner.launch_raises = RuntimeError("out of luck")

    report = scheduler.turn(0.0)

    assert [(id, ending) for id, ending, _ in report.ended] == [(1, "error"), (2, "error")]
    assert "RuntimeError" in report.ended[0][2]
    assert "out of luck" in report.ended[0][2]
    assert run(scheduler) == ({3: [2, 3, 4]}, {3: FinishReason.LENGTH})


def test_a_failed_launch_keeps_answers_that_are_complete():
    """
    The previous step is collected first, so its stop token ends the answer normally.
    """
    runner, scheduler = make_scheduler()
    scheduler.submit(make_submit(1, tokens=(END - 1,), max_tokens=9), now_s=0.0)
    scheduler.submit(make_submit(2, tokens=(5,), max_tokens=9), now_s=0.0)
    scheduler.turn(0.0)
    runner.launch_raises = RuntimeError("out of luck")

    report = scheduler.turn(0.0)

    assert report.tokens == [(2, 6)]
    assert [(id, ending) for id, ending, _ in report.ended] == [(1, "stop"), (2, "error")]


def test_a_failed_collect_fails_the_steps_launched_after_it():
    """
    They may have read its output; waiting requests are served.
    """
    runner, scheduler = make_scheduler(max_requests=2)
    scheduler.submit(make_submit(1), now_s=0.0)
    scheduler.turn(0.0)
    for id in (2, 3):
        scheduler.submit(make_submit(id), now_s=0.0)
    runner.collect_raises = RuntimeError("out of luck")

    report = scheduler.turn(0.0)

    assert [(id, ending) for id, ending, _ in report.ended] == [(1, "error"), (2, "error")]
    assert "out of luck" in report.ended[0][2]
    assert report.batch == 0
    assert run(scheduler) == ({3: [2, 3, 4]}, {3: FinishReason.LENGTH})


def break_at_collect(runner, scheduler):
    scheduler.submit(make_submit(1, [1, 2, 3, 4, 5]), now_s=0.0)
    scheduler.turn(0.0)
    runner.collect_raises = RuntimeError("out of luck")
    scheduler.turn(0.0)


def test_pages_of_a_lost_step_are_not_reused():
    """
    They were registered at its launch, and their content is unknown.
    """
    runner, scheduler = make_scheduler(page_tokens=2)
    break_at_collect(runner, scheduler)
    assert answer(scheduler, 2, [1, 2, 3, 4, 5]) == ([6, 7, 8], 5)


def test_a_reused_page_of_a_lost_step_would_be_noticed():
    """
    Negative control of the test before.
    """
    runner, scheduler = make_scheduler(page_tokens=2)
    scheduler.allocator.clear = lambda: None
    break_at_collect(runner, scheduler)
    scheduler.submit(make_submit(2, [1, 2, 3, 4, 5]), now_s=0.0)
    scheduler.turn(0.0)
    assert scheduler.turn(0.0).ended[0][1] == FinishReason.ERROR  # the fake's assertion


def test_a_step_without_memory_is_computed_in_parts():
    """
    All answers are the same as with memory, and later steps are smaller from the start.
    """
    runner, scheduler = make_scheduler(step_tokens=64)
    runner.has_memory = lambda step: step.tokens <= 10
    for id in range(4):
        scheduler.submit(make_submit(id, tokens=range(13 * id, 13 * id + 13)), now_s=0.0)

    tokens, ended = run(scheduler)

    assert tokens == {id: [13 * id + i for i in (13, 14, 15)] for id in range(4)}
    assert set(ended.values()) == {FinishReason.LENGTH}
    assert sum(step.tokens for step in runner.steps) == 4 * 13 + 4 * 2
    splits = scheduler.oom_splits
    assert splits > 0
    answer(scheduler, 9, range(60))
    assert scheduler.oom_splits == splits


def test_a_split_is_reported_once_and_never_in_a_heartbeat():
    """
    The turn that splits the first step has no news, so the worker need not send it.
    """
    runner, scheduler = make_scheduler()
    scheduler.submit(make_submit(1, tokens=range(16)), now_s=0.0)
    runner.has_memory = lambda step: step.tokens <= 8

    reports = [scheduler.turn(0.0) for _ in range(4)]

    assert scheduler.is_idle
    assert scheduler.oom_splits == 1
    assert reports[0].is_beat
    assert [report.oom_splits for report in reports] == [0, 1, 0, 0]


def test_a_split_is_reported_even_if_every_part_failed():
    """
    The end of the request is the news then.
    """
    runner, scheduler = make_scheduler()
    scheduler.submit(make_submit(1, tokens=range(2)), now_s=0.0)
    runner.has_memory = lambda step: False
    report = scheduler.turn(0.0)
    assert (report.ended[0][1], report.oom_splits) == (FinishReason.ERROR, 1)


def test_steps_grow_again_when_memory_is_back():
    """
    After many turns without a split, up to the configured size.
    """
    runner, scheduler = make_scheduler(step_tokens=32, pages=1024)
    runner.has_memory = lambda step: step.tokens <= 8
    answer(scheduler, 1, range(64))
    runner.has_memory = lambda step: True
    assert max(step.tokens for step in runner.steps) <= 8
    answer(scheduler, 2, [1], max_tokens=2 * REGROW_STEPS)
    runner.steps.clear()
    answer(scheduler, 3, range(100, 164))
    assert max(step.tokens for step in runner.steps) == 32


def test_a_row_that_does_not_fit_alone_fails_alone():
    """
    Its neighbours in the step are computed, and the pages of others stay reusable.
    """
    runner, scheduler = make_scheduler(page_tokens=2)
    answer(scheduler, 1, [1, 2, 3, 4, 5])
    runner.has_memory = lambda step: all(66 not in chunk.tokens for chunk in step.chunks)
    scheduler.submit(make_submit(2, tokens=(60, 63, 66, 67)), now_s=0.0)
    scheduler.submit(make_submit(3, tokens=(1, 2, 3, 4, 9)), now_s=0.0)

    tokens, ended = run(scheduler)

    assert ended == {2: FinishReason.ERROR, 3: FinishReason.LENGTH}
    assert tokens == {3: [10, 11, 12]}
    assert answer(scheduler, 4, [1, 2, 3, 4, 8]) == ([9, 10, 11], 1)


def test_a_deadline_ends_waiting_and_running_requests():
    """
    A late request gets an error, and its row is free for the next.
    """
    runner, scheduler = make_scheduler(max_requests=1)
    scheduler.submit(make_submit(1, max_tokens=99, timeout_s=5.0), now_s=0.0)
    scheduler.submit(make_submit(2, timeout_s=1.0), now_s=0.0)
    scheduler.submit(make_submit(3, tokens=(7,), timeout_s=90.0), now_s=0.0)
    scheduler.turn(0.0)
    assert scheduler.turn(0.0).batch == 1

    assert scheduler.turn(1.0).ended == [(2, FinishReason.EXPIRED, "the request was still queued")]
    report = scheduler.turn(5.0)
    assert report.ended == [(1, FinishReason.EXPIRED, "2 of 99 tokens")]
    assert report.running == 1
    assert [chunk.tokens for chunk in runner.steps[-1].chunks] == [[7]]


def test_a_cancelled_request_is_gone_before_the_next_step():
    """
    Waiting or running; only the step in flight remains, and its output is discarded.
    """
    runner, scheduler = make_scheduler(max_requests=1)
    scheduler.submit(make_submit(1, max_tokens=99), now_s=0.0)
    scheduler.submit(make_submit(2), now_s=0.0)
    scheduler.turn(0.0)
    scheduler.cancel(2)
    scheduler.cancel(1)
    scheduler.cancel(77)  # ended long ago

    assert scheduler.allocator.used == 0
    assert not scheduler.is_idle
    assert scheduler.wait_s(0.0) == 0.0
    report = scheduler.turn(0.0)
    assert (report.tokens, report.ended, report.running, report.waiting) == ([], [], 0, 0)
    assert scheduler.is_idle
    assert len(runner.steps) == 1


def test_a_request_waits_for_free_pages():
    """
    It needs whole pages for prompt and answer; it waits until a row ends.
    """
    runner, scheduler = make_scheduler(max_requests=4, pages=4, page_tokens=4)
    scheduler.submit(make_submit(1, tokens=(1, 2, 3), max_tokens=3), now_s=0.0)
    scheduler.submit(make_submit(2, tokens=(1, 2, 3), max_tokens=3), now_s=0.0)

    _, ended = run(scheduler)

    assert ended == {1: FinishReason.LENGTH, 2: FinishReason.LENGTH}
    assert [len(step.decodes) + len(step.chunks) for step in runner.steps] == [1] * 6


def test_rows_that_share_a_prompt_need_fewer_pages():
    """
    Two rows of five pages run together in an allocator of six, because they share four.
    """
    runner, scheduler = make_scheduler(pages=7, page_tokens=2)
    for id, last in ((1, 50), (2, 70)):
        scheduler.submit(make_submit(id, [1, 2, 3, 4, 5, 6, 7, 8, last], max_tokens=1), now_s=0.0)
        scheduler.turn(0.0)
    first, second = (step.joins[0].pages for step in runner.steps)
    assert first[:4] == second[:4]
    assert run(scheduler)[0] == {2: [71]}


def test_a_request_that_can_never_fit_fails_at_once():
    """
    Otherwise it would block the queue until its deadline.
    """
    _, scheduler = make_scheduler(pages=4, page_tokens=4)
    scheduler.submit(make_submit(1, max_tokens=12), now_s=0.0)
    scheduler.submit(make_submit(2, max_tokens=3), now_s=0.0)
    scheduler.submit(make_submit(3, max_tokens=12), now_s=0.0)
    scheduler.cancel(3)
    assert scheduler.wait_s(0.0) == 0.0
    ((id, ending, detail),) = scheduler.turn(0.0).ended
    assert (id, ending) == (1, FinishReason.ERROR)
    assert "4 pages" in detail
    assert run(scheduler) == ({2: [2, 3, 4]}, {2: FinishReason.LENGTH})


def test_a_request_without_a_seed_gets_a_seed_of_its_own():
    """
    Two requests without a seed sample differently.
    """
    runner, scheduler = make_scheduler()
    for id, seed in enumerate((7, 0, None, None)):
        scheduler.submit(make_submit(id, seed=seed), now_s=0.0)
    scheduler.turn(0.0)
    seeds = [join.params.seed for join in runner.steps[0].joins]
    assert seeds[:2] == [7, 0]
    assert len(set(seeds)) == 4


def test_no_request_joins_while_the_scheduler_is_held():
    """
    Running rows finish, waiting requests may expire; both continue normally afterwards.
    """
    _, scheduler = make_scheduler()
    scheduler.submit(make_submit(1, max_tokens=3), now_s=0.0)
    scheduler.turn(0.0)
    scheduler.hold()
    scheduler.submit(make_submit(2, timeout_s=5.0), now_s=0.0)
    scheduler.submit(make_submit(3, timeout_s=50.0), now_s=0.0)
    ended = []
    while not scheduler.is_quiet:
        ended += scheduler.turn(0.0).ended
    assert ended == [(1, FinishReason.LENGTH, "")]
    assert scheduler.wait_s(1.0) == 4.0
    assert scheduler.turn(5.0).ended == [(2, FinishReason.EXPIRED, "the request was still queued")]
    assert not scheduler.is_idle
    assert scheduler.is_quiet
    scheduler.resume()
    assert scheduler.wait_s(5.0) == 0.0
    assert run(scheduler, 5.0) == ({3: [2, 3, 4]}, {3: FinishReason.LENGTH})


def test_an_idle_engine_may_sleep_and_a_busy_one_may_not():
    """
    No wait while rows run; the batcher's wait while requests are queued; otherwise unbounded.
    """
    _, scheduler = make_scheduler(max_wait_s=5.0)
    assert scheduler.wait_s(0.0) is None
    scheduler.submit(make_submit(1, max_tokens=1), now_s=1.0)
    assert scheduler.wait_s(2.0) == 4.0
    assert scheduler.wait_s(6.0) == 0.0
    scheduler.turn(6.0)
    assert scheduler.wait_s(6.0) == 0.0
    assert scheduler.turn(6.0).ended == [(1, FinishReason.LENGTH, "")]
    assert scheduler.wait_s(6.0) is None


def test_a_queue_behind_a_full_batch_is_served_without_sleep():
    """
    When the last row ends and requests are queued, the next turn is due at once.
    """
    _, scheduler = make_scheduler(max_requests=1, max_wait_s=0.0)
    for id in (1, 2):
        scheduler.submit(make_submit(id, max_tokens=1), now_s=0.0)
    scheduler.turn(0.0)
    assert scheduler.turn(0.0).ended == [(1, FinishReason.LENGTH, "")]
    assert scheduler.wait_s(0.0) == 0.0
    scheduler.turn(0.0)
    assert scheduler.turn(0.0).ended == [(2, FinishReason.LENGTH, "")]
    assert scheduler.wait_s(0.0) is None


# The whole of it, against an oracle: tokens are few, so that prompts begin alike, and each next
# one depends on all before it, so that a page which is not what it should be changes the answer.
STOP_TOKEN, BROKEN_TOKEN = 0, 10


def mix(tokens):
    return zlib.crc32(bytes(tokens)) % 11


def expect(prompt, max_tokens, rule=mix):
    """
    Return the tokens and the ending of an undisturbed answer.
    """
    tokens, generated = list(prompt), []
    while BROKEN_TOKEN not in tokens:
        token = rule(tokens)
        if token == STOP_TOKEN:
            return generated, FinishReason.STOP
        generated.append(token)
        if len(generated) == max_tokens:
            return generated, FinishReason.LENGTH
        tokens.append(token)
    return generated, FinishReason.NONFINITE


def follow(prompt, max_tokens):
    """
    Return a prompt that continues the answer to *prompt*.
    """
    return [*prompt, *expect(prompt, max_tokens)[0], 1]


prompts = st.builds(
    lambda prompt, count: prompt[:count],
    st.sampled_from([[1] * 9, [1, 1, 1, 1, 2, 3, 4, 5, 1], [1, 1, 1, 2, 2, 3, 3, 10, 1]]),
    st.integers(1, 9),
)
requests = st.tuples(
    st.sampled_from([0, 0, 1, 1, 2, 3, 5, 8, 12]),  # arrives
    prompts | st.builds(follow, prompts, st.integers(1, 6)),
    st.integers(1, 6),  # max_tokens
    st.sampled_from([0.5, 3.0, *[500.0] * 6]),  # timeout_s
    st.sampled_from([None] * 6 + [1, 4, 7, 10]),  # cancelled
)
engines = st.fixed_dictionaries(
    {
        "max_requests": st.integers(1, 4),
        "step_tokens": st.sampled_from([3, 5, 8, 30, 1]),
        "max_wait_s": st.sampled_from([0.0, 2.0]),
        "pages": st.integers(8, 30),
        "page_tokens": st.integers(1, 4),
    }
)
accidents = st.fixed_dictionaries(
    {
        "launch_raises": st.sampled_from([None, None, None, 1, 2, 5]),  # at that turn
        "collect_raises": st.sampled_from([None, None, None, 1, 2, 5]),
        "spoils": st.sampled_from([None, None, None, 0, 1, 4]),
        "memory": st.sampled_from([None, None, 1, 3, 5]),  # tokens of a step
    }
)
NO_ACCIDENT = {"launch_raises": None, "collect_raises": None, "spoils": None, "memory": None}


def play(asked, engine, accident):
    """
    Return the outcome of each request; assert the invariants at each turn.
    """
    runner, scheduler = make_scheduler(**engine, rule=mix, stop_token_ids=[STOP_TOKEN])
    runner.broken = {BROKEN_TOKEN}
    if memory := accident["memory"]:
        runner.has_memory = lambda step: step.tokens <= memory
    generated, ended, cancelled = {id: [] for id in range(len(asked))}, {}, set()
    now = 0
    while now <= 16 or not scheduler.is_idle:
        assert now < 2000, "it never ends"
        for id, (at, prompt, more, timeout_s, cancel_at) in enumerate(asked):
            if at == now:
                scheduler.submit(make_submit(id, prompt, more, timeout_s), float(now))
            if cancel_at == now and now > at and id not in ended:
                scheduler.cancel(id)
                cancelled.add(id)
        for name in ("launch_raises", "collect_raises"):
            if accident[name] == now:
                setattr(runner, name, RuntimeError("an accident"))
        runner.spoils = runner.spoils or accident["spoils"] == now
        wait_s = scheduler.wait_s(float(now))
        calls = runner.calls
        report = scheduler.turn(float(now))
        has_acted = runner.calls > calls or report.ended
        assert bool(has_acted) == (wait_s == 0.0)  # neither slept on nor a busy loop
        assert report.running <= engine["max_requests"]
        assert report.pages_used <= report.pages == engine["pages"] - 1
        for id, token in report.tokens:
            assert id not in ended
            assert id not in cancelled
            generated[id].append(token)
        for id, ending, detail in report.ended:
            assert id not in ended
            assert id not in cancelled
            assert "AssertionError" not in detail, detail  # the fake's
            ended[id] = ending
        now += 1
    assert scheduler.allocator.used == 0
    assert scheduler.allocator.room == engine["pages"] - 1
    assert all(step.tokens <= engine["step_tokens"] for step in runner.steps)
    return generated, ended, cancelled


@settings(deadline=None, max_examples=400)
@given(st.lists(requests, min_size=2, max_size=14), engines, accidents)
def test_every_request_is_answered_exactly_once(asked, engine, accident):
    """
    For any arrivals, cancels, failures and deadlines: one outcome each, with correct tokens.
    """
    generated, ended, cancelled = play(asked, engine, accident)

    assert set(ended) | cancelled == set(range(len(asked)))
    for id, (_, prompt, max_tokens, _, _) in enumerate(asked):
        tokens, ending = expect(prompt, max_tokens)
        assert generated[id] == tokens[: len(generated[id])]
        if ended.get(id) in (FinishReason.STOP, FinishReason.LENGTH):
            assert (generated[id], ended[id]) == (tokens, ending)


@settings(deadline=None, max_examples=200)
@given(st.lists(requests, min_size=2, max_size=14), engines, st.sampled_from([None, 1, 2, 5]))
def test_an_answer_does_not_depend_on_its_neighbours(asked, engine, memory):
    """
    Without failures and deadlines, each answer is the same as alone.
    """
    patient = [(at, prompt, more, 5000.0, None) for at, prompt, more, _, _ in asked]
    generated, ended, _ = play(patient, engine, NO_ACCIDENT | {"memory": memory})

    for id, (_, prompt, max_tokens, _, _) in enumerate(patient):
        fits = -(-(len(prompt) + max_tokens) // engine["page_tokens"]) < engine["pages"]
        expected = expect(prompt, max_tokens) if fits else ([], FinishReason.ERROR)
        assert (generated[id], ended[id]) == expected


class Careless(BlockAllocator):
    """
    Makes a page reusable as soon as its tokens are known, although the last one is not computed.
    """

    def register(self, allocation, tokens, computed):
        super().register(allocation, tokens, len(tokens) if computed > 5 else computed)


def test_a_page_reused_too_early_would_be_noticed(monkeypatch):
    """
    Negative control of the two tests before.
    """
    prompt = [1, 1, 1, 2]
    asked = [(0, prompt, 4, 99.0, None), (9, follow(prompt, 4), 2, 99.0, None)]
    engine = {"max_requests": 3, "step_tokens": 30, "max_wait_s": 0.0, "pages": 20}
    engine["page_tokens"] = 2
    assert expect(prompt, 4)[1] is FinishReason.LENGTH
    play(asked, engine, NO_ACCIDENT)
    monkeypatch.setitem(globals(), "BlockAllocator", Careless)
    with pytest.raises(AssertionError):
        play(asked, engine, NO_ACCIDENT)


JOIN = make_join(0, [1, 2])
FIRST = Step((JOIN,), (), (Chunk(0, 0, [1, 2, 3], True),))


@pytest.mark.parametrize(
    "second",
    [
        Step((), (Decode(0, 4),), ()),  # a position is left out
        Step((), (Decode(0, 3), Decode(0, 4)), ()),  # a slot twice
        Step((), (Decode(1, 3),), ()),  # it never joined
        Step((), (), (Chunk(0, 3, [1], True),)),  # its prompt was over
        Step((make_join(1, [2]),), (Decode(0, 3),), (Chunk(1, 0, [1], True),)),  # a page of two
        Step((make_join(1, [2, 3]),), (), (Chunk(1, 2, [1], True),)),  # shared before it's full
        Step((make_join(1, [3, 0]),), (), (Chunk(1, 0, [1], True),)),  # page 0
        Step((make_join(1, [3]),), (), (Chunk(1, 0, [1, 2, 3], True),)),  # beyond its pages
        Step((make_join(1, [1, 3]),), (), (Chunk(1, 1, [1, 2, 3], True),)),  # a part of a page
    ],
)
def test_the_fake_runner_refuses_invalid_steps(second):
    """
    Negative control of all tests that use it.
    """
    runner = FakeRunner(pages=4, page_tokens=2)
    runner.launch(FIRST)
    with pytest.raises(AssertionError):
        runner.launch(second)


def test_the_fake_runner_accepts_valid_steps():
    """
    The other half of the control.
    """
    runner = FakeRunner(pages=4, page_tokens=2)
    runner.launch(FIRST)
    share = Step((make_join(1, [1, 3]),), (Decode(0, 3),), (Chunk(1, 2, [7], True),))
    outcome = runner.launch(share).collect()
    assert outcome.tokens == [5, 8]


@pytest.mark.parametrize("when", ["launch_raises", "collect_raises"])
def test_a_lost_device_ends_the_engine(when):
    """
    Otherwise it would fail every request for ever; systemd restarts the process.
    """
    runner, scheduler = make_scheduler()
    scheduler.submit(make_submit(1), 0.0)
    setattr(runner, when, DeviceLost("an illegal memory access was encountered"))
    if when == "collect_raises":
        scheduler.turn(0.0)  # launches; the next one collects
    with pytest.raises(DeviceLost):
        scheduler.turn(0.0)
