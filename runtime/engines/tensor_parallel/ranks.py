"""
Rank 0's view of the other ranks' processes: starts them, sends to them, notices their end.

A lost rank can't be replaced: the others wait for it in the middle of a step.  So the engine
process exits, and systemd restarts the unit.
"""

import contextlib
import logging
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.contract import EXIT_ENGINE
from runtime.contract.errors import ModelError
from runtime.engines.tensor_parallel.pipe import Pipe

log = logging.getLogger("runtime.engine")

LEAVE_S = 1.0  # from the loss of a rank to the engine's exit: time to report why
WORDS_S = 0.2  # for every rank to report what it saw
EXIT_WAIT_S = 2.0


class RankLost(Exception):
    """
    A rank has ended, or is out of step with the others; the engine is about to exit.
    """


class TPWorkers:
    """
    Attributes:
        store: Rendezvous file of the ranks.
    """

    def __init__(self, count: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="slipway-ranks-")
        self.store = str(Path(self._folder.name) / "store")
        self._answers: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._lost: dict[int, str] = {}
        self._is_closing = False
        self._started = [_start(rank, self.store) for rank in range(1, count + 1)]
        for rank, (process, pipe) in enumerate(self._started, 1):
            args = rank, process, pipe
            threading.Thread(target=self._listen, args=args, daemon=True).start()

    def broadcast(self, message: bytes) -> None:
        with self.abort_on_rank_failure():
            self.check()
            for _, pipe in self._started:
                pipe.send(message)

    def gather(self) -> None:
        """
        Wait for one answer of each rank.

        Raises:
            ModelError: A rank could not do it, and has changed nothing.
        """
        answers: list[tuple[Any, ...]] = []
        while len(answers) < len(self._started):
            answers.append(self._answers.get())
            self.check()
        for _, *words in (answer for answer in answers if answer[0] == "fault"):
            if len(words) == 1:
                raise RuntimeError(words[0])
            raise ModelError(words[0], why=words[1], fix=words[2])

    def check(self) -> None:
        """
        Raises:
            RankLost: A rank has ended; with the last words of each.
        """
        if self._lost:
            time.sleep(WORDS_S)
            lost = sorted(self._lost.items())
            raise RankLost("; ".join(f"rank {rank}: {why}" for rank, why in lost))

    @contextlib.contextmanager
    def abort_on_rank_failure(self) -> Iterator[None]:
        """
        Turn any error of the block into RankLost: it comes of the loss of a rank, or causes one.
        """
        try:
            yield
        except RankLost:
            raise
        except Exception as error:
            time.sleep(WORDS_S)
            if not self._lost:
                self._lose(0, f"{type(error).__name__}: {error}")
            self.check()

    def close(self) -> None:
        self._is_closing = True
        for _, pipe in self._started:
            pipe.close()
        for process, _ in self._started:
            try:
                process.wait(EXIT_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def _listen(self, rank: int, process: subprocess.Popen[bytes], pipe: Pipe) -> None:
        words = ""
        while (message := pipe.receive()) is not None:
            if message[0] == "died":
                words = message[1]
            else:
                self._answers.put(message)
        if not self._is_closing:
            status = process.wait()
            killed = f"killed by signal {-status}"
            self._lose(rank, words or (killed if status < 0 else f"exit status {status}"))

    def _lose(self, rank: int, why: str) -> None:
        if not self._lost:
            leave = threading.Timer(LEAVE_S, self._leave)
            leave.daemon = True
            leave.start()
        self._lost[rank] = why
        self._answers.put(("lost",))  # wakes `gather`
        log.error("engine.rank_lost rank=%d why=%s", rank, why)

    def _leave(self) -> None:
        self._folder.cleanup()
        os._exit(EXIT_ENGINE)  # the other ranks die with their parent


def _start(rank: int, store: str) -> tuple[subprocess.Popen[bytes], Pipe]:
    ours, theirs = socket.socketpair()
    with theirs:
        argv = [
            *(sys.executable, "-m", "runtime.engines.tensor_parallel.tp_worker"),
            *("--rank", str(rank), "--store", store),
            *("--fd", str(theirs.fileno()), "--parent", str(os.getpid())),
        ]
        fds = (theirs.fileno(),)
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=fds)
    return process, Pipe(ours)
