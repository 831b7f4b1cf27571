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

from deploy.errors import CommandFailed, LeaseLost, TransportError
from deploy.provision.report import EventKind, ProvisionEvent
from deploy.provision.report_builder import ReportBuilder
from deploy.provision.worker_request import StopOrder, WorkerRequest
from deploy.transport.sudo import kept_password

_ERRORS_MAX = 50  # lines
_END_S = 8.0  # for a worker that was told to end; it takes 5 s at most
_ROOT = Path(__file__).parents[2]


class WorkerInput:
    """
    The standard input of the worker: its request, then orders to stop with one host.

    Orders come from other threads, also before the worker runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._early: list[str] = []
        self._pipe: IO[str] | None = None

    def stop(self, lost: LeaseLost) -> None:
        """
        Let nothing more be changed on the host of *lost*.
        """
        order = StopOrder(host=lost.host or "", what=lost.what, why=lost.why, fix=lost.fix)
        with self._lock:
            self._write(order.model_dump_json() + "\n")

    def begin(self, pipe: IO[str], request: WorkerRequest) -> None:
        """
        Send *request*, and what was ordered until now.
        """
        with self._lock:
            self._pipe = pipe
            self._write(request.model_dump_json() + "\n")
            for line in self._early:
                self._write(line)

    def _write(self, line: str) -> None:
        if self._pipe is None:
            self._early.append(line)
            return
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended; closed
            self._pipe.write(line)
            self._pipe.flush()


def run_worker(
    request: WorkerRequest, builder: ReportBuilder, end_s: float, orders: WorkerInput
) -> None:
    """
    Change the hosts of *request*; every one of them ends as OK or failed in *builder*.

    Where this thread is interrupted, changes that have begun end first, if they do so soon.

    Args:
        end_s: Deadline on the monotonic clock; the worker is killed then.
    """
    worker = start_worker()
    try:
        supervise(worker, request, builder, end_s, orders)
    except KeyboardInterrupt:
        _let_end(worker)
        raise
    finally:
        worker.kill()
        worker.wait()


def _let_end(worker: "subprocess.Popen[str]") -> None:
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(timeout=_END_S)


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
    worker: "subprocess.Popen[str]",
    request: WorkerRequest,
    builder: ReportBuilder,
    end_s: float,
    orders: WorkerInput,
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
        # The password for sudo goes through the pipe: not into arguments, nor the environment.
        sent = request.model_copy(update={"sudo_password": kept_password()})
        orders.begin(worker.stdin, sent)
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
    pairs = fields.get("reboot")
    reboot = tuple((cause, seen) for cause, seen in pairs) if pairs else None
    known = {"kind": EventKind(fields["kind"]), "reboot": reboot}
    builder.add(ProvisionEvent(**fields | known))
    return True


def _kill(worker: "subprocess.Popen[str]", timed_out: threading.Event) -> None:
    timed_out.set()
    worker.kill()


def _drain(pipe: IO[str], into: deque[str]) -> None:
    into.extend(line.rstrip() for line in pipe)
