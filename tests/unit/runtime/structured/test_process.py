"""
The process that checks grammars: what a client sends costs bounded time and memory.
"""

import json
import os
import signal
import subprocess
import time
from multiprocessing.connection import Connection

import pytest

from runtime.structured import CheckFailed, GrammarError, GrammarKind, GrammarUnavailable, process
from runtime.structured.grammar import MAX_CHARACTERS, Grammar
from runtime.structured.limits import CheckLimits
from runtime.structured.process import GrammarChecker, KeptResults
from tests.unit.runtime.builders import make_tokenizer
from tests.unit.runtime.structured.hostile import HOSTILE

OBJECT = GrammarKind.JSON, '{"type": "object"}'
GOOD = {
    "schema": OBJECT,
    "regex": (GrammarKind.REGEX, "[a-f]{2}"),
    "exploding regex": (GrammarKind.REGEX, "(a|a)*{1000}{1000}"),
    "choices": (GrammarKind.CHOICE, json.dumps(["yes", 'a "b" \\'])),
    "Lark": (GrammarKind.GRAMMAR, 'start: "a" start "b" | "c"'),
    "GBNF": (GrammarKind.GRAMMAR, 'root ::= "yes" | "no" root'),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer().save(str(path))
    return path


@pytest.fixture(scope="module")
def checker(tokenizer):
    checker = GrammarChecker(tokenizer)
    yield checker
    checker.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_and_the_process_goes_on(checker, name):
    process = checker._process
    with pytest.raises(GrammarError, match=r"."):
        checker.check(*HOSTILE[name])
    assert checker._process is process
    assert process.poll() is None


@pytest.mark.parametrize("name", GOOD)
def test_a_good_grammar_passes(checker, name):
    """
    Control of the test above.
    """
    kind, text = GOOD[name]
    grammar = checker.check(kind, text)
    assert (grammar.kind, grammar.text) == (kind, text)
    assert checker.check(kind, text) is grammar


def test_a_reference_is_never_fetched(checker, tmp_path):
    """
    The file is a valid schema, and within the schema the same reference would do.
    """
    path = tmp_path / "schema.json"
    path.write_text('{"type": "object"}')
    for reference in (path.as_uri(), str(path)):
        with pytest.raises(GrammarError, match=r"schema\.json"):
            checker.check(GrammarKind.JSON, json.dumps({"$ref": reference}))
    inside = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}}
    checker.check(GrammarKind.JSON, json.dumps(inside))


def test_a_long_grammar_is_refused_before_it_is_sent(checker):
    text = "a" * (MAX_CHARACTERS + 1)
    with pytest.raises(GrammarError, match=f"has {len(text)} characters"):
        checker.check(GrammarKind.REGEX, text)
    checker.check(GrammarKind.REGEX, text[:-1000])


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (CheckLimits(cpu_s=0.002), r"more than 0\.002 s"),
        (CheckLimits(cpu_s=60, memory_bytes=4 << 20), "too much memory"),
    ],
)
def test_time_and_memory_of_a_check_are_limited(tokenizer, limits, why):
    """
    Control: with the usual limits it is refused for its own reason.
    """
    checker = GrammarChecker(tokenizer, limits)
    try:
        kind, text = HOSTILE["optional properties"]
        with pytest.raises(GrammarError, match=why):
            checker.check(kind, text)
    finally:
        checker.close()


def test_a_process_that_was_killed_is_replaced(tokenizer):
    checker = GrammarChecker(tokenizer)
    try:
        checker.check(*OBJECT)
        os.kill(checker._process.pid, 9)
        with pytest.raises(CheckFailed, match="ended"):
            checker.check(GrammarKind.REGEX, "a")
        checker.check(GrammarKind.REGEX, "a")
    finally:
        checker.close()


class Torn:
    """
    A pipe of which one call raises, once.
    """

    def __init__(self, pipe, call, error):
        self._pipe, self._call, self._error = pipe, call, error

    def __getattr__(self, name):
        if name != self._call:
            return getattr(self._pipe, name)

        def fail(*_):
            raise self._error

        return fail


@pytest.mark.parametrize("call", ["send_bytes", "poll", "recv_bytes"])
@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(104, "reset"), BrokenPipeError(32, "broken"), OSError(9, "bad"),
     BlockingIOError(11, "again"), EOFError(), ValueError("too long")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_the_pipe_raises_is_one_error_and_the_process_is_replaced(
    tokenizer, monkeypatch, call, error
):
    """
    The process still runs, so that nothing but the error says that it can't be used.
    """
    checker = start_without_processes(tokenizer, monkeypatch)
    first = checker._process
    checker._connection = Torn(checker._connection, call, error)
    with pytest.raises(CheckFailed, match=f"does not answer: {type(error).__name__}"):
        checker.check(*OBJECT)
    assert first.is_killed
    assert checker._process is not first
    assert checker.check(*OBJECT).compiled == "compiled"


