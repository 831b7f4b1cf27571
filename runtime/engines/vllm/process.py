"""
`vllm serve` as a child of the API process: arguments, environment, start and end.

It listens on a socket in a directory that only the runtime's user may enter.
"""

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from runtime.contract import ENV_API_TOKENS
from runtime.contract.engine_options import EngineOptions
from runtime.contract.errors import ConfigError, EngineError, RuntimeFault

log = logging.getLogger("runtime.vllm")

_LINE_BYTES = 1 << 14  # a longer line becomes several
_LAST_LINES_S = 1.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # vLLM colours the names of its processes
EXIT_USAGE = 2  # of argparse
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
KV_DTYPES = {"same": "auto", "fp8": "fp8"}


@dataclass(frozen=True, slots=True)
class VllmProcess:
    """
    A started `vllm serve`.

    Attributes:
        socket: It listens there once it has loaded the model.
        model_name: Name of the model in its API.
        log_reader: Copies what it prints into our log.
    """

    process: subprocess.Popen[bytes]
    socket: Path
    model_name: str
    log_reader: threading.Thread | None = None

    def kill(self) -> None:
        """
        Kill it with all processes that it started.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def clear(self) -> None:
        """
        Remove its socket and the directory around it; its last lines are in the log then.
        """
        if self.log_reader is not None:
            self.log_reader.join(timeout=_LAST_LINES_S)
        self.socket.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other files may be in it
            self.socket.parent.rmdir()


@dataclass(frozen=True, slots=True)
class VllmModel:
    """
    The model that a `vllm serve` is started with.

    Attributes:
        runtime_socket: Socket of the runtime, beside which vLLM's own lies; None for a loopback
            port.
    """

    model_dir: Path
    model_name: str
    options: EngineOptions
    runtime_socket: Path | None


def launch_vllm(model: VllmModel, env: Mapping[str, str]) -> VllmProcess:
    """
    Start `vllm serve` of the venv that this process runs in; it loads the release's model.

    Raises:
        ConfigError: The venv has no vLLM, or vLLM lacks a value of `weights` or `kv`.
    """
    program = Path(sys.executable).with_name("vllm")
    if not os.access(program, os.X_OK):
        raise ConfigError(
            "engine: vllm",
            why=f"there is no {program}",
            fix="add vllm to the release's lock, or set engine: slipway",
        )
    socket = _private_socket(model.runtime_socket)
    bound_to_us = [sys.executable, "-m", "runtime.engines.base.pdeathsig", str(os.getpid())]
    process = subprocess.Popen(
        [*bound_to_us, *vllm_argv(model, program, socket)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=vllm_env(env, model.options.threads),
        start_new_session=True,  # a Ctrl-C reaches the runtime alone, which drains first
    )
    assert process.stdout is not None, "stdout=PIPE"
    reader = threading.Thread(
        target=log_lines, args=(process.stdout,), name="vllm-log", daemon=True
    )
    reader.start()
    return VllmProcess(process, socket, model.model_name, reader)


def log_lines(pipe: IO[bytes]) -> None:
    """
    Log each line of *pipe* as text of vLLM, until its end.

    Its lines may hold what a client or a model's file has in it; they are no entries of ours.
    """
    with pipe:
        while line := pipe.readline(_LINE_BYTES):
            text = _COLOUR.sub("", line.decode(errors="replace").rstrip())
            log.info("vllm: %s", text)


def vllm_argv(model: VllmModel, program: Path, socket: Path) -> list[str]:
    """
    Return the command; `vllm_args` override the arguments that follow from other options.

    Raises:
        ConfigError: Only slipway's own engine has the value of `weights` or `kv`.
    """
    options = model.options
    for key, value, known in (
        ("weights", options.weights, ("full",)),
        ("kv", options.kv, tuple(KV_DTYPES)),
    ):
        if value not in known:
            raise ConfigError(
                f"{key}: {value}",
                why="engine: vllm does not support it",
                fix=f"set {key}: {known[0]}, or engine: slipway",
            )
    return [
        *(str(program), "serve", str(model.model_dir)),
        *("--dtype", DTYPES[options.precision]),
        *("--kv-cache-dtype", KV_DTYPES[options.kv]),
        *("--gpu-memory-utilization", str(options.memory_fraction)),
        *("--tensor-parallel-size", str(options.gpus)),
        *("--max-num-seqs", str(options.max_batch_requests)),
        *_given("--max-model-len", options.context_tokens),
        *_given("--max-num-batched-tokens", options.step_tokens),
        # Sampling defaults are the API's; vLLM takes only stop tokens from generation_config.json.
        *("--generation-config", "vllm"),
        "--disable-uvicorn-access-log",  # its health is polled every second
        *options.vllm_args,
        *("--served-model-name", model.model_name),
        *("--uds", str(socket)),
    ]


def vllm_env(env: Mapping[str, str], threads: int) -> dict[str, str]:
    """
    Return *env* without the runtime's own variables, with downloads and usage reports off.
    """
    # The runtime checks API tokens itself; vLLM must not feed the runtime's watchdog.
    theirs = {ENV_API_TOKENS, "VLLM_API_KEY", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}
    return {name: value for name, value in env.items() if name not in theirs} | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        # A slot has only the loopback address; vLLM would look for another.
        "VLLM_HOST_IP": "127.0.0.1",
    }


def why_not_loaded(status: int, exit_reason: str) -> RuntimeFault:
    """
    Return the error of a vLLM that ended before it served.
    """
    if status == EXIT_USAGE:
        return ConfigError(
            "vllm_args: vLLM refused its arguments",
            why=f"vllm serve ended with {exit_reason}",
            fix="see its usage in the unit's log, and correct vllm_args",
        )
    return EngineError(
        "engine: vllm: could not load the model",
        why=f"vllm serve died, {exit_reason}",
        fix="see the lines of vLLM in the unit's log",
    )


def _private_socket(ours: Path | None) -> Path:
    """
    Return a free path beside *ours*, or under the temporary directory for a loopback port.
    """
    if ours is None:
        return Path(tempfile.mkdtemp(prefix="slipway-vllm-")) / "vllm.sock"
    folder = ours.parent / "engine"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "vllm.sock").unlink(missing_ok=True)  # vLLM does not replace a stale socket
    except OSError as error:
        raise ConfigError(
            f"{folder}: can't hold the socket of vLLM",
            why=str(error),
            fix="give a socket in a directory that this user may write",
        ) from error
    return folder / "vllm.sock"


def _given(name: str, value: int | None) -> list[str]:
    return [] if value is None else [name, str(value)]
