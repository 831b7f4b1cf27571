"""
The process that checks grammars: `python -m runtime.structured.worker FD`.

It reads JSON documents from FD: first its setup, then one grammar each.  It answers each with a
byte and a text.  Each grammar is checked in a fork, whose CPU time and memory are limited: what it
ends does not read the tokenizer again.  It holds no secret, and ends when FD is closed.
"""

import json
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from runtime.structured.check import check
from runtime.structured.compiler import GrammarCompiler
from runtime.structured.errors import GrammarError, GrammarUnavailable
from runtime.structured.grammar import GrammarKind
from runtime.structured.limits import (
    CHECKED,
    FAILED,
    LIMIT,
    READY,
    REFUSED,
    UNAVAILABLE,
    CheckLimits,
)

_MESSAGE_MAX = 4000  # characters of an error


def main(fd: int) -> None:
    # systemd signals the whole unit; grammars are checked until the API has drained.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold what clients wrote
    connection = Connection(fd)
    setup = json.loads(connection.recv_bytes())
    limits = CheckLimits(**setup["limits"])
    try:
        compiler = GrammarCompiler(Path(setup["tokenizer"]), None)
    except GrammarUnavailable as error:
        connection.send_bytes(_answer(UNAVAILABLE, str(error)))
        return
    connection.send_bytes(READY)
    while True:
        try:
            document = json.loads(connection.recv_bytes())
        except EOFError:
            return
        kind, text = GrammarKind(document["kind"]), document["text"]
        connection.send_bytes(_check_in_fork(compiler, kind, text, limits))


def _check_in_fork(
    compiler: GrammarCompiler, kind: GrammarKind, text: str, limits: CheckLimits
) -> bytes:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            _limit(limits)
            with open(writer, "wb") as file:  # noqa: PTH123 - a descriptor
                file.write(_checked(compiler, kind, text))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:  # noqa: PTH123 - a descriptor
        answer = file.read()
    _, status = os.waitpid(child, 0)
    if status == 0 and answer:
        return answer
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return _answer(LIMIT, f"compiling it takes more than {limits.cpu_s:g} s")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return _answer(FAILED, "the check was killed from outside, for the host's memory perhaps")
    return _answer(LIMIT, "compiling it takes too much memory, or fails")


def _checked(compiler: GrammarCompiler, kind: GrammarKind, text: str) -> bytes:
    try:
        return CHECKED + check(compiler, kind, text).encode()
    except GrammarError as error:
        return _answer(REFUSED, str(error))
    except MemoryError:
        return _answer(LIMIT, "compiling it takes too much memory")
    except Exception as error:  # a panic of llguidance, or of the translation
        return _answer(REFUSED, f"{type(error).__name__}: {error}")


def _answer(kind: bytes, text: str) -> bytes:
    return kind + text[:_MESSAGE_MAX].encode("utf-8", "replace")


def _limit(limits: CheckLimits) -> None:
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)  # its signal has no handler: it ends us
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - before pathlib is needed
        pages = int(file.read().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    # Rust writes to it when memory is short; it would repeat what a client wrote.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


if __name__ == "__main__":
    main(int(sys.argv[1]))