def test_an_answer_of_no_known_kind_is_an_error(tokenizer, monkeypatch):
    checker = start_without_processes(tokenizer, monkeypatch, answers=[b"", b"?x"])
    for _ in range(2):
        with pytest.raises(CheckFailed, match="does not answer: ValueError"):
            checker.check(*OBJECT)
    assert checker.check(*OBJECT).compiled == "compiled"


def test_a_process_that_cannot_be_started_is_one_error_until_it_can(tokenizer, monkeypatch):
    checker = start_without_processes(tokenizer, monkeypatch)
    popen = subprocess.Popen

    def refuse(*_, **__):
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    checker._connection = Torn(checker._connection, "poll", OSError(9, "bad"))
    with pytest.raises(CheckFailed, match="does not answer"):
        checker.check(*OBJECT)
    with pytest.raises(CheckFailed, match="can't be started: no more processes"):
        checker.check(*OBJECT)
    monkeypatch.setattr(subprocess, "Popen", popen)
    assert checker.check(*OBJECT).compiled == "compiled"
    checker.close()


def start_without_processes(tokenizer, monkeypatch, answers=()):
    """
    Return a checker whose processes are played: the pipes are real.

    Args:
        answers: First answer of each process to a grammar; the others have checked it.
    """
    answers = list(answers)

    class Process:
        def __init__(self, argv, pass_fds, **_):
            self.is_killed = False
            self._pipe = Connection(os.dup(pass_fds[0]))
            self._pipe.send_bytes(b"R")
            self._pipe.send_bytes(answers.pop(0) if answers else b"Ccompiled")

        def wait(self, timeout=None):
            if not self.is_killed:
                raise subprocess.TimeoutExpired("worker", timeout)

        def poll(self):
            return None

        def kill(self):
            self.is_killed = True

    monkeypatch.setattr(subprocess, "Popen", Process)
    return GrammarChecker(tokenizer)


def test_a_stopped_process_holds_a_check_no_longer_than_its_limit(tokenizer):
    """
    Also where the grammar is longer than the pipe takes.
    """
    checker = GrammarChecker(tokenizer)
    try:
        checker.check(*OBJECT)
        # Only now: on a busy machine a process that runs takes longer.
        checker._limits = CheckLimits(wait_s=0.2)
        process._limit_waits(checker._connection, 0.2)
        os.kill(checker._process.pid, signal.SIGSTOP)
        began_s = time.monotonic()
        with pytest.raises(CheckFailed, match="answer"):
            checker.check(GrammarKind.REGEX, "\u00e9" * (MAX_CHARACTERS - 1))
        assert time.monotonic() - began_s < 10
    finally:
        checker.close()


def test_a_refusal_is_remembered_and_a_broken_check_is_not(tokenizer, monkeypatch):
    checker = start_without_processes(tokenizer, monkeypatch, answers=[b"Nno such thing"])
    for _ in range(3):
        with pytest.raises(GrammarError, match="no such thing"):
            checker.check(*OBJECT)
    with pytest.raises(GrammarError, match="no such thing"):
        checker.kept.find(*OBJECT)

    checker = start_without_processes(tokenizer, monkeypatch, answers=[b"Fkilled"])
    with pytest.raises(CheckFailed, match="killed"):
        checker.check(*OBJECT)
    assert checker.kept.find(*OBJECT) is None


def test_results_are_kept_up_to_a_number_and_refusals_drop_no_grammar():
    kept = KeptResults(2)
    grammars = [Grammar(GrammarKind.REGEX, text, "") for text in "abc"]
    for grammar in grammars[:2]:
        kept.keep(grammar)
    for text in "defgh":
        kept.keep_refusal(GrammarKind.REGEX, text, text)
    assert kept.find(GrammarKind.REGEX, "a") is grammars[0]
    kept.keep(grammars[2])
    found = [kept.find(GrammarKind.REGEX, text) for text in "abcd"]
    assert found == [grammars[0], None, grammars[2], None]
    assert kept.find(GrammarKind.CHOICE, "a") is None
    for text in "gh":
        with pytest.raises(GrammarError, match=text):
            kept.find(GrammarKind.REGEX, text)


def test_a_tokenizer_that_cannot_be_read_refuses_all(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    checker = GrammarChecker(tmp_path / "tokenizer.json")
    try:
        for _ in range(2):
            with pytest.raises(GrammarUnavailable, match=r"tokenizer\.json"):
                checker.check(*OBJECT)
    finally:
        checker.close()
