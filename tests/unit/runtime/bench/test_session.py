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


class FakeSystem:
    """
    Takes a second for each request, or as told.

    Attributes:
        ran: The requests of each run, and the new tokens of the first.
        cursed: Requests of a line that it can't do.
    """

    version = "1.0"
    line_s = None

    def __init__(self, cursed=(), rate=100.0, note=""):
        self.ran, self.cursed, self.rate, self.note = [], cursed, rate, note
        self.is_closed = False

    def trim(self, line, work):
        return work, self.note

    def run(self, work):
        assert not self.is_closed
        self.ran.append((len(work), work[0].new))
        if len(work) in self.cursed:
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
    told = []

    def opener(found):
        def open_system(shape, device):
            if isinstance(found, Exception):
                raise found
            return found

        return open_system

    run_session(plan, {k: opener(v) for k, v in systems.items()}, report, told.append)
    report.end()
    return report, json.loads(out.getvalue()) if as_json else out.getvalue(), told


def test_a_line_is_run_as_often_as_asked_behind_a_warm_up():
    """
    Three times, after eight new tokens; a mix as often as is said of mixes.
    """
    ours = FakeSystem()
    run({OURS: ours}, lines=("batch-1", "mix-256"))
    assert ours.ran == [(1, 8), (1, 256), (1, 256), (1, 256), (64, 8), (256, 256)]
    assert ours.is_closed


def test_a_line_that_raises_does_not_stop_the_others():
    """
    It is reported with its reason, in one line, and counted as failed.
    """
    report, found, told = run({OURS: FakeSystem(cursed=[1])})
    lines = found["systems"][OURS]["lines"]
    assert lines["batch-1"]["error"] == "RuntimeError: no room"
    assert lines["batch-1"]["tokens_per_s"] is None
    assert lines["batch-8"]["tokens_per_s"]["median"] == 100.0
    assert report.failed == found["failed"] == ["slipway batch-1"]
    assert any("Traceback" in line for line in told)


def test_a_peer_that_is_not_installed_is_no_failure():
    """
    It is said in words, and is null in the document.
    """
    systems = {OURS: FakeSystem(), "vllm": NotInstalled("vllm")}
    report, found, _ = run(systems)
    assert found["systems"]["vllm"] is None
    assert report.failed == []

    _, text, _ = run(systems | {OURS: FakeSystem()}, as_json=False)
    assert "vllm: not installed here" in text


def test_a_system_that_does_not_open_stops_no_other():
    """
    Ours too: the peers are timed all the same.
    """
    report, found, _ = run({OURS: ValueError("no GPU"), "vllm": FakeSystem()})
    assert found["systems"][OURS]["error"] == "ValueError: no GPU"
    assert found["systems"]["vllm"]["lines"]["batch-1"]["tokens_per_s"]["median"] == 100.0
    assert found["systems"]["vllm"]["lines"]["batch-1"]["ours_over_peer"] is None
    assert report.failed == [OURS]


def test_the_next_system_is_opened_when_the_last_is_closed():
    """
    Each has the memory of the device for itself.
    """
    ours, order = FakeSystem(), []

    class Late(FakeSystem):
        def run(self, work):
            order.append(ours.is_closed)
            return super().run(work)

    run({OURS: ours, "vllm": Late()})
    assert order
    assert all(order)


def test_ours_is_set_against_a_peer_of_the_same_run():
    """
    Above 1 where ours makes more tokens.
    """
    _, found, _ = run({OURS: FakeSystem(rate=150.0), "vllm": FakeSystem(rate=100.0)})
    assert found["systems"]["vllm"]["lines"]["batch-8"]["ours_over_peer"] == 1.5


@pytest.mark.parametrize(
    ("shape", "device", "rate", "ratio"),
    [
        ("glm-4-9b", "cuda", 128.6, 2.0),
        ("glm-4-9b", "cpu", None, None),
        ("tiny", "cuda", None, None),
    ],
)
def test_what_was_recorded_is_shown_beside_the_same_model_on_a_gpu(shape, device, rate, ratio):
    """
    And nowhere else.
    """
    _, found, _ = run({OURS: FakeSystem(rate=257.2)}, shape=shape, device=device)
    line = found["systems"][OURS]["lines"]["batch-1"]
    assert line["recorded"] == rate
    assert line["ours_over_recorded"] == ratio


def test_a_slow_peer_is_run_less_often_and_that_is_said():
    """
    Beside what it left out itself.
    """
    slow = FakeSystem(note="only 6 new tokens each")
    slow.line_s = 0.0
    _, found, _ = run({"transformers": slow}, lines=("batch-1",))
    line = found["systems"]["transformers"]["lines"]["batch-1"]
    assert line["note"] == "only 6 new tokens each; only 1 of 3 runs"
    assert line["runs"] == 1


def test_the_table_shows_each_result():
    """
    With the machine above, the recorded figure beside it, and what failed below.
    """
    systems = {OURS: FakeSystem(rate=257.2, cursed=[8]), "vllm": FakeSystem(rate=100.0)}
    _, text, _ = run(systems, as_json=False, shape="glm-4-9b", device="cuda")
    assert "H100, driver 570.26" in text
    assert "copy 3025 GB/s, read 3100 GB/s, product 798.0 TFLOP/s" in text
    assert "recorded 128.6: 2.00x" in text
    assert "on a card with copy 3025 GB/s, product 798.0 TFLOP/s" in text
    assert "batch-8       FAILED: RuntimeError: no room" in text
    assert "2.57x" in text
    assert text.endswith("failed: slipway batch-8\n")
