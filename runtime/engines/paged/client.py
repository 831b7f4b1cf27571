"""
The API's end of the engine: token ids in, token ids out, on asyncio.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from runtime.contract import ENV_API_TOKENS
from runtime.contract.errors import EngineError, ModelError
from runtime.engines.base.client import Client, exit_reason
from runtime.engines.base.in_flight import TokenStream
from runtime.engines.base.protocol import (
    Cancel,
    Embed,
    EngineReport,
    FinishReason,
    FromEngine,
    Load,
    Loaded,
    LoadFailed,
    Submit,
    Swap,
    ToEngine,
    decode_from_engine,
    encode,
)
from runtime.engines.base.sampling import TokenLogprobs

LINE_LIMIT_BYTES = 64 << 20
EXIT_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """
    A started engine process and our end of its socket.
    """

    process: subprocess.Popen[bytes]
    socket: socket.socket


def launch(threads: int) -> EngineProcess:
    """
    Start an engine process; it imports torch while the caller does other things.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        argv = [
            *(sys.executable, "-m", "runtime.engines"),
            *("--fd", str(theirs.fileno()), "--parent", str(os.getpid())),
        ]
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        # It needs no secret, and must not feed the watchdog past the API process.
        for name in (ENV_API_TOKENS, "NOTIFY_SOCKET"):
            env.pop(name, None)
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=env
        )
    return EngineProcess(process, ours)


class EngineClient(Client):
    """
    See `Client`.
    """

    def __init__(self, child: EngineProcess, on_report: Callable[[EngineReport], None]) -> None:
        super().__init__(on_report)
        self._child = child
        self._loading: asyncio.Future[Loaded | LoadFailed] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(
            sock=self._child.socket, limit=LINE_LIMIT_BYTES
        )
        self._reading = asyncio.create_task(self._read(reader))

    async def load(self, load: Load) -> Loaded:
        return await self._ask(load)

    async def swap(self, model_dir: str) -> Loaded:
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
                why=f"the engine died, {self.exit_reason}",
                fix="see the lines of the engine in the unit's log",
            )
        answer = self._loading.result()
        if isinstance(answer, LoadFailed):
            kind = ModelError if answer.is_model else EngineError
            raise kind(answer.what, why=answer.why, fix=answer.fix)
        return answer

    def _start(self, request: Submit, stream: TokenStream) -> None:
        stream.cached_tokens = 0
        self._send(request)

    def _start_embedding(self, request: Embed) -> None:
        self._send(request)

    def cancel(self, id: int) -> None:
        if self._requests.forget(id) and not self.died.done():
            self._send(Cancel(id))

    async def close(self) -> int:
        # The engine process ends once its socket is closed.
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
            await self._wait_for_exit()

    def _take_in(self, message: FromEngine) -> None:
        if isinstance(message, EngineReport):
            self.last = message
            self._push(message)
            for id, vector in message.vectors:
                self._requests.embed(id, vector)
            for id, reason, detail in message.ended:
                self._requests.finish(id, FinishReason(reason), detail)
            self._on_report(message)
        elif self._loading is not None and not self._loading.done():
            self._loading.set_result(message)

    def _push(self, report: EngineReport) -> None:
        for id, cached in report.cached:
            if stream := self._requests.get(id):
                stream.cached_tokens = cached
        for id, logprob, top in report.logprobs:
            if stream := self._requests.get(id):
                pairs = tuple((token, each) for token, each in top)
                stream.logprobs.append(TokenLogprobs(logprob, pairs))
        for id, scores in report.prompt_logprobs:
            if stream := self._requests.get(id):
                stream.prompt_logprobs += [
                    TokenLogprobs(logprob, tuple((token, each) for token, each in top))
                    for logprob, top in scores
                ]
        for id, token in report.tokens:
            self._requests.push(id, token)

    async def _wait_for_exit(self) -> None:
        # The socket closes a moment before the process can be waited for.
        try:
            status = await asyncio.to_thread(self._child.process.wait, 0.5)
        except subprocess.TimeoutExpired:
            self._mark_dead("it closed its socket")
        else:
            self._mark_dead(exit_reason(status))
