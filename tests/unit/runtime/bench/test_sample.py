import pytest

from runtime.bench.recorder import Launched
from runtime.bench.roofline import model_of
from runtime.bench.sample import (
    Ceilings,
    Run,
    RunSample,
    Spread,
    find_steady,
    make_sample,
    spreads,
)
from runtime.bench.shapes import SHAPES
from runtime.bench.work import WorkItem
from runtime.engines.paged.step import Chunk, Decode, Step

MODEL = model_of(SHAPES["tiny"].config, value_bytes=4)
CEILINGS = Ceilings(copy_gb_s=1.0, read_gb_s=2.0, matmul_tflop_s=0.002)


def launched(done_s, decodes=0, prompt=0):
    rows = tuple(Decode(slot, 10) for slot in range(decodes))
    chunks = (Chunk(decodes, 0, [0] * prompt, is_last=True),) if prompt else ()
    return Launched(Step((), rows, chunks), done_s)


def test_the_steady_part_is_of_full_decodes_only():
    """
    Neither a step with a prompt, nor the one behind it, nor one that most rows have left.
    """
    steps = [
        launched(1.0, prompt=8),
        launched(2.0, decodes=10, prompt=8),
        launched(3.0, decodes=20),
        launched(3.5, decodes=20),
        launched(4.1, decodes=18),
        launched(9.0, decodes=17),
    ]
    found, total_s = find_steady(steps)
    assert found == steps[3:5]
    assert total_s == pytest.approx(1.1)


def test_a_run_without_a_steady_part_has_no_step_time():
    """
    Such as a lone prompt.
    """
    run = Run(2.0, waited_s=1.5, first_s=[2.0], launched=[launched(2.0, prompt=100)])
    sample = make_sample((WorkItem([0] * 100, 1),), run, MODEL, CEILINGS)
    assert sample.step_ms is None
    assert sample.of_copy is None
    assert sample.prefill_tflop_s == 2 * (61440 * 100 + 32768) / 2.0 / 1e12
    assert sample.counted_tflop_s == 2 * 127552 * 100 / 2.0 / 1e12


def test_a_run_is_held_against_the_ceilings():
    """
    Steady steps against each bandwidth; all steps against the roofline of the best.
    """
    steps = [launched(0.1, prompt=10), launched(0.2, decodes=1), launched(0.3, decodes=1)]
    work = (WorkItem([0] * 10, 3),)
    sample = make_sample(work, Run(0.4, 0.1, [0.1], steps), MODEL, CEILINGS)

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


def test_several_runs_have_a_median_and_ends():
    """
    What no run knows is None.
    """
    found = spreads([RunSample(1.0, 30.0), RunSample(1.0, 10.0), RunSample(1.0, 11.0)])
    assert found["tokens_per_s"] == Spread(median=11.0, least=10.0, most=30.0)
    assert found["step_ms"] is None
