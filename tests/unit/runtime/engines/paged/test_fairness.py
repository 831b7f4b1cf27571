"""
Fairness between keys, with a fake device: time is counted in steps.
"""

import random
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engines.base.protocol import Share
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.fairness import LEFT_FREE, WINDOW_S, FairShares
from runtime.engines.paged.scheduler import Capacity, Scheduler
from runtime.engines.paged.step import StepOutput
from tests.unit.runtime.fakes import FakeRunner
from tests.unit.runtime.requests import make_request

ROWS, STEP_TOKENS, PAGE_TOKENS = 16, 64, 8


class Device:
    """
    Computes nothing, fast: each token is 1.
    """

    def launch(self, step):
        assert step.tokens <= STEP_TOKENS
        count = len(step.sampled)
        output = StepOutput([1] * count, [True] * count)
        return SimpleNamespace(collect=lambda: output, awaits_masks=False)


class Load:
    """
    Requests of keys, and when each ended, in steps.

    Attributes:
        took: Steps from the arrival to the end of each request, by key.
        ended: Ids, in the order of their end.
        tokens: Tokens of prompts and answers that each key got, those of answers twice.
    """

    def __init__(
        self, *, pages=512, step_tokens=STEP_TOKENS, device=None, rows=ROWS, is_synchronous=False
    ):
        allocator = BlockAllocator(pages, PAGE_TOKENS)
        runner = device or FakeRunner(rows, pages, PAGE_TOKENS)
        capacity = Capacity(rows, step_tokens, 0.0)
        self.scheduler = Scheduler(
            runner, capacity, (), allocator, random.Random(1), is_synchronous=is_synchronous
        )
        self.rng = random.Random(2)
        self.step = self.last_id = 0
        self.of, self.began = {}, {}
        self.took, self.tokens, self.ended = {}, {}, []

    def send(self, share, prompt=16, answer=32, priority=0):
        self.last_id += 1
        id, base = self.last_id, 1000 * self.last_id
        request = make_request(id, range(base, base + prompt), answer, 1e9)
        request = replace(request, share=share, priority=priority)
        self.scheduler.submit(request, float(self.step) / 100)
        self.of[id], self.began[id] = share.key, self.step

    def turn(self):
        report = self.scheduler.turn(float(self.step) / 100)
        self.step += 1
        for id, _ in report.tokens:
            key = self.of[id]
            self.tokens[key] = self.tokens.get(key, 0) + 2
        for id, _, _ in report.ended:
            self.ended.append(id)
            self.took.setdefault(self.of[id], []).append(self.step - self.began[id])

    def waiting(self, key):
        return self.scheduler._queue.count(key)

    def p99(self, key):
        took = sorted(self.took[key])
        return took[int(0.99 * (len(took) - 1) + 0.5)]


POLITE, FLOOD = Share("polite"), Share("flood")


def steps_of_a_request(*, is_synchronous, has_flood):
    """
    Return how many steps of two rows are computed from the arrival of a request to its end.
    """
    steps = []

    class Counted(Device):
        def launch(self, step):
            steps.append(step)
            return super().launch(step)

    load = Load(device=Counted(), rows=2, is_synchronous=is_synchronous)
    for _ in range(7):
        if has_flood and load.waiting("flood") < 8:
            load.send(FLOOD, 16, 32)
        load.send(Share("other"), 4, 1)  # the keys share
        load.turn()
    while len(load.took.get("other", ())) < 7:
        load.turn()
    began = len(steps)
    load.send(POLITE, 16, 16)
    while "polite" not in load.took:
        load.turn()
    return len(steps) - began


def polite_p99(*floods, steps=2500):
    """
    Return the 99th percentile of a key that sends one request every 20 steps or so, beside keys
    that always have 40 requests waiting.
    """
    load = Load(device=Device())
    next_at = 5
    for _ in range(steps):
        for share in floods:
            while load.waiting(share.key) < 40:
                load.send(share, load.rng.randint(4, 60), load.rng.randint(4, 60))
        if load.step >= next_at:
            load.send(POLITE)
            next_at += load.rng.randint(10, 30)
        load.turn()
    assert len(load.took["polite"]) > 100
    return load.p99("polite")


def test_on_a_cpu_a_flood_adds_no_step_to_a_request():
    """
    On a GPU, where steps are launched ahead, it adds one that overlaps with the last.
    """
    for is_synchronous, more in ((True, 0), (False, 1)):
        alone = steps_of_a_request(is_synchronous=is_synchronous, has_flood=False)
        beside = steps_of_a_request(is_synchronous=is_synchronous, has_flood=True)
        assert (alone, beside) == (16, 16 + more)


