"""
Runs the worker, the process in which pyinfra changes hosts, under a deadline.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO

from deploy.errors import CommandFailed, TransportError
from deploy.provision.report import EventKind, ProvisionEvent
from deploy.provision.report_builder import ReportBuilder
from deploy.provision.worker_request import WorkerRequest
from deploy.transport.sudo import kept_password

_ERRORS_MAX = 50  # lines
_ROOT = Path(__file__).parents[2]


def run_worker(request: WorkerRequest, builder: ReportBuilder, end_s: float) -> None:
    """
    Change the hosts of *request*; every one of them ends as OK or failed in *builder*.

    Args:
        end_s: Deadline on the monotonic clock; the worker is killed then.
    """
    worker = start_worker()
    try:
        supervise(worker, request, builder, end_s)
    finally:
        worker.kill()
        worker.wait()


def start_worker() -> "subprocess.Popen[str]":
    """
    Return a worker that waits for its request on standard input.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.provision.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        start_new_session=True,  # Ctrl-C reaches this process only; closing its input ends it
    )


def supervise(
    worker: "subprocess.Popen[str]", request: WorkerRequest, builder: ReportBuilder, end_s: float
) -> None:
    """
    Send *request* to *worker* and add its events to *builder* until it ends.

    Args:
        end_s: As for `run_worker`.
    """
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stderr is not None
    timed_out = threading.Event()
    timer = threading.Timer(max(0.0, end_s - time.monotonic()), _kill, (worker, timed_out))
    errors: deque[str] = deque(maxlen=_ERRORS_MAX)
    reader = threading.Thread(target=_drain, args=(worker.stderr, errors), daemon=True)
    timer.start()
    reader.start()
    try:
        # Its input stays open: the worker stops when this process ends.
        with contextlib.suppress(BrokenPipeError):
            # The password for sudo goes through the pipe: not into arguments, nor the environment.
            sent = request.model_copy(update={"sudo_password": kept_password()})
            worker.stdin.write(sent.model_dump_json() + "\n")
            worker.stdin.flush()
        for line in worker.stdout:
            if not _take(line, builder):
                errors.append(line.rstrip())
        worker.wait()
    finally:
        timer.cancel()
    reader.join(timeout=1)
    if timed_out.is_set():
        fix = "check the load of the host, then: inv provision"
        builder.fail_rest("the run's deadline passed", fix, TransportError)
    else:
        stderr = " / ".join(line for line in list(errors)[-3:] if line)
        why = f"provisioning failed on this machine, status {worker.returncode} ({stderr})"
        fix = "not a failure of the host: delete .venv, ./inv makes it again from the lock"
        builder.fail_rest(why, fix, CommandFailed)


def _take(line: str, builder: ReportBuilder) -> bool:
    """
    Add the event in *line* to *builder*; False: a library has printed it.
    """
    if not line.startswith(('{"event":', '{"commands":')):
        return False
    document = json.loads(line)
    if "commands" in document:
        count = document["commands"]
        builder.add_commands({count["host"]: count["commands"]})
        return True
    fields = document["event"]
    builder.add(ProvisionEvent(**fields | {"kind": EventKind(fields["kind"])}))
    return True


def _kill(worker: "subprocess.Popen[str]", timed_out: threading.Event) -> None:
    timed_out.set()
    worker.kill()


def _drain(pipe: IO[str], into: deque[str]) -> None:
    into.extend(line.rstrip() for line in pipe)
