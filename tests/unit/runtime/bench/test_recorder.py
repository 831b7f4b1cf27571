from itertools import count
from random import Random

import pytest

from runtime.bench.recorder import Recorder
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.scheduler import Capacity, Scheduler
from tests.unit.runtime.fakes import FakeRunner
from tests.unit.runtime.requests import make_request


def make_recorder(**options):
    ticks = count()
    return Recorder(FakeRunner(**options), clock=lambda: float(next(ticks)))


def run(recorder, workload, step_tokens=8, max_requests=4):
    runner = recorder._runner
    scheduler = Scheduler(
        recorder,
        Capacity(max_requests, step_tokens, max_wait_s=0.0),
        frozenset(),
        BlockAllocator(runner.pages, runner.page_tokens),
        Random(0),
    )
    for id, (prompt, new) in enumerate(workload):
        scheduler.submit(make_request(id, [100 * id + n for n in range(prompt)], new, 1e9), 0.0)
    while not scheduler.is_idle:
        scheduler.turn(0.0)


@pytest.mark.parametrize("is_short", [False, True])
def test_every_token_is_counted_once(is_short):
    """
    Every prompt token and every new token but the last, which is sampled and never computed; also
    when memory is short and steps are launched in parts.
    """
    workload = [(5, 4), (13, 1), (1, 7), (9, 3), (4, 5), (2, 2)]
    recorder = make_recorder()
    if is_short:
        recorder._runner.has_memory = lambda step: step.tokens <= 3

    run(recorder, workload)

    steps = [entry.step for entry in recorder.launched]
    assert steps == recorder._runner.steps
    chunks = [chunk for step in steps for chunk in step.chunks]
    assert sum(len(chunk.tokens) for chunk in chunks) == sum(prompt for prompt, _ in workload)
    assert sum(len(step.decodes) for step in steps) == sum(new - 1 for _, new in workload)
    assert sum(len(step.sampled) for step in steps) == sum(new for _, new in workload)


def test_every_step_has_an_end_time():
    """
    Steps end in the order of their launch.
    """
    recorder = make_recorder()
    run(recorder, [(5, 4), (3, 2)])
    ends = [entry.done_s for entry in recorder.launched]
    assert ends == sorted(ends)


def test_only_waiting_for_the_device_is_counted():
    """
    The fake clock advances by one at each reading: before and after each collect.
    """
    recorder = make_recorder()
    run(recorder, [(5, 4)])
    assert recorder.waited_s == len(recorder.launched)

    recorder.clear()
    assert recorder.launched == []
    assert recorder.waited_s == 0.0


def test_a_step_whose_launch_raises_is_not_recorded():
    """
    It computed nothing.
    """
    recorder = make_recorder()
    recorder._runner.launch_raises = ValueError("broken")
    run(recorder, [(5, 4)])
    assert recorder.launched == []
