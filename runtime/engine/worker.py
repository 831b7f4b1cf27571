"""
The engine process: `python -m runtime.engine.worker --fd N --parent PID`.

It lives as long as the API process holds the other end of the socket, and no longer.
"""

import argparse
import contextlib
import ctypes
import gc
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from runtime.engine.protocol import (
    Cancel,
    Load,
    Loaded,
    LoadFailed,
    Report,
    Submit,
    ToEngine,
    decode_to_engine,
    encode,
)
from runtime.engine.scheduler import Capacity, Runner, Scheduler
from runtime.errors import RuntimeFault

log = logging.getLogger("runtime.engine")

PR_SET_PDEATHSIG = 1  # Source: prctl(2)


@dataclass(frozen=True, slots=True)
class Opened:
    """
    A model in memory.

    Attributes:
        ends: Token ids that end an answer.
    """

    runner: Runner
    context_tokens: int
    vocabulary: int
    parameters: int
    ends: frozenset[int]


OpenModel = Callable[[Load], Opened]


class Line:
    """
    The engine's end of the socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""

    def send(self, message: Loaded | LoadFailed | Report) -> None:
        # Blocking: an API process that does not read is one that nobody is answered by.
        self._socket.sendall(encode(message))

    def receive(self, wait_s: float) -> list[ToEngine] | None:
        """
        Return what arrived within *wait_s*; None once the API process is gone.
        """
        readable, _, _ = select.select([self._socket], [], [], wait_s)
        if not readable:
            return []
        data = self._socket.recv(1 << 20)
        if not data:
            return None
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [decode_to_engine(line) for line in lines]


class Engine:
    """
    The loop: receive, one turn, report.
    """

    def __init__(self, line: Line, open_model: OpenModel) -> None:
        self._line = line
        self._open_model = open_model
        self._scheduler: Scheduler | None = None
        self._beat_s = 1.0
        self._beat_at_s = 0.0

    def run(self) -> None:
        """
        Serve until the API process is gone.
        """
        while (messages := self._line.receive(self._wait_s())) is not None:
            self._take_in(messages)
            if self._scheduler is None:
                continue
            now_s = time.monotonic()
            report = self._scheduler.turn(now_s)
            if not report.is_beat or now_s >= self._beat_at_s:
                self._beat_at_s = now_s + self._beat_s
                self._line.send(report)

    def _wait_s(self) -> float:
        if self._scheduler is None:
            return self._beat_s
        now_s = time.monotonic()
        until_beat_s = max(self._beat_at_s - now_s, 0.0)
        wait_s = self._scheduler.wait_s(now_s)
        return until_beat_s if wait_s is None else min(wait_s, until_beat_s)

    def _take_in(self, messages: Iterable[ToEngine]) -> None:
        for message in messages:
            match message:
                case Load():
                    self._load(message)
                case Submit():
                    assert self._scheduler is not None, "a request before a model"
                    self._scheduler.submit(message, time.monotonic())
                case Cancel():
                    assert self._scheduler is not None, "a request before a model"
                    self._scheduler.cancel(message.id)

    def _load(self, load: Load) -> None:
        if self._scheduler is not None and not self._scheduler.is_idle:
            self._line.send(
                LoadFailed(
                    f"{load.model_dir}: not loaded",
                    why="requests are running on the model before it",
                    fix="drain first",
                    is_model=False,
                )
            )
            return
        started_s = time.monotonic()
        try:
            opened = self._open_model(load)
        except Exception as error:
            self._line.send(_load_failed(load, error))
            return
        max_tokens = load.max_batch_requests * opened.context_tokens
        capacity = Capacity(
            max_requests=load.max_batch_requests,
            max_tokens=min(load.max_batch_tokens or max_tokens, max_tokens),
            max_wait_s=load.max_wait_s,
        )
        self._scheduler = Scheduler(opened.runner, capacity, opened.ends)
        self._beat_s = load.beat_s
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection looks at it again
        took_s = time.monotonic() - started_s
        self._line.send(Loaded(opened.context_tokens, opened.vocabulary, opened.parameters, took_s))


def _load_failed(load: Load, error: Exception) -> LoadFailed:
    if isinstance(error, RuntimeFault):
        return LoadFailed(error.what, error.why, error.fix, is_model=True)
    log.exception("engine.load_failed model=%s", load.model_dir)
    return LoadFailed(
        f"{load.model_dir}: could not be loaded",
        why=f"{type(error).__name__}: {error}",
        fix="see the traceback in the unit's log",
        is_model=False,
    )


def open_model(load: Load) -> Opened:
    """
    Read the model of *load* with torch.
    """
    # Imported here: the process is under its parent's thumb before the slow import starts.
    from runtime.engine.runner import DenseRunner, prepare_torch
    from runtime.models.loader import load_model

    prepare_torch(load.threads)
    model, config = load_model(load.model_dir, device=load.device, precision=load.precision)
    return Opened(
        runner=DenseRunner(model, max_rows=load.max_batch_requests),
        context_tokens=config.context_tokens,
        vocabulary=config.vocabulary,
        parameters=sum(p.numel() for p in model.parameters()),
        ends=config.ends,
    )


def die_with_parent(parent: int) -> bool:
    """
    Have the kernel kill this process when *parent* dies; False if it already has.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    return os.getppid() == parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="runtime.engine.worker")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    args = parser.parse_args()
    # systemd signals the whole unit; the API process drains first and then hangs up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if not die_with_parent(args.parent):
        return 0
    # Either means that the API process is gone, and with it whoever waited.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Engine(Line(socket.socket(fileno=args.fd)), open_model).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
