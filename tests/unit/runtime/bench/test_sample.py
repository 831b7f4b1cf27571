import pytest

from runtime.bench.recorder import LaunchedStep
from runtime.bench.roofline import cost_model
from runtime.bench.sample import (
    Ceilings,
    EngineRun,
    RunSample,
    Spread,
    find_steady,
    make_sample,
    spreads,
)
from runtime.bench.shapes import SHAPES
from runtime.bench.work import WorkItem
from runtime.engines.paged.step import Chunk, Decode, Step

MODEL = cost_model(SHAPES["tiny"].config, value_bytes=4)
CEILINGS = Ceilings(copy_gb_s=1.0, read_gb_s=2.0, matmul_tflop_s=0.002)


def launched(done_s, decodes=0, prompt=0):
    rows = tuple(Decode(slot, 10) for slot in range(decodes))
    chunks = (Chunk(decodes, 0, [0] * prompt, is_last=True),) if prompt else ()
    return LaunchedStep(Step((), rows, chunks), done_s)


def test_steady_steps_are_full_decode_steps():
    """
    A step with a prompt does not count, nor the step after it, nor one with few decodes.
    """
    steps = [
        launched(1.0, prompt=8),
        launched(2.0, decodes=10, prompt=8),
        launched(3.0, decodes=20),
        launched(3.5, decodes=20),
        launched(4.1, decodes=18),
        launched(9.0, decodes=17),
    ]
    steady, total_s = find_steady(steps)
    assert steady == steps[3:5]
    assert total_s == pytest.approx(1.1)


def test_a_run_without_steady_steps_has_no_step_time():
    """
    A lone prompt has no decode step.
    """
    run = EngineRun(2.0, waited_s=1.5, first_s=[2.0], launched=[launched(2.0, prompt=100)])
    sample = make_sample((WorkItem([0] * 100, 1),), run, MODEL, CEILINGS)
    assert sample.step_ms is None
    assert sample.of_copy is None
    assert sample.prefill_tflop_s == 2 * (61440 * 100 + 32768) / 2.0 / 1e12
    assert sample.counted_tflop_s == 2 * 127552 * 100 / 2.0 / 1e12


def test_a_run_is_compared_with_the_ceilings():
    """
    Steady steps with each bandwidth; all steps with the roofline of the best one.
    """
    steps = [launched(0.1, prompt=10), launched(0.2, decodes=1), launched(0.3, decodes=1)]
    work = (WorkItem([0] * 10, 3),)
    sample = make_sample(work, EngineRun(0.4, 0.1, [0.1], steps), MODEL, CEILINGS)

    read_bytes = 4 * (61440 + 576 + 32768) + 10 * 512
    assert sample.tokens_per_s == pytest.approx(3 / 0.4)
    assert sample.step_ms == pytest.approx(100.0)
    assert sample.host_ms == pytest.approx(100.0)
    assert sample.first_ms == sample.last_first_ms == pytest.approx(100.0)
    assert sample.of_copy == pytest.approx(read_bytes / 0.1 / 1e9)
    assert sample.of_read == pytest.approx(sample.of_copy / 2)
    # A decode is bound by reading, the prompt by computing.
    decode_s = read_bytes / 2e9
    prompt_s = (2 * (10 * 38912 + 22528 + 32768) + 55 * 512) / 2e9
    assert sample.of_roofline == pytest.approx((2 * decode_s + prompt_s) / 0.4)
    assert sample.prefill_tflop_s is None


def test_several_runs_give_a_median_a_least_and_a_most():
    """
    A field that no run has is None.
    """
    by_field = spreads([RunSample(1.0, 30.0), RunSample(1.0, 10.0), RunSample(1.0, 11.0)])
    assert by_field["tokens_per_s"] == Spread(median=11.0, least=10.0, most=30.0)
    assert by_field["step_ms"] is None
