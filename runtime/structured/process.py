"""
The API's end of the process that checks grammars.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import threading
from collections import OrderedDict
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from runtime.contract import ENV_API_TOKENS
from runtime.structured.errors import CheckFailed, GrammarError, GrammarUnavailable
from runtime.structured.grammar import MAX_CHARACTERS, Grammar, GrammarKind
from runtime.structured.limits import (
    CHECKED,
    FAILED,
    LIMIT,
    READY,
    REFUSED,
    UNAVAILABLE,
    CheckLimits,
)

_ANSWERS = frozenset((READY, CHECKED, REFUSED, LIMIT, FAILED, UNAVAILABLE))
# What a pipe raises whose other end is gone, stopped or broken.
_BROKEN = (OSError, EOFError, ValueError)
_EXIT_WAIT_S = 0.5
Value = TypeVar("Value")


class KeptResults:
    """
    What checks of grammars found: those that passed, and as many refusals.  Safe to use from
    threads, and never waits for a check.

    Args:
        most: Of each.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._passed: OrderedDict[bytes, Grammar] = OrderedDict()
        # By hash: a refusal keeps neither the grammar nor its text.
        self._refused: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, kind: GrammarKind, text: str) -> Grammar | None:
        """
        Return the grammar if it passed; None if it was not checked, or is forgotten.

        Raises:
            GrammarError: It was refused.
        """
        key = _hash(kind, text)
        with self._lock:
            if (passed := self._passed.get(key)) is not None:
                self._passed.move_to_end(key)
                return passed
            if (why := self._refused.get(key)) is None:
                return None
            self._refused.move_to_end(key)
        raise GrammarError(why)

    def keep(self, grammar: Grammar) -> None:
        self._add(self._passed, _hash(grammar.kind, grammar.text), grammar)

    def keep_refusal(self, kind: GrammarKind, text: str, why: str) -> None:
        self._add(self._refused, _hash(kind, text), why)

    def _add(self, results: OrderedDict[bytes, Value], key: bytes, value: Value) -> None:
        with self._lock:
            results[key] = value
            while len(results) > self._most:
                results.popitem(last=False)


def _hash(kind: GrammarKind, text: str) -> bytes:
    return sha256(f"{kind}\0{text}".encode("utf-8", "surrogatepass")).digest()


class GrammarChecker:
    """
    Checks one grammar at a time, and remembers what it found.  Safe to use from threads.

    The constructor starts the process and returns: the first check waits until it has read the
    tokenizer.

    Attributes:
        kept: Results of earlier checks.
    """

    def __init__(self, tokenizer: Path, limits: CheckLimits | None = None) -> None:
        self._limits = limits or CheckLimits()
        setup = {"tokenizer": str(tokenizer), "limits": dataclasses.asdict(self._limits)}
        self._setup = json.dumps(setup).encode()
        self._lock = threading.Lock()
        self.kept = KeptResults(self._limits.kept)
        self._unavailable = ""
        self._is_closed = self._is_ready = False
        self._is_down = True  # no process runs
        self._start()

    def check(self, kind: GrammarKind, text: str) -> Grammar:
        """
        Return *text* as a grammar that an engine can use.

        Blocks, for some 10 ms and a few seconds at most: call it from a thread.

        Raises:
            GrammarError: It can't be compiled, matches no text, or takes too much.
            CheckFailed: It was not checked: the process failed, or is closed.
            GrammarUnavailable: No grammar can be used with this model.
        """
        if len(text) > MAX_CHARACTERS:
            raise GrammarError(f"it has {len(text)} characters; {MAX_CHARACTERS} is the most")
        with self._lock:
            grammar = self.kept.find(kind, text)
            if grammar is None:
                grammar = Grammar(kind, text, self._check(kind, text))
                self.kept.keep(grammar)
            return grammar

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
            raise CheckFailed("the process that checks grammars was closed")
        document = json.dumps({"kind": kind, "text": text}).encode()
        if self._is_down:
            try:
                self._start()
            except OSError as error:
                why = f"the process that checks grammars can't be started: {error.strerror}"
                raise CheckFailed(why) from None
        if not self._is_ready:
            answer, words = self._receive(self._limits.start_wait_s)
            if answer == UNAVAILABLE:
                self._unavailable = words
                raise GrammarUnavailable(words)
            if answer != READY:
                raise CheckFailed(words)
            self._is_ready = True
        answer, words = self._ask(document)
        if answer == CHECKED:
            return words
        if answer not in (REFUSED, LIMIT):
            raise CheckFailed(words)
        self.kept.keep_refusal(kind, text, words)  # the same grammar is refused again
        raise GrammarError(words)

    def _start(self) -> None:
        """
        Start the process; if it can't be, the next check tries again and says why.
        """
        self._is_ready, self._is_down = False, True
        ours, theirs = multiprocessing.Pipe()
        try:
            _limit_waits(ours, self._limits.wait_s)
            # It needs no secret, and must not feed the watchdog.
            kept = os.environ.keys() - {ENV_API_TOKENS, "NOTIFY_SOCKET"}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runtime.structured.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={name: os.environ[name] for name in kept},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._connection: Connection = ours
        self._is_down = False
        with contextlib.suppress(*_BROKEN):  # then there is no answer either
            ours.send_bytes(self._setup)

    def _stop(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _ask(self, document: bytes) -> tuple[bytes, str]:
        """
        Send *document*; return its answer as `_receive` does.
        """
        try:
            self._connection.send_bytes(document)
        except _BROKEN as error:
            return FAILED, self._replace(error)
        return self._receive(self._limits.wait_s)

    def _receive(self, wait_s: float) -> tuple[bytes, str]:
        """
        Return kind and text of the next answer; of a process that ended or is late, a FAILED.
        """
        try:
            if not self._connection.poll(wait_s):
                return FAILED, self._replace(None, f"no answer after {wait_s:g} s")
            answer = self._connection.recv_bytes()
            if answer[:1] not in _ANSWERS:
                raise ValueError("an answer of no known kind")
        except _BROKEN as error:
            return FAILED, self._replace(error)
        return answer[:1], answer[1:].decode("utf-8", "replace")

    def _replace(self, error: Exception | None, why: str = "") -> str:
        """
        Start another process in place of this one; return why.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            # One that ended closed its pipe a moment before it can be waited for.
            self._process.wait(_EXIT_WAIT_S if error is not None else 0)
        status = self._process.poll()
        if not why and status is not None:
            why = f"the process that checks grammars ended, status {status}"
        elif not why:
            why = f"the process that checks grammars does not answer: {type(error).__name__}"
        if not self._is_closed:
            self._stop()
            self._is_down = True
            with contextlib.suppress(OSError):  # the next check tries again
                self._start()
        return why


def _limit_waits(connection: Connection, wait_s: float) -> None:
    """
    Let a read or write of *connection* raise BlockingIOError after *wait_s*: a process that is
    stopped in the middle of a message must not hold a thread for ever.
    """
    limit = struct.pack("ll", int(wait_s), int(wait_s % 1 * 1e6))
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