def test_a_flood_moves_the_p99_of_another_key_by_a_fifth_at_most():
    alone = polite_p99()
    beside = polite_p99(FLOOD)
    assert beside <= 1.2 * alone, (beside, alone)


def test_the_control_without_keys_waits_for_the_flood():
    """
    The same requests with one key for all: first come, first served.
    """
    alone = polite_p99()
    beside = polite_p99(replace(FLOOD, key="polite"))
    assert beside > 3 * alone


def test_several_floods_are_no_worse_than_one():
    alone = polite_p99()
    beside = polite_p99(*(Share(f"flood{n}") for n in range(3)))
    assert beside <= 1.2 * alone, (beside, alone)


def test_long_prompts_of_a_flood_do_not_hold_up_the_prompts_of_others():
    """
    The budget of a step goes to the key that got least; its own prompts share what is left.
    """
    load = Load()
    load.send(POLITE, answer=2)
    while not load.took:
        load.turn()
    for _ in range(8):
        load.send(FLOOD, prompt=600, answer=4)
    load.turn()
    load.send(POLITE, prompt=16, answer=8)
    began = load.step
    while len(load.took.get("polite", ())) < 2:
        load.turn()
        assert load.step < began + 200
    assert load.took["polite"][1] <= 12


@pytest.mark.parametrize(("one", "other", "ratio"), [(1, 1, 1.0), (3, 1, 3.0)])
def test_keys_that_always_wait_get_tokens_by_their_weights(one, other, ratio):
    load = Load()
    shares = Share("one", one), Share("other", other)
    for _ in range(1200):
        for share in shares:
            while load.waiting(share.key) < 10:
                load.send(share, load.rng.randint(4, 30), load.rng.randint(4, 30))
        load.turn()
    assert load.tokens["one"] / load.tokens["other"] == pytest.approx(ratio, rel=0.25)


def test_a_key_of_a_lower_number_goes_first():
    load = Load()
    for _ in range(60):
        load.send(Share("batch", priority=9))
        load.send(Share("web", priority=1))
    while len(load.took.get("web", ())) < 60:
        load.turn()
    assert len(load.took.get("batch", ())) < 30


@pytest.mark.parametrize("others", [(), (POLITE,)])
def test_requests_of_one_key_go_by_their_priority(others):
    """
    Those of the same number by their arrival.
    """
    load = Load(pages=1 + 3)  # room for one at a time
    for share in others:
        load.send(share, prompt=4, answer=20)
    numbers = [0, 5, -3, 0, 5, -3, 100, -100]
    for number in numbers:
        load.send(FLOOD, prompt=4, answer=20, priority=number)
    while not load.scheduler.is_idle:
        load.turn()
    ended = [id for id in load.ended if load.of[id] == "flood"]
    order = sorted(range(len(numbers)), key=lambda n: (numbers[n], n))
    assert [id - len(others) - 1 for id in ended] == order


def test_a_prompt_of_a_lower_number_goes_before_one_that_is_half_computed():
    load = Load()
    load.send(FLOOD, prompt=60 * 8, answer=1)
    load.turn()
    load.send(FLOOD, prompt=16, answer=1, priority=-1)
    while not load.ended:
        load.turn()
    assert load.ended == [2]
    assert load.step <= 5


def test_a_client_never_puts_its_requests_ahead_of_another_key():
    """
    Whatever it writes; it may put them behind.
    """

    def order(priority):
        load = Load(device=Device())
        for _ in range(40):
            load.send(FLOOD, priority=priority)
            load.send(POLITE)
        while not load.scheduler.is_idle:
            load.turn()
        first = [load.of[id] for id in load.ended[:40]]
        return first.count("flood")

    assert 10 <= order(0) <= 22
    assert order(-100) == order(0)
    assert order(1) < 10


def test_a_client_reaches_no_level_that_its_key_does_not_have():
    """
    So an operator who lets one choose gives its key a low number.
    """
    assert Share("a", priority=5).level(-100) == 5
    assert Share("a", priority=0).level(3) == Share("b", priority=3).level(0)


def test_one_key_alone_gets_the_whole_batch():
    """
    A place is left free only while another key is in use.
    """
    load = Load()
    for _ in range(40):
        load.send(FLOOD, prompt=1)
    for _ in range(4):
        load.turn()
    assert len(load.scheduler._running) == ROWS

    load.send(POLITE, prompt=1)  # now several are in use
    for _ in range(60):
        load.turn()
    held = sum(seq.request.share == FLOOD for seq in load.scheduler._running.values())
    assert 0 < held < ROWS


