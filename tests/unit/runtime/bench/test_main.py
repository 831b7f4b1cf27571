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
    out, progress = io.StringIO(), []
    return main(argv, lambda: out, progress.append), out.getvalue(), progress


def test_it_needs_no_package_but_torch():
    """
    All lines but that with a grammar run: one document on standard output, progress on the other.
    """
    code = BARE.format(argv=["--device=cpu", "--runs=1", "--json", "--peer=vllm"])
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    document = json.loads(process.stdout)
    assert document["failed"] == []
    assert document["shape"] == "tiny"
    assert document["systems"]["vllm"] is None
    lines = document["systems"]["slipway"]["lines"]
    assert list(lines) == [name for name in LINES if name != "schema-64"]
    for name, line in lines.items():
        assert line["error"] is None, name
        assert line["tokens_per_s"]["median"] > 0, name
        assert 0 < line["of_roofline"]["median"] < 1, name
    assert lines["batch-1"]["step_ms"]["median"] > 0
    assert lines["prefill"]["prefill_tflop_s"]["median"] > 0
    assert "slipway: prefill" in process.stderr


def test_lines_run_in_the_order_of_the_flag():
    """
    Each as often as --runs says.
    """
    code, text, _ = run("--device=cpu", "--lines=batch-8,batch-1", "--runs=2", "--json")
    assert code == 0
    lines = json.loads(text)["systems"]["slipway"]["lines"]
    assert list(lines) == ["batch-8", "batch-1"]
    assert lines["batch-1"]["runs"] == 2


def test_a_failed_line_gives_exit_code_1(monkeypatch):
    """
    The other lines still run and are in the table.
    """
    original = OurEngine._drive

    def drive(self, work):
        if len(work) == 8:
            raise RuntimeError("broken on purpose")
        return original(self, work)

    monkeypatch.setattr(OurEngine, "_drive", drive)
    code, text, _ = run("--device=cpu", "--lines=batch-8,batch-1", "--runs=1")
    assert code == 1
    assert "FAILED: RuntimeError: broken on purpose" in text
    assert "\nbatch-1 " in text


@pytest.mark.parametrize(
    "flag", ["--lines=batch-7", "--runs=0", "--runs-mix=x", "--peer=sglang", "--device=tpu"]
)
def test_a_wrong_flag_is_refused_before_anything_runs(flag, capsys):
    """
    The exit code is 2, which the task maps to a UsageError.
    """
    with pytest.raises(SystemExit) as caught:
        run(flag)
    assert caught.value.code == 2
    assert flag.partition("=")[0] in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused():
    """
    The CPU does not replace it silently.
    """
    with pytest.raises(SystemExit) as caught:
        run("--device=cuda")
    assert caught.value.code == 2


def test_a_prefix_cache_hit_fails_the_run():
    """
    Two requests share a prompt, so the second one reuses a block.
    """
    engine = open_tiny()
    prompt = list(range(300))
    # The first step computes the first prompt; the next step reuses its blocks.
    work = (WorkItem(prompt, 4), WorkItem(prompt[:100] + prompt, 4), WorkItem(prompt, 4))
    with pytest.raises(BenchError, match="prefix cache"):
        engine.run(work)
    # The next run starts with an empty cache.
    assert engine.run((WorkItem(prompt, 4),)).tokens_per_s > 0
    engine.close()


def test_a_closed_engine_holds_no_memory():
    """
    The peers run after it on the same device.
    """
    engine = open_tiny()
    runner = weakref.ref(engine._recorder._runner)
    weights = weakref.ref(runner()._model)
    assert weights() is not None
    engine.close()
    assert runner() is None
    assert weights() is None


def test_the_task_passes_flags_report_and_exit_code_on():
    """
    A flag that argparse refuses is a UsageError.
    """
    invoke = [sys.executable, "-m", "invoke", "bench.engine", "--device", "cpu", "--json"]

    def task(*flags):
        return subprocess.run(
            [*invoke, *flags], cwd=ROOT, capture_output=True, text=True, check=False
        )

    process = task("--lines", "batch-1", "--runs", "1")
    assert process.returncode == 0, process.stderr
    assert list(json.loads(process.stdout)["systems"]["slipway"]["lines"]) == ["batch-1"]

    process = task("--lines", "nothing")
    assert process.returncode == 19
    assert json.loads(process.stdout)["error"]["kind"] == "UsageError"
