import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runtime.__main__ import main
from runtime.contract import EXIT_CONFIG, EXIT_OK
from runtime.engines.base.host_memory import HostMemory
from runtime.engines.paged import device_memory
from runtime.memory.plan import GIB, plan_memory
from runtime.models.loader import read_config
from runtime.server.config import load_config
from tests.unit.runtime.builders import write_model

ROOT = Path(__file__).parents[4]
CUDA = "device: cuda\nprecision: bf16\n"
LARGE = {
    "max_position_embeddings": 4096,
    "num_hidden_layers": 64,
    "num_key_value_heads": 4,
    "vocab_size": 96,
}


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model", **LARGE)


@pytest.fixture
def check(tmp_path, model, monkeypatch, capsys):
    """
    Run the command on a model and a configuration; return its exit code and its output.
    """

    def check(*flags, config=CUDA, model=model):
        (tmp_path / "host.yml").write_text(config)
        files = ["--model", str(model), "--config", str(tmp_path / "host.yml")]
        code = main(["check", *files, *flags])
        return code, *capsys.readouterr()

    def start(*args, **kwargs):
        raise AssertionError("a check starts nothing")

    monkeypatch.setattr(subprocess, "Popen", start)
    # Both are set by a check; they are as before afterwards.
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    see_gpus(monkeypatch)
    return check


