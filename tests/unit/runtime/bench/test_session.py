import io
import json

import pytest

from runtime.bench.machine import BenchMachine
from runtime.bench.report import OURS, BenchReport
from runtime.bench.sample import Ceilings, RunSample
from runtime.bench.session import SessionPlan, run_session
from runtime.bench.shapes import SHAPES
from runtime.bench.system import NotInstalled
from runtime.bench.work import LINES

MACHINE = BenchMachine("H100", "570.26", "3.11", "2.11", "13.0", "3.6", "2026-11-24T00:00:00+00:00")
CEILINGS = Ceilings(3025.0, 3100.0, 798.0)


class FakeTimedSystem:
    """
    A timed system whose runs take one second each.

    Attributes:
        ran: For each run, the number of requests and the new tokens of the first one.
        failing: A run of that many requests raises.
    """

    version = "1.0"
    line_s = None

    def __init__(self, failing=(), rate=100.0, note=""):
        self.ran, self.failing, self.rate, self.note = [], failing, rate, note
        self.is_closed = False

    def trim(self, line, work):
        return work, self.note

    def run(self, work):
        assert not self.is_closed
        self.ran.append((len(work), work[0].new_tokens))
        if len(work) in self.failing:
            raise RuntimeError("no room\nfor all of it")
        return RunSample(1.0, self.rate)

    def close(self):
        self.is_closed = True


def run(systems, lines=("batch-1", "batch-8"), runs=3, as_json=True, shape="tiny", device="cpu"):
    out = io.StringIO()
    report = BenchReport(out, as_json=as_json)
    report.begin(MACHINE, CEILINGS, shape, device, seed=0)
    picked = tuple(LINES[name] for name in lines)
    plan = SessionPlan(SHAPES["tiny"], device, picked, runs=runs, runs_mix=1, seed=0)
    progress = []

    def opener(system):
        def open_system(shape, device):
            if isinstance(system, Exception):
                raise system
            return system

        return open_system

    run_session(plan, {k: opener(v) for k, v in systems.items()}, report, progress.append)
    report.end()
    return report, json.loads(out.getvalue()) if as_json else out.getvalue(), progress


def test_a_line_gets_a_warm_up_and_the_requested_runs():
    """
    The warm-up has eight new tokens; mixes have a number of runs of their own.
    """
    ours = FakeTimedSystem()
    run({OURS: ours}, lines=("batch-1", "mix-256"))
    assert ours.ran == [(1, 8), (1, 256), (1, 256), (1, 256), (64, 8), (256, 256)]
    assert ours.is_closed


def test_a_line_that_raises_does_not_stop_the_others():
    """
    Its reason is reported in one line, and it counts as failed.
    """
    report, document, progress = run({OURS: FakeTimedSystem(failing=[1])})
    lines = document["systems"][OURS]["lines"]
    assert lines["batch-1"]["error"] == "RuntimeError: no room"
    assert lines["batch-1"]["tokens_per_s"] is None
    assert lines["batch-8"]["tokens_per_s"]["median"] == 100.0
    assert report.failed == document["failed"] == ["slipway batch-1"]
    assert any("Traceback" in line for line in progress)


def test_a_peer_that_is_not_installed_is_no_failure():
    """
    The table says so; the document has null.
    """
    systems = {OURS: FakeTimedSystem(), "vllm": NotInstalled("vllm")}
    report, document, _ = run(systems)
    assert document["systems"]["vllm"] is None
    assert report.failed == []

    _, text, _ = run(systems | {OURS: FakeTimedSystem()}, as_json=False)
    assert "vllm: not installed here" in text


def test_a_system_that_does_not_open_does_not_stop_the_others():
    """
    The peers are timed even if our engine does not open.
    """
    report, document, _ = run({OURS: ValueError("no GPU"), "vllm": FakeTimedSystem()})
    assert document["systems"][OURS]["error"] == "ValueError: no GPU"
    assert document["systems"]["vllm"]["lines"]["batch-1"]["tokens_per_s"]["median"] == 100.0
    assert document["systems"]["vllm"]["lines"]["batch-1"]["ours_over_peer"] is None
    assert report.failed == [OURS]


def test_a_system_is_closed_before_the_next_one_opens():
    """
    Each has the device's memory for itself.
    """
    ours, order = FakeTimedSystem(), []

    class Late(FakeTimedSystem):
        def run(self, work):
            order.append(ours.is_closed)
            return super().run(work)

    run({OURS: ours, "vllm": Late()})
    assert order
    assert all(order)


def test_a_peer_is_compared_with_ours_of_the_same_session():
    """
    The ratio is above 1 if ours is faster.
    """
    _, document, _ = run({OURS: FakeTimedSystem(rate=150.0), "vllm": FakeTimedSystem(rate=100.0)})
    assert document["systems"]["vllm"]["lines"]["batch-8"]["ours_over_peer"] == 1.5


@pytest.mark.parametrize(
    ("shape", "device", "rate", "ratio"),
    [
        ("glm-4-9b", "cuda", 128.6, 2.0),
        ("glm-4-9b", "cpu", None, None),
        ("tiny", "cuda", None, None),
    ],
)
def test_the_recorded_figure_is_shown_for_the_same_model_on_a_gpu(shape, device, rate, ratio):
    """
    Not for another shape or device.
    """
    _, document, _ = run({OURS: FakeTimedSystem(rate=257.2)}, shape=shape, device=device)
    line = document["systems"][OURS]["lines"]["batch-1"]
    assert line["recorded"] == rate
    assert line["ours_over_recorded"] == ratio


def test_a_slow_peer_gets_fewer_runs_and_a_note():
    """
    The note follows the peer's own note.
    """
    slow = FakeTimedSystem(note="only 6 new tokens each")
    slow.line_s = 0.0
    _, document, _ = run({"transformers": slow}, lines=("batch-1",))
    line = document["systems"]["transformers"]["lines"]["batch-1"]
    assert line["note"] == "only 6 new tokens each; only 1 of 3 runs"
    assert line["runs"] == 1


def test_the_table_shows_machine_results_and_failures():
    """
    The machine comes first, the recorded figure beside each result, the failures last.
    """
    systems = {OURS: FakeTimedSystem(rate=257.2, failing=[8]), "vllm": FakeTimedSystem(rate=100.0)}
    _, text, _ = run(systems, as_json=False, shape="glm-4-9b", device="cuda")
    assert "H100, driver 570.26" in text
    assert "copy 3025 GB/s, read 3100 GB/s, product 798.0 TFLOP/s" in text
    assert "recorded 128.6: 2.00x" in text
    assert "on a card with copy 3025 GB/s, product 798.0 TFLOP/s" in text
    assert "batch-8       FAILED: RuntimeError: no room" in text
    assert "2.57x" in text
    assert text.endswith("failed: slipway batch-8\n")
