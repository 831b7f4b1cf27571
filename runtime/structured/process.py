"""
The API's end of the process that checks grammars.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from multiprocessing.connection import Connection
from pathlib import Path

from runtime.contract import ENV_API_TOKENS
from runtime.structured.errors import GrammarError, GrammarUnavailable
from runtime.structured.grammar import MAX_CHARACTERS, Grammar, GrammarKind
from runtime.structured.limits import CHECKED, LIMIT, READY, UNAVAILABLE, CheckLimits


class GrammarChecker:
    """
    Checks one grammar at a time, and remembers those that passed.  Safe to use from threads.

    The constructor starts the process and returns: the first check waits until it has read the
    tokenizer.
    """

    def __init__(self, tokenizer: Path, limits: CheckLimits | None = None) -> None:
        self._limits = limits or CheckLimits()
        setup = {"tokenizer": str(tokenizer), "limits": dataclasses.asdict(self._limits)}
        self._setup = json.dumps(setup).encode()
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[GrammarKind, str], Grammar] = OrderedDict()
        self._unavailable = ""
        self._is_closed = self._is_ready = False
        self._start()

    def check(self, kind: GrammarKind, text: str) -> Grammar:
        """
        Return *text* as a grammar that an engine can use.

        Blocks, for some 10 ms and a few seconds at most: call it from a thread.

        Raises:
            GrammarError: It can't be compiled, matches no text, or takes too much.
            GrammarUnavailable: No grammar can be used with this model.
        """
        if len(text) > MAX_CHARACTERS:
            raise GrammarError(f"it has {len(text)} characters; {MAX_CHARACTERS} is the most")
        key = kind, text
        with self._lock:
            if key not in self._kept:
                self._kept[key] = Grammar(kind, text, self._check(kind, text))
                while len(self._kept) > self._limits.kept:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def close(self) -> None:
        """
        End the process; a check that is under way fails.
        """
        self._is_closed = True
        self._process.kill()
        with self._lock:
            self._stop()

    def _check(self, kind: GrammarKind, text: str) -> str:
        if self._unavailable:
            raise GrammarUnavailable(self._unavailable)
        if self._is_closed:
            raise GrammarError("the process that checks grammars was closed")
        document = json.dumps({"kind": kind, "text": text}).encode()
        if not self._is_ready:
            answer, words = self._receive(self._limits.start_wait_s)
            if answer == UNAVAILABLE:
                self._unavailable = words
                raise GrammarUnavailable(words)
            if answer != READY:
                raise GrammarError(words)
            self._is_ready = True
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._connection.send_bytes(document)
        answer, words = self._receive(self._limits.wait_s)
        if answer != CHECKED:
            raise GrammarError(words)
        return words

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        with theirs:
            # It needs no secret, and must not feed the watchdog.
            kept = os.environ.keys() - {ENV_API_TOKENS, "NOTIFY_SOCKET"}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runtime.structured.worker", str(theirs.fileno())],
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

    def _receive(self, wait_s: float) -> tuple[bytes, str]:
        """
        Return kind and text of the next answer; of a process that ended or is late, a LIMIT.
        """
        try:
            if self._connection.poll(wait_s):
                answer = self._connection.recv_bytes()
                return answer[:1], answer[1:].decode("utf-8", "replace")
            why = f"no answer after {wait_s:g} s"
        except (EOFError, ConnectionResetError):
            why = f"the process that checks grammars ended, status {self._process.wait()}"
        if not self._is_closed:
            self._stop()
            self._start()
        return LIMIT, why