def see_gpus(monkeypatch, *memory):
    """
    Make torch report GPUs, given as pairs of free and total bytes.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(memory))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(memory))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: memory[index])


def test_it_writes_no_bytecode_into_the_environment(check):
    """
    Provisioning compares every file of a host's environment; nor do the processes that it starts.
    """
    check("--gpu-memory", "80GiB")
    assert sys.dont_write_bytecode
    assert os.environ["PYTHONDONTWRITEBYTECODE"] == "1"


def test_the_table_shows_the_memory_of_each_part(check, model):
    """
    Weights, cache, activations, the rest, the sum; and the effect of other options.
    """
    code, out, err = check("--gpu-memory", "10GiB")
    assert (code, err) == (EXIT_OK, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if line)
    plan = plan_memory(load_config({}).options, read_config(model), None)
    assert lines["model"] == str(model)
    assert lines["GPU"] == "10.00 GiB  memory_fraction 0.9"
    assert lines["total"].endswith("GiB  of 9.00")
    assert {"weights", "activations", "fixed"} <= lines.keys()
    assert f"of {plan.context_tokens:,}" in out
    assert "of 2,048" in out
    assert out.count("  kv: ") == 9
    assert out.count("* weights: full  kv: same") == 1
    assert "max_batch_requests: 32" in out


def test_the_document_has_the_numbers_of_the_plan(check, model, tmp_path):
    """
    Of this configuration, and of each alternative.
    """
    code, out, err = check("--gpu-memory", "10240MiB", "--json", config=CUDA + "kv: int8\n")
    assert (code, err) == (EXIT_OK, "")
    document = json.loads(out)
    options = load_config({}, [tmp_path / "host.yml"]).options
    plan = plan_memory(options, read_config(model), 10 * GIB)
    assert (document["fits"], document["error"]) == (True, None)
    assert document["gpu"] == {"total_bytes": 10 * GIB, "free_bytes": None}
    assert document["plan"]["kv_bytes"] == plan.kv
    assert document["plan"]["total_bytes"] == plan.total <= document["plan"]["budget_bytes"]
    assert document["plan"]["tokens"] == plan.tokens
    assert document["plan"]["requests_of_context"] == plan.requests_of_context
    answers = {(one["weights"], one["kv"]): one["plan"] for one in document["answers"]}
    assert answers["full", "int8"] == document["plan"]
    assert len(answers) == 9
    assert answers["int4", "same"] is None  # rows of 32 values are no groups


def test_a_model_that_does_not_fit_is_refused_with_alternatives(check):
    """
    Exit code 78; the table shows which options fit, the error which keys to change.
    """
    _, out, _ = check("--gpu-memory", "10GiB", "--json")
    plan = json.loads(out)["plan"]
    row = plan["kv_bytes"] * (1 + 4096 // 64) // plan["pages"]
    # Room for three quarters of the longest request.
    wanted = plan["total_bytes"] - plan["kv_bytes"] + row * 3 // 4
    tight = ("--gpu-memory", f"{wanted / 0.9 / 2**20:.3f}MiB")

    code, out, err = check(*tight)
    assert code == EXIT_CONFIG
    assert "total" not in out
    assert "* weights: full  kv: same  memory: one request of 4096 tokens does not fit" in out
    assert re.search(r"^  weights: full  kv: fp8 .* tokens; requests: ", out, re.MULTILINE)
    what, why, fix = err.splitlines()
    assert what == "memory: one request of 4096 tokens does not fit"
    assert f"its keys and values need {row / GIB:.2f}" in why
    assert "context_tokens: " in fix
    assert "kv: fp8" in fix

    code, out, err = check(*tight, "--json")
    document = json.loads(out)
    assert (code, err, document["fits"], document["plan"]) == (EXIT_CONFIG, "", False, None)
    assert document["error"]["exit_code"] == EXIT_CONFIG
    assert document["error"]["what"] == what

    assert check(*tight, config=CUDA + "kv: fp8\n")[0] == EXIT_OK  # negative control


def test_the_memory_of_a_local_gpu_is_read(check, monkeypatch):
    """
    The smallest of several counts; a flag takes precedence.
    """
    see_gpus(monkeypatch, (10 * GIB, 12 * GIB), (9 * GIB, 10 * GIB))
    code, out, _ = check("--json", config=CUDA + "gpus: 2\n")
    assert (code, json.loads(out)["gpu"]) == (0, {"total_bytes": 10 * GIB, "free_bytes": 9 * GIB})
    _, out, _ = check("--json", "--gpu-memory", "11GiB")
    assert json.loads(out)["gpu"]["total_bytes"] == 11 * GIB


def test_a_gpu_in_use_is_reported_as_full(check, monkeypatch):
    """
    The plan fits the GPU, but not beside the serving slot: the output has both.
    """
    see_gpus(monkeypatch, (12 * GIB, 12 * GIB))
    code, out, _ = check()
    assert "too little" not in out
    see_gpus(monkeypatch, (1 * GIB, 12 * GIB))
    code, out, _ = check()
    assert code == EXIT_OK
    assert "free now        1.00 GiB  too little beside what runs there" in out


def test_on_a_cpu_the_memory_of_the_unit_is_the_limit(check, monkeypatch):
    """
    As the host says it, or a flag; a size of a GPU contradicts it.
    """
    limit = HostMemory(2 * GIB, "/sys/fs/cgroup/unit/memory.max")
    monkeypatch.setattr(device_memory, "read_host_memory", lambda pid: limit)
    small = "context_tokens: 128\n"
    code, out, _ = check(config=small)
    assert code == EXIT_OK
    assert re.search(r"^memory +2.00 GiB  memory_fraction 0.9; /sys/fs/.*max$", out, re.MULTILINE)
    assert re.search(r"^total .* of 1.80$", out, re.MULTILINE)
    assert "GPU" not in out
    _, out, _ = check("--json", config=small)
    assert json.loads(out)["host_memory"] == {"total_bytes": 2 * GIB, "limit": limit.limit}

    code, out, err = check("--memory", "512MiB", config=small)
    assert code == EXIT_CONFIG
    assert "memory: one request of 128 tokens does not fit" in err
    assert "memory_fraction 0.9 of 0.5 GiB (--memory) is 0.45 GiB" in err
    assert "raise memory_max" in err

    monkeypatch.setattr(device_memory, "read_host_memory", lambda pid: None)
    code, out, _ = check(config="max_batch_tokens: 6400\n")
    assert code == EXIT_OK
    assert "held against no limit" in out

    for flags, config in ((("--gpu-memory", "80GiB"), small), (("--memory", "8GiB"), CUDA)):
        code, _, err = check(*flags, config=config)
        assert code == EXIT_CONFIG
        assert flags[0] in err


@pytest.mark.parametrize(
    ("flags", "config", "words"),
    [
        ((), CUDA, ("--gpu-memory: missing", "torch sees 0", "--gpu-memory 80GiB")),
        (("--gpu-memory", "80"), CUDA, ("--gpu-memory 80: not a size", "80GiB")),
        (("--memory", "8GB"), "threads: 2\n", ("--memory 8GB: not a size", "MiB or GiB")),
        (("--gpu-memory", "80GB"), CUDA, ("--gpu-memory 80GB: not a size", "GiB")),
        (("--gpu-memory", "80GiB"), CUDA + "kvv: fp8\n", ("host.yml: kvv", "did you mean kv?")),
        (("--gpu-memory", "80GiB"), "device: cuda\nweights: int8\n", ("weights: int8", "fp32")),
        (("--gpu-memory", "80GiB"), CUDA + "engine: vllm\n", ("engine: vllm", "itself")),
        (("--gpu-memory", "80GiB"), CUDA + "gpus: 3\n", ("3 GPUs", "attention heads")),
        (("--gpu-memory", "80GiB"), CUDA + "weights: int4\n", ("4 bits", "rows of 32")),
    ],
)
def test_an_error_has_what_why_and_fix(check, flags, config, words):
    """
    Exit code 78, as text and as a document.
    """
    code, _, err = check(*flags, config=config)
    assert code == EXIT_CONFIG
    assert all(word in err for word in words), err
    code, out, err = check(*flags, "--json", config=config)
    error = json.loads(out)["error"]
    assert (code, err, error["exit_code"]) == (EXIT_CONFIG, "", EXIT_CONFIG)
    assert words[0] in error["what"]


def test_an_incomplete_model_is_refused(check, model, tmp_path):
    """
    Without its config.json, with an invalid one, without weights, or with a part of them.
    """
    code, _, err = check("--gpu-memory", "10GiB", model=tmp_path / "gone")
    assert (code, "tokenizer.json: can't be read" in err) == (EXIT_CONFIG, True)

    weights = model / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    code, _, err = check("--gpu-memory", "10GiB")
    assert (code, "model.safetensors: can't be read" in err) == (EXIT_CONFIG, True)
    weights.unlink()
    code, _, err = check("--gpu-memory", "10GiB")
    assert (code, "model.safetensors: can't be read" in err) == (EXIT_CONFIG, True)
    weights.write_bytes(data)
    assert check("--gpu-memory", "10GiB")[0] == EXIT_OK  # negative control

    (model / "config.json").write_text('{"architectures": ["Bert"]}')
    code, _, err = check("--gpu-memory", "10GiB")
    assert (code, "Bert" in err) == (EXIT_CONFIG, True)


def test_without_flags_it_reads_the_files_of_the_runtime(tmp_path, model):
    """
    The release's model and both files, in a process of its own; no slot is needed.
    """
    (tmp_path / "config.yml").write_text("version: v1\nmodel_name: lab\ncontext_tokens: 1000\n")
    (tmp_path / "runtime.yml").write_text("max_batch_requests: 3\ncontext_tokens: 2000\n")
    env = {
        "SLIPWAY_RELEASE_DIR": str(tmp_path),
        "SLIPWAY_HOST_CONFIG": str(tmp_path / "runtime.yml"),
        "PATH": "/usr/bin:/bin",
    }
    argv = [sys.executable, "-m", "runtime", "check", "--json"]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (EXIT_OK, "")
    plan = json.loads(done.stdout)["plan"]
    assert (plan["context_tokens"], plan["requests_of_context"]) == (1000, 3)
