import io
import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from runtime.bench.__main__ import main
from runtime.bench.engine import OurEngine
from runtime.bench.sample import Ceilings
from runtime.bench.shapes import SHAPES
from runtime.bench.system import BenchError
from runtime.bench.work import LINES, WorkItem

ROOT = Path(__file__).parents[4]
BARE = """
import runpy, sys
for name in ("fastapi", "pydantic", "yaml", "safetensors", "tokenizers", "transformers", "uvicorn"):
    sys.modules[name] = None  # an import of it fails
sys.argv[1:] = {argv}
runpy.run_module("runtime.bench", run_name="__main__")
"""


def open_tiny():
    return OurEngine(SHAPES["tiny"], "cpu", Ceilings(1.0, 1.0, 1.0))


def run(*argv):
    out, told = io.StringIO(), []
    return main(argv, lambda: out, told.append), out.getvalue(), told


def test_it_runs_on_a_machine_that_has_only_torch():
    """
    All lines, from the command line: one document on standard output, progress beside it.
    """
    code = BARE.format(argv=["--device=cpu", "--runs=1", "--json", "--peer=vllm"])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["failed"] == []
    assert found["shape"] == "tiny"
    assert found["systems"]["vllm"] is None
    lines = found["systems"]["slipway"]["lines"]
    assert list(lines) == list(LINES)
    for name, line in lines.items():
        assert line["error"] is None, name
        assert line["tokens_per_s"]["median"] > 0, name
        assert 0 < line["of_roofline"]["median"] < 1, name
    assert lines["batch-1"]["step_ms"]["median"] > 0
    assert lines["prefill"]["prefill_tflop_s"]["median"] > 0
    assert "slipway: prefill" in done.stderr


def test_lines_and_runs_can_be_picked():
    """
    In the order given.
    """
    code, text, _ = run("--device=cpu", "--lines=batch-8,batch-1", "--runs=2", "--json")
    assert code == 0
    lines = json.loads(text)["systems"]["slipway"]["lines"]
    assert list(lines) == ["batch-8", "batch-1"]
    assert lines["batch-1"]["runs"] == 2


def test_a_line_that_fails_is_exit_code_1(monkeypatch):
    """
    The others are in the table.
    """
    right = OurEngine._drive

    def wrong(self, work):
        if len(work) == 8:
            raise RuntimeError("broken on purpose")
        return right(self, work)

    monkeypatch.setattr(OurEngine, "_drive", wrong)
    code, text, _ = run("--device=cpu", "--lines=batch-8,batch-1", "--runs=1")
    assert code == 1
    assert "FAILED: RuntimeError: broken on purpose" in text
    assert "\nbatch-1 " in text


@pytest.mark.parametrize(
    "flag", ["--lines=batch-7", "--runs=0", "--runs-mix=x", "--peer=sglang", "--device=tpu"]
)
def test_a_wrong_flag_is_refused_before_anything_runs(flag, capsys):
    """
    Exit code 2, as the task expects.
    """
    with pytest.raises(SystemExit) as caught:
        run(flag)
    assert caught.value.code == 2
    assert flag.partition("=")[0] in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    """
    And not replaced by the CPU.
    """
    with pytest.raises(SystemExit) as caught:
        run("--device=cuda")
    assert caught.value.code == 2


def test_an_answer_from_the_prefix_cache_is_no_measurement():
    """
    Two requests of one prompt: the second finds its page.
    """
    engine = open_tiny()
    prompt = list(range(300))
    # The first is computed in the first step, whose pages the second finds in the next.
    work = (WorkItem(prompt, 4), WorkItem(prompt[:100] + prompt, 4), WorkItem(prompt, 4))
    with pytest.raises(BenchError, match="prefix cache"):
        engine.run(work)
    # And the next run is not troubled by it.
    assert engine.run((WorkItem(prompt, 4),)).tokens_per_s > 0
    engine.close()


def test_a_closed_engine_holds_no_memory():
    """
    The peers come after it, on the same device.
    """
    engine = open_tiny()
    runner = weakref.ref(engine._recorder._runner)
    weights = weakref.ref(runner()._model)
    assert weights() is not None
    engine.close()
    assert runner() is None
    assert weights() is None


def test_the_task_passes_its_flags_on():
    """
    And the report and the exit code back; what argparse refuses is a UsageError.
    """
    invoke = [sys.executable, "-m", "invoke", "bench.engine", "--device", "cpu", "--json"]

    def task(*flags):
        return subprocess.run(
            [*invoke, *flags], cwd=ROOT, capture_output=True, text=True, check=False
        )

    done = task("--lines", "batch-1", "--runs", "1")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["systems"]["slipway"]["lines"]) == ["batch-1"]

    done = task("--lines", "nothing")
    assert done.returncode == 19
    assert json.loads(done.stdout)["error"]["kind"] == "UsageError"