@pytest.mark.parametrize("has_other", [False, True])
def test_a_key_holds_no_more_rows_than_it_may(has_other):
    """
    Alone and beside another key; what waits joins as its own answers end.
    """
    load, limited = Load(), replace(FLOOD, concurrency=3)
    for number in range(40):
        load.send(limited, prompt=1, answer=8)
        if has_other and number < 8:
            load.send(POLITE, prompt=1, answer=8)
    most = 0
    while not load.scheduler.is_idle:
        load.turn()
        running = load.scheduler._running.values()
        most = max(most, sum(seq.request.share == limited for seq in running))
    assert most == 3
    assert len(load.took["flood"]) == 40
    if has_other:
        assert max(load.took["polite"]) < min(20, max(load.took["flood"]))


def test_a_key_that_was_away_gets_nothing_for_that_time():
    shares = FairShares(4)
    shares.arrive(FLOOD, 0.0)
    shares.arrive(POLITE, 0.0)
    shares.leave_queue(POLITE)
    shares.charge(FLOOD, 1000)
    shares.arrive(POLITE, 1.0)
    assert shares.rank(POLITE)[1] == shares.rank(FLOOD)[1] == 1000


def test_keys_that_are_long_gone_are_forgotten():
    shares = FairShares(4)
    for number in range(100):
        shares.arrive(Share(f"k{number}"), 0.0)
        shares.leave_queue(Share(f"k{number}"))
    assert shares.is_shared
    shares.arrive(FLOOD, WINDOW_S + 1)
    assert not shares.is_shared
    assert len(shares._served) <= 2
    assert dict(shares._waiting) == {"flood": 1}


def test_a_key_that_waits_is_not_forgotten():
    shares = FairShares(4)
    shares.arrive(POLITE, 0.0)
    shares.arrive(FLOOD, WINDOW_S + 1)
    assert shares.is_shared


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 64])
def test_a_key_always_has_a_row_and_leaves_one(rows):
    shares = FairShares(rows)
    shares.arrive(FLOOD, 0.0)
    shares.arrive(POLITE, 0.0)
    held = 0
    while held < rows and shares.may_join(FLOOD, {}, 1, 10_000):
        shares.join(FLOOD, 1)
        held += 1
    assert held == max(1, rows * LEFT_FREE // (LEFT_FREE + 1)) if rows > 1 else held == 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_mix_of_keys_ends_every_request_and_leaves_no_page(data):
    """
    Also with cancelled requests, few pages and small steps; the fake device checks each step.
    """
    load = Load(pages=data.draw(st.integers(20, 60)), step_tokens=data.draw(st.integers(17, 40)))
    keys = [Share("", 1), Share("a", 1, 5), Share("b", 3, 5), Share("c", 1, 2)]
    keys.append(Share("d", 2, 5, data.draw(st.integers(1, 3))))
    live = deque()
    for _ in range(data.draw(st.integers(1, 40))):
        share = data.draw(st.sampled_from(keys))
        prompt, answer = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 20))
        load.send(share, prompt, answer, data.draw(st.sampled_from([0, 0, -5, 3])))
        live.append(load.last_id)
        if data.draw(st.booleans()):
            load.turn()
        assert load.scheduler.shares._slots.get("d", 0) <= keys[-1].concurrency
        if data.draw(st.integers(0, 5)) == 0:
            load.scheduler.cancel(live.popleft())
    turns = 0
    while not load.scheduler.is_idle:
        load.turn()
        turns += 1
        assert turns < 5000
        assert load.scheduler.shares._slots.get("d", 0) <= keys[-1].concurrency
    assert load.scheduler.allocator.used == 0
    assert load.scheduler.shares._slots == {}
    assert load.scheduler.shares._waiting == {}
    assert load.scheduler._queue._lines._lines == {}
    assert not load.scheduler._queue.has_priorities


def test_a_client_that_leaves_frees_its_pages_within_a_step():
    """
    The next step may use them.
    """
    load = Load(pages=12)
    load.send(FLOOD, prompt=40, answer=40)
    load.turn()
    load.send(POLITE, prompt=40, answer=40)
    load.turn()
    assert len(load.scheduler._running) == 1
    load.scheduler.cancel(1)
    load.turn()
    assert [seq.request.id for seq in load.scheduler._running.values()] == [2]


def test_the_cached_tokens_of_a_prompt_are_reported_before_its_end():
    """
    Once, and for the request that found them.
    """
    load, reports = Load(), []
    for id in (1, 2):
        request = make_request(id, range(40), 2, 1e9)
        load.scheduler.submit(replace(request, share=POLITE), 0.0)
        while not load.scheduler.is_idle:
            reports.append(load.scheduler.turn(0.0))
    sent = [report for report in reports if not report.is_beat]
    found = [pair for report in sent for pair in report.cached]
    assert found == [(2, 32)]
    ends = [number for number, report in enumerate(sent) if any(e[0] == 2 for e in report.ended)]
    assert any((2, 32) in report.cached for report in sent[: ends[0] + 1])
