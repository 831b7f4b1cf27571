import itertools
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runtime.contract import EXIT_CONFIG
from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ConfigError, EngineError
from runtime.contract.vllm_args import FROM_KEYS, SWITCHES, WITH_VALUE
from runtime.engines.vllm import process as vllm_process
from runtime.engines.vllm.process import VllmModel, launch_vllm, vllm_argv, vllm_env, why_not_loaded

ROOT = Path(__file__).parents[5]
PROGRAM, SOCKET = Path("/venv/bin/vllm"), Path("/run/slipway/blue/engine/vllm.sock")


def make_model(folder, socket="runtime.sock", **options):
    return VllmModel(
        model_dir=folder / "model",
        model_name="lab/tiny",
        options=EngineOptions(**options),
        runtime_socket=folder / socket if socket else None,
    )


def argv(folder, **config):
    return vllm_argv(make_model(folder, **config), PROGRAM, SOCKET)


def test_the_command_line_follows_the_configuration(tmp_path):
    """
    Model, formats, memory, batch and name; the extra arguments come before the runtime's own.
    """
    args = ("--stream-interval=4",)
    command = argv(tmp_path, precision="bf16", max_batch_requests=64, gpus=2, vllm_args=args)
    assert " ".join(command) == (
        f"/venv/bin/vllm serve {tmp_path}/model --dtype bfloat16 --kv-cache-dtype auto"
        " --gpu-memory-utilization 0.9 --tensor-parallel-size 2 --max-num-seqs 64"
        " --generation-config vllm --disable-uvicorn-access-log --stream-interval=4"
        f" --served-model-name lab/tiny --uds {SOCKET}"
    )


@pytest.mark.parametrize(
    ("config", "argument"),
    [
        ({"context_tokens": 4096}, ("--max-model-len", "4096")),
        ({"step_tokens": 512}, ("--max-num-batched-tokens", "512")),
        ({"kv": "fp8"}, ("--kv-cache-dtype", "fp8")),
        ({"precision": "fp16"}, ("--dtype", "float16")),
        ({"memory_fraction": 0.45}, ("--gpu-memory-utilization", "0.45")),
    ],
)
def test_each_key_has_its_argument(tmp_path, config, argument):
    """
    In vLLM's spelling.
    """
    assert argument in itertools.pairwise(argv(tmp_path, **config))
    assert argument not in itertools.pairwise(argv(tmp_path))  # negative control


@pytest.mark.parametrize("config", [{"weights": "int8"}, {"weights": "int4"}, {"kv": "int8"}])
def test_keys_of_slipways_engine_are_refused(tmp_path, config):
    """
    The error has the key and its value; none is ignored silently.
    """
    ((key, value),) = config.items()
    with pytest.raises(ConfigError, match=f"{key}: {value}"):
        argv(tmp_path, **config)


def test_the_environment_has_no_tokens_and_no_watchdog():
    """
    vLLM also downloads nothing and sends no usage statistics.
    """
    ours = {
        "SLIPWAY_API_TOKENS": "s3cret",
        "VLLM_API_KEY": "other",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": "1",
    }
    env = vllm_env(ours | {"HOME": "/var/lib/x", "VLLM_LOGGING_LEVEL": "DEBUG"}, threads=3)
    assert env == {
        "HOME": "/var/lib/x",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
    }


@pytest.fixture
def venv(tmp_path, monkeypatch):
    """
    A bin directory that this process appears to run from, with a `vllm` that does nothing.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    program = folder / "vllm"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(vllm_process.sys, "executable", str(folder / "python"))
    return folder


def end(child):
    child.kill()
    child.process.wait()
    child.clear()


def test_a_venv_without_vllm_is_a_config_error(tmp_path, venv):
    """
    What, why and fix; a restart would not help.
    """
    for spoil in (lambda path: path.chmod(0o644), Path.unlink):
        spoil(venv / "vllm")
        with pytest.raises(ConfigError) as caught:
            launch_vllm(make_model(tmp_path), os.environ)
        error = caught.value
        assert (error.what, error.exit_code) == ("engine: vllm", EXIT_CONFIG)
        assert str(venv / "vllm") in error.why
        assert "lock" in error.fix


def test_its_socket_is_in_a_private_directory(tmp_path, venv):
    """
    Beside the runtime's socket and closed to others; an old socket is removed.
    """
    (tmp_path / "engine").mkdir(mode=0o700)
    (tmp_path / "engine/vllm.sock").write_text("stale")
    child = launch_vllm(make_model(tmp_path), os.environ)
    try:
        assert child.socket == tmp_path / "engine/vllm.sock"
        assert not child.socket.exists()
        assert stat.S_IMODE(child.socket.parent.stat().st_mode) == 0o700
    finally:
        end(child)
    assert not (tmp_path / "engine").exists()


def test_with_a_port_the_socket_is_in_a_temporary_directory(tmp_path, venv):
    """
    For development, without a slot.
    """
    child = launch_vllm(make_model(tmp_path, socket=None), os.environ)
    assert stat.S_IMODE(child.socket.parent.stat().st_mode) == 0o700
    end(child)
    assert not child.socket.parent.exists()


def test_a_socket_directory_that_cannot_be_created_is_named(tmp_path, venv):
    """
    The error has the path and the reason.
    """
    (tmp_path / "engine").write_text("in the way")
    with pytest.raises(ConfigError, match="engine: can't hold the socket"):
        launch_vllm(make_model(tmp_path), os.environ)


@pytest.mark.parametrize("is_quick", [False, True])
def test_it_ends_with_its_parent(tmp_path, is_quick):
    """
    By pdeathsig, also if the parent ended before it was set.
    """
    code = (
        "import os, subprocess, sys\n"
        "parent = os.getppid() if sys.argv[1] == 'True' else os.getpid()\n"
        "argv = [sys.executable, '-m', 'runtime.engines.base.pdeathsig', str(parent), '/bin/cat']\n"
        "subprocess.Popen(argv, stdin=0)\n"
        "sys.stdin.read(1)\n"
    )
    ours, theirs = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code, str(is_quick)], stdin=ours, cwd=ROOT)
    os.close(ours)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    waiting = threading.Event()

    def is_gone(pid):
        path = Path(f"/proc/{pid}/stat")
        return not path.exists() or path.read_text().rsplit(")", 1)[1].split()[0] == "Z"

    def until(condition):
        for _ in range(2000):
            if result := condition():
                return result
            waiting.wait(0.01)
        pytest.fail("the condition timed out")

    child = until(lambda: children.read_text().split())[0]
    if not is_quick:
        name = Path(f"/proc/{child}/comm")
        until(lambda: name.read_text() == "cat\n")
    else:
        until(lambda: is_gone(child))  # its parent is not the one that it was told
    process.kill()
    process.wait()
    until(lambda: is_gone(child))
    os.close(theirs)


@pytest.mark.parametrize(
    ("status", "kind"), [(2, ConfigError), (1, EngineError), (-9, EngineError)]
)
def test_an_exit_before_the_start_is_classified_by_its_status(status, kind):
    """
    A refusal of argparse is a config error; others may succeed after a restart.
    """
    assert type(why_not_loaded(status, "words")) is kind


def test_the_manual_names_each_argument_that_is_accepted():
    """
    For users of `vllm_args`.
    """
    page = (ROOT / "docs/reference/runtime.md").read_text()
    assert [arg for arg in (*WITH_VALUE, *SWITCHES, *FROM_KEYS) if f"`{arg}`" not in page] == []
