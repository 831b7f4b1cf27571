"""
The API's end of the process that renders.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from runtime.chat.errors import ChatTemplateError, RenderLimitExceeded
from runtime.chat.limits import LIMIT, READS_TOOLS, READY, REFUSED, RenderLimits
from runtime.contract import ENV_API_TOKENS


class TemplateInvalid(Exception):
    """
    A template can't be compiled.

    Attributes:
        name: Of the template.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(why)
        self.name = name


class RenderProcess:
    """
    A process that renders one conversation at a time; replaced when one ended it.

    Attributes:
        reads_tools: Names of the compiled templates that read the variable `tools`.
    """

    def __init__(self, templates: Mapping[str, str], limits: RenderLimits) -> None:
        self._names, self._limits = tuple(templates), limits
        setup = {"templates": dict(templates), "limits": dataclasses.asdict(limits)}
        self._setup = json.dumps(setup).encode()
        self.reads_tools: set[str] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        self._start()

    def compile(self) -> None:
        """
        Wait until all templates are compiled.

        Raises:
            TemplateInvalid: One can't be; says which and why.
        """
        with self._lock:
            self._wait_until_ready()

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> str:
        """
        Args:
            template: Its name.

        Raises:
            ChatTemplateError: The template refuses the conversation, or a limit is exceeded.
        """
        try:
            data = (
                f'{{"template": {_json(template)}, "messages": {_json_array(messages)}, '
                f'"tools": {_json_array(tools)}, "variables": {_json(variables)}}}'
            ).encode("utf-8", "surrogatepass")
        except RecursionError:
            raise RenderLimitExceeded("the messages are nested too deeply") from None
        with self._lock:
            if self._is_closed:
                raise RenderLimitExceeded("the process that renders was closed")
            try:
                self._wait_until_ready()
            except TemplateInvalid as error:  # it was valid at the start
                raise RenderLimitExceeded(f"the chat template can't be compiled: {error}") from None
            with contextlib.suppress(BrokenPipeError):  # then there is no answer either
                self._connection.send_bytes(data)
            kind, text = self._receive()
        if kind == REFUSED:
            raise ChatTemplateError(text)
        if kind == LIMIT:
            raise RenderLimitExceeded(text)
        return text

    def close(self) -> None:
        """
        End the process; a conversation that is being rendered fails.
        """
        self._is_closed = True
        self._process.kill()
        with self._lock:
            self._stop()

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            # It needs no secret, and must not feed the watchdog.
            kept = os.environ.keys() - {ENV_API_TOKENS, "NOTIFY_SOCKET"}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runtime.chat.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={name: os.environ[name] for name in kept},
            )
        self._connection: Connection = ours
        self._is_ready = False
        with contextlib.suppress(BrokenPipeError):
            ours.send_bytes(self._setup)

    def _stop(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _wait_until_ready(self) -> None:
        if self._is_ready:
            return
        for name in self._names:
            kind, text = self._receive()
            if kind != READY:
                raise TemplateInvalid(name, text)
            if text.encode() == READS_TOOLS:
                self.reads_tools.add(name)
        self._is_ready = True

    def _receive(self) -> tuple[bytes, str]:
        """
        Return kind and text of the next answer; of a process that ended or is late, a LIMIT.
        """
        try:
            if self._connection.poll(self._limits.wait_s):
                answer = self._connection.recv_bytes()
                return answer[:1], answer[1:].decode("utf-8", "surrogatepass")
            why = f"no answer after {self._limits.wait_s:g} s"
        except (EOFError, ConnectionResetError):
            status = self._process.wait()
            if status == -signal.SIGVTALRM:
                why = "it took too much time"
            else:
                why = f"its process ended, {_exit_reason(status)}"
        if not self._is_closed:
            self._stop()
            self._start()
        return LIMIT, f"the chat template was stopped: {why}"


def _json_array(values: Sequence[Mapping[str, Any]] | None) -> str:
    # One by one: a single call holds Python's lock, 0.1 s for 8 MiB of short messages.
    return "null" if values is None else f"[{','.join(_json(value) for value in values)}]"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _exit_reason(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {-status}"
