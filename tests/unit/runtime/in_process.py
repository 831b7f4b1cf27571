"""
The whole runtime in the process of a test: `python -m runtime` with its engine in a thread.
"""

import contextlib
import gc
import logging
import socket
import subprocess
import threading

from runtime import __main__ as program
from runtime.engines.__main__ import open_model
from runtime.engines.paged.client import EngineProcess
from runtime.engines.paged.worker import Engine, EngineSocket
from runtime.server.notify import Notifier
from tests.unit.runtime.started import DEADLINE_S


class EngineThread:
    """
    The engine's loop in a thread, in place of `subprocess.Popen`.
    """

    def __init__(self, end):
        self._end = end
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        with self._end, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            Engine(EngineSocket(self._end), open_model).run()

    def wait(self, timeout_s=DEADLINE_S):
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise subprocess.TimeoutExpired("engine", timeout_s)
        return 0

    def kill(self):
        self._end.shutdown(socket.SHUT_RDWR)


def launch_thread(threads):
    ours, theirs = socket.socketpair()
    return EngineProcess(EngineThread(theirs), ours)


@contextlib.contextmanager
def in_process(monkeypatch, caplog, on_ready):
    """
    Yield a function that runs the runtime; it returns the exit code and the error.

    Args:
        on_ready: Called without arguments in place of the message to systemd.
    """
    thresholds = gc.get_threshold()
    monkeypatch.setattr(program, "configure_logging", lambda: None)
    monkeypatch.setattr(program, "launch", launch_thread)
    monkeypatch.setattr(Notifier, "ready", lambda *_: on_ready())

    def start():
        caplog.clear()
        with caplog.at_level(logging.INFO):
            code = program.main([])
        return code, error_in([record.getMessage() for record in caplog.records])

    yield start
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def error_in(messages):
    for message in messages:
        first, _, rest = message.partition("\n")
        if first.startswith("runtime.failed"):
            return rest.strip()
    return ""
