import pytest

from runtime.bench.shapes import SHAPES
from runtime.bench.work import LINES, draw, draw_warm_up

LISTED = pytest.mark.parametrize("line", LINES.values(), ids=lambda line: line.name)


def lengths(work):
    return [(len(request.prompt), request.new_tokens) for request in work]


@LISTED
def test_every_request_is_within_the_bounds_of_its_line(line):
    """
    Number of requests, lengths of prompts and answers, and token ids.
    """
    work = draw(line, vocabulary=50, seed=0, run=0)
    assert len(work) == line.requests
    for request in work:
        assert line.prompt_tokens[0] <= len(request.prompt) <= line.prompt_tokens[1]
        assert line.new_tokens[0] <= request.new_tokens <= line.new_tokens[1]
        assert set(request.prompt) <= set(range(50))


def test_the_same_seed_and_run_give_the_same_work():
    """
    All engines run the same work.
    """
    line = LINES["mix-256-both"]
    work = draw(line, vocabulary=1000, seed=1, run=2)
    assert work == draw(line, vocabulary=1000, seed=1, run=2)
    assert work != draw(line, vocabulary=1000, seed=2, run=2)


def test_runs_differ_in_tokens_and_not_in_lengths():
    """
    Their times can be compared, and no prompt repeats.
    """
    line = LINES["mix-256"]
    runs = [draw(line, vocabulary=1000, seed=0, run=run) for run in range(2)]
    assert lengths(runs[0]) == lengths(runs[1])
    starts = {tuple(request.prompt[:64]) for work in runs for request in work}
    assert len(starts) == 2 * line.requests


@LISTED
def test_a_warm_up_is_a_smaller_run_of_the_line(line):
    """
    The first requests with the same lengths, few new tokens, and other prompts.
    """
    warm_up = draw_warm_up(line, vocabulary=1000, seed=0)
    work = draw(line, vocabulary=1000, seed=0, run=0)
    assert len(warm_up) <= 64
    for early, late in zip(warm_up, work, strict=False):
        assert len(early.prompt) == len(late.prompt)
        assert early.prompt != late.prompt
        assert early.new_tokens <= min(8, late.new_tokens)


@LISTED
@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_every_line_fits_every_shape(line, shape):
    """
    The longest prompt and its answer are within the context.
    """
    shrunk = line.shrunk(shape.shrink)
    assert shrunk.requests == line.requests
    assert shrunk.prompt_tokens[1] + shrunk.new_tokens[1] <= shape.context_tokens


@LISTED
def test_every_second_request_of_some_lines_asks_for_more(line):
    """
    The others are greedy, as are all of the other lines.
    """
    work = draw(line, vocabulary=50, seed=0, run=0)
    assert not any(request.sampling for request in work[::2])
    assert all(request.sampling == line.half for request in work[1::2])
    assert bool(line.half) == (
        line.name in ("logprobs-64", "penalties-64", "top-k-64", "schema-64")
    )


def test_the_lines_match_those_of_the_recorded_measurements():
    """
    The table shows these workloads.
    """
    assert [line.workload for line in LINES.values()] == [
        "1 x 256 + 256",
        "8 x 256 + 128",
        "64 x 256 + 128",
        "64 x 256 + 128",
        "64 x 256 + 128",
        "64 x 256 + 128",
        "64 x 256 + 128",
        "64 x 1024 + 256",
        "256 x 256 + 128",
        "256 x 100-1024 + 256",
        "256 x 100-1024 + 100-1024",
        "1 x 8000 + 1",
    ]
