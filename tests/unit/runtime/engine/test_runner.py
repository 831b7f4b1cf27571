import random

import pytest
import torch

from runtime.engine.protocol import Ending, Submit
from runtime.engine.runner import DenseRunner
from runtime.engine.scheduler import Capacity, Scheduler
from tests.unit.runtime.builders import make_model

NAN_TOKEN = 299


@pytest.fixture(scope="module")
def model():
    model = make_model()
    model.embedding[NAN_TOKEN] = float("nan")
    return model


def make_prompt(rng):
    return [rng.randrange(NAN_TOKEN) for _ in range(rng.randint(1, 20))]


def generate(model, arrivals, max_rows=8, spoil=None):
    """
    Return tokens and endings of *arrivals*, pairs of step and job, computed as they come.

    Args:
        spoil: Called with the runner before each step.
    """
    runner = DenseRunner(model, max_rows)
    context = model.config.context_tokens
    scheduler = Scheduler(runner, Capacity(max_rows, max_rows * context, 0.0), frozenset())
    tokens, ended = {job.id: [] for _, job in arrivals}, {}
    step = 0
    while len(ended) < len(arrivals):
        for at, job in arrivals:
            if at == step:
                scheduler.submit(job, now_s=0.0)
        if spoil:
            spoil(runner)
        report = scheduler.turn(0.0)
        for id, token in report.tokens:
            tokens[id].append(token)
        ended |= {id: ending for id, ending, _ in report.ended}
        step += 1
    return tokens, ended


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_does_not_depend_on_its_neighbours(model, seed):
    """
    Random company that comes and goes between steps: the same tokens as alone.
    """
    rng = random.Random(seed)
    arrivals = [
        (
            rng.randrange(12),
            Submit(
                id,
                make_prompt(rng),
                max_tokens=rng.randint(1, 15),
                timeout_s=9.0,
                temperature=rng.choice([0.0, 0.8]),
                top_p=rng.choice([1.0, 0.7]),
                seed=id,
            ),
        )
        for id in range(14)
    ]

    together, _ = generate(model, arrivals, max_rows=5)

    alone = {}
    for _, job in arrivals:
        alone |= generate(model, [(0, job)], max_rows=1)[0]
    assert together == alone


def test_a_row_of_nan_fails_alone_and_leaves_nothing_behind(model):
    """
    The neighbours' answers and those of whoever gets its place later are untouched.
    """
    rng = random.Random(7)
    good = [Submit(id, make_prompt(rng), 10, 9.0) for id in range(6)]
    # Longer than the others, so that it writes where nobody else does.
    bad = [Submit(10 + id, [5] * 30 + [NAN_TOKEN], 10, 9.0) for id in range(3)]
    arrivals = [(0, job) for job in (bad[0], good[0], good[1], bad[1], good[2])]
    arrivals += [(1, bad[2]), *((3, job) for job in good[3:])]

    tokens, ended = generate(model, arrivals, max_rows=6)

    assert {id for id, ending in ended.items() if ending == Ending.NONFINITE} == {10, 11, 12}
    for job in good:
        assert tokens[job.id] == generate(model, [(0, job)])[0][job.id]


def test_what_nan_leaves_behind_would_be_noticed(model):
    """
    Negative control: a cache that is not cleaned does break the next request.
    """
    rng = random.Random(7)
    job = Submit(1, make_prompt(rng), 10, 9.0)

    @torch.inference_mode()
    def spoil(runner):
        runner._reserve(1, 64)
        runner._values[:, 0, 40:] = float("nan")

    clean, ended = generate(model, [(0, job)])
    assert ended == {1: Ending.LENGTH}
    _, ended = generate(model, [(0, job), (0, Submit(2, [5] * 45, 5, 9.0))], spoil=spoil)
    assert ended[1] == Ending.NONFINITE
    assert len(clean[1]) == 10


def test_a_failed_step_leaves_an_engine_that_works(model, monkeypatch):
    """
    After an exception within the model the next requests are answered as ever.
    """
    job = Submit(1, [1, 2, 3], 5, 9.0)
    wanted = generate(model, [(0, job)])[0][1]
    runner = DenseRunner(model, max_rows=4)
    scheduler = Scheduler(runner, Capacity(4, 512, 0.0), frozenset())
    scheduler.submit(Submit(0, [1] * 9, 5, 9.0), now_s=0.0)
    scheduler.turn(0.0)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "_angles", lambda *_: 1 / 0)
        assert [id for id, _, _ in scheduler.turn(0.0).ended] == [0]

    scheduler.submit(job, now_s=0.0)
    tokens = []
    while not scheduler.is_idle:
        tokens += [token for _, token in scheduler.turn(0.0).tokens]
    assert tokens == wanted


def test_the_cache_is_zero_wherever_nobody_is(model):
    """
    The invariant of the module: rows that left, and what lies beyond a row's end, hold zeros.
    """
    rng = random.Random(3)
    arrivals = [
        (rng.randrange(10), Submit(id, make_prompt(rng), rng.randint(1, 12), 9.0))
        for id in range(12)
    ]

    def look(runner):
        for cache in (runner._keys, runner._values):
            left = cache.clone()
            for index, row in enumerate(runner._rows):
                left[:, index, : row.length] = 0
            assert not left.any()

    generate(model, arrivals, max_rows=4, spoil=look)


def test_two_seeds_differ_and_one_repeats(model):
    """
    A seed fixes a sampled answer; without one it is free.
    """

    def answer(seed):
        job = Submit(1, [1, 2, 3], 20, 9.0, temperature=2.0, seed=seed)
        return generate(model, [(0, job)])[0][1]

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_the_cache_grows_within_its_bounds(model):
    """
    Neither more rows than the batch may have nor more tokens than the context.
    """
    runner = DenseRunner(model, max_rows=3)
    runner.add([Submit(id, [1] * 100, 28, 9.0) for id in range(3)])
    runner.step()
    assert runner._keys.shape[1:3] == (3, 128)
    assert torch.isfinite(runner._keys).all()
