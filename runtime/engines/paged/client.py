"""
The API's end of the engine: token ids in, token ids out, on asyncio.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.contract.errors import EngineError, ModelError
from runtime.engines.base.in_flight import Answer, Answers
from runtime.engines.base.protocol import (
    Cancel,
    Ending,
    FromEngine,
    Load,
    Loaded,
    LoadFailed,
    Report,
    Submit,
    Swap,
    ToEngine,
    decode_from_engine,
    encode,
)

LINE_LIMIT_BYTES = 64 << 20
EXIT_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Child:
    """
    A started engine process and our end of its socket.
    """

    process: subprocess.Popen[bytes]
    socket: socket.socket


def launch(threads: int) -> Child:
    """
    Start an engine process; it imports torch while the caller does other things.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        argv = [
            *(sys.executable, "-m", "runtime.engines.paged.worker"),
            *("--fd", str(theirs.fileno()), "--parent", str(os.getpid())),
        ]
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        # It reports on the socket; it must not feed the watchdog past the API process.
        env.pop("NOTIFY_SOCKET", None)
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=env
        )
    return Child(process, ours)


class EngineClient:
    """
    Submits, cancels, and hands out what the engine reports.

    Attributes:
        last: The newest report; None before the first.
        died: Done once the engine process is gone, whatever the reason.
        exit_words: How it went, once it has.

    Args:
        on_report: Called with each report, beats included.
    """

    def __init__(self, child: Child, on_report: Callable[[Report], None]) -> None:
        self.last: Report | None = None
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.exit_words = ""
        self._child = child
        self._on_report = on_report
        self._answers = Answers()
        self._loading: asyncio.Future[Loaded | LoadFailed] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(
            sock=self._child.socket, limit=LINE_LIMIT_BYTES
        )
        self._reading = asyncio.create_task(self._read(reader))

    @property
    def in_flight(self) -> int:
        return len(self._answers)

    async def load(self, load: Load) -> Loaded:
        """
        Have the engine read a model: the first one, or another in its place once drained.

        Raises:
            ModelError: The directory is at fault; the model before it still serves.
            EngineError: Anything else.
        """
        return await self._ask(load)

    async def swap(self, model_dir: str) -> Loaded:
        """
        Have the engine exchange its weights for those of *model_dir*, of the same shapes.

        Whoever runs finishes on the old ones, whoever waits is computed with the new.

        Raises:
            ModelError: The directory is at fault; the old weights still serve.
            EngineError: Anything else.
        """
        return await self._ask(Swap(model_dir))

    async def _ask(self, message: Load | Swap) -> Loaded:
        if self._loading is not None and not self._loading.done():
            raise EngineError(
                f"{message.model_dir}: not loaded",
                why="another load or swap is under way",
                fix="try again when it is done",
            )
        self._loading = asyncio.get_running_loop().create_future()
        self._send(message)
        await asyncio.wait((self._loading, self.died), return_when=asyncio.FIRST_COMPLETED)
        if not self._loading.done():
            raise EngineError(
                f"{message.model_dir}: could not be loaded",
                why=f"the engine died, {self.exit_words}",
                fix="see the lines of the engine in the unit's log",
            )
        answer = self._loading.result()
        if isinstance(answer, LoadFailed):
            kind = ModelError if answer.is_model else EngineError
            raise kind(answer.what, why=answer.why, fix=answer.fix)
        return answer

    def submit(
        self,
        tokens: Sequence[int],
        *,
        max_tokens: int,
        timeout_s: float,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> tuple[int, Answer]:
        """
        Send a request on its way; return its number, for `cancel`, and its answer.
        """
        id, answer = self._answers.new()
        if self.died.done():
            self._answers.finish(id, Ending.DIED, self.exit_words)
            return id, answer
        self._send(Submit(id, tokens, max_tokens, timeout_s, temperature, top_p, seed))
        return id, answer

    def cancel(self, id: int) -> None:
        """
        Free what a request holds, within a step; one that has ended is none.
        """
        if self._answers.forget(id) and not self.died.done():
            self._send(Cancel(id))

    async def drain(self, timeout_s: float) -> int:
        """
        Wait until nothing is in flight; return how many are after *timeout_s*.
        """
        return await self._answers.drain(timeout_s)

    def abandon(self) -> int:
        """
        End whatever is in flight, as what it is; return how many that were.
        """
        return len(self._answers.finish_all(Ending.ABANDONED))

    async def close(self) -> int:
        """
        Hang up, which ends the engine process; return its exit status.
        """
        if self._writer is not None:
            self._writer.close()
        else:
            self._child.socket.close()
        process = self._child.process
        try:
            return await asyncio.to_thread(process.wait, EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return await asyncio.to_thread(process.wait)

    def _send(self, message: ToEngine) -> None:
        assert self._writer is not None, "connect first"
        self._writer.write(encode(message))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take_in(decode_from_engine(line))
        except ConnectionResetError:
            pass  # as good as an end of file
        finally:
            await self._mark_dead()

    def _take_in(self, message: FromEngine) -> None:
        if isinstance(message, Report):
            self.last = message
            for id, token in message.tokens:
                self._answers.push(id, token)
            for id, ending, detail in message.ended:
                self._answers.finish(id, Ending(ending), detail)
            self._on_report(message)
        elif self._loading is not None and not self._loading.done():
            self._loading.set_result(message)

    async def _mark_dead(self) -> None:
        # The socket closes a moment before the process can be waited for.
        try:
            status = await asyncio.to_thread(self._child.process.wait, 0.5)
        except subprocess.TimeoutExpired:
            self.exit_words = "it hung up"
        else:
            killed = f"killed by signal {-status}"
            self.exit_words = killed if status < 0 else f"exit status {status}"
        if not self.died.done():
            self.died.set_result(None)
        self._answers.finish_all(Ending.DIED, self.exit_words)
