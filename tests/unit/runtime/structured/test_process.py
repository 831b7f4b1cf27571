"""
The process that checks grammars: what a client sends costs bounded time and memory.
"""

import json
import os

import pytest

from runtime.structured import GrammarError, GrammarKind, GrammarUnavailable
from runtime.structured.grammar import MAX_CHARACTERS
from runtime.structured.limits import CheckLimits
from runtime.structured.process import GrammarChecker
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
        with pytest.raises(GrammarError, match="ended"):
            checker.check(GrammarKind.REGEX, "a")
        checker.check(GrammarKind.REGEX, "a")
    finally:
        checker.close()


def test_a_tokenizer_that_cannot_be_read_refuses_all(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    checker = GrammarChecker(tmp_path / "tokenizer.json")
    try:
        for _ in range(2):
            with pytest.raises(GrammarUnavailable, match=r"tokenizer\.json"):
                checker.check(*OBJECT)
    finally:
        checker.close()
