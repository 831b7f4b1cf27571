"""
Who waits for whose check of a grammar, with a checker that a test holds.
"""

import asyncio
import contextlib
import threading

import pytest

from runtime.server.caller import CALLER, Caller
from runtime.server.check_queue import CheckQueue
from runtime.server.errors import Failed
from runtime.server.grammars import MAX_WAITING, AskedGrammar, GrammarReader
from runtime.structured import CheckFailed, Grammar, GrammarError, GrammarKind
from runtime.structured.process import KeptResults

pytestmark = pytest.mark.anyio


class HeldChecker:
    """
    A checker that does nothing until `go_on`; it refuses what begins with "bad", and fails at
    "dead".

    Attributes:
        checked: Texts, in order.
    """

    def __init__(self):
        self.kept, self.checked = KeptResults(8), []
        self._may_go = threading.Event()

    def go_on(self):
        self._may_go.set()

    def check(self, kind, text):
        assert self._may_go.wait(60)
        self.checked.append(text)
        if text.startswith("bad"):
            raise GrammarError("refused")
        if text == "dead":
            raise CheckFailed("the process that checks grammars ended, status -9")
        return Grammar(kind, text, text)


@pytest.fixture
def checker():
    checker = HeldChecker()
    yield checker
    checker.go_on()


def read(reader, key, text):
    """
    Start to read the regex *text* for the API key *key*.
    """

    async def reading():
        CALLER.set(Caller(key))
        return await reader.read(AskedGrammar("structured_outputs", GrammarKind.REGEX, text))

    return asyncio.create_task(reading())


async def settle():
    """
    Let everything happen that waits for nothing else.
    """
    for _ in range(200):
        await asyncio.sleep(0)


def code_of(task):
    with pytest.raises(Failed) as failed:
        task.result()
    return failed.value.refused.status, failed.value.refused.code


async def test_a_grammar_waits_for_one_check_of_another_key_at_most(checker):
    """
    The one that runs, although the other key has a queue of them.
    """
    reader = GrammarReader(checker)
    flood = [read(reader, "flood", f"f{n}") for n in range(MAX_WAITING)]
    await settle()
    polite = read(reader, "polite", "p")
    await settle()
    checker.go_on()
    await asyncio.gather(polite, *flood)
    assert checker.checked[:3] == ["f0", "p", "f1"]
    assert checker.checked[1:] == ["p", *(f"f{n}" for n in range(1, MAX_WAITING))]


async def test_what_is_known_waits_for_no_check(checker):
    """
    What passed, and what was refused.
    """
    reader = GrammarReader(checker)
    known = Grammar(GrammarKind.REGEX, "known", "compiled")
    checker.kept.keep(known)
    checker.kept.keep_refusal(GrammarKind.REGEX, "bad", "refused")
    held = read(reader, "flood", "f")
    await settle()
    assert await read(reader, "web", "known") is known
    refused = read(reader, "web", "bad")
    await settle()
    assert code_of(refused) == (400, "grammar_refused")
    assert not held.done()
    checker.go_on()
    await held


async def test_a_key_has_a_bounded_number_of_checks_that_wait(checker):
    """
    Another key's and requests without a key are not refused for it.
    """
    reader = GrammarReader(checker)
    running = read(reader, "flood", "running")
    await settle()
    flood = [running, *(read(reader, "flood", f"f{n}") for n in range(MAX_WAITING))]
    more = read(reader, "flood", "more")
    await settle()
    assert code_of(more) == (503, "queue_full")
    others = [read(reader, "web", "w"), *(read(reader, "", f"n{n}") for n in range(40))]
    same = read(reader, "flood", "f3")
    await settle()
    checker.go_on()
    await asyncio.gather(*flood, *others, same)
    assert len(checker.checked) == 1 + MAX_WAITING + 41


async def test_requests_for_the_same_grammar_wait_for_one_check(checker):
    reader = GrammarReader(checker)
    same = [read(reader, "web", "bad") for _ in range(5)]
    await settle()
    same[0].cancel()
    checker.go_on()
    await asyncio.wait(same)
    assert [code_of(task) for task in same[1:]] == [(400, "grammar_refused")] * 4
    assert checker.checked == ["bad"]


async def test_a_check_that_failed_does_not_blame_the_grammar(checker):
    """
    A later request checks it again.
    """
    reader = GrammarReader(checker)
    checker.go_on()
    for _ in range(2):
        asked = read(reader, "web", "dead")
        await asyncio.wait([asked])
        with pytest.raises(Failed) as failed:
            asked.result()
        refused = failed.value.refused
        assert (refused.status, refused.code) == (503, "grammar_check_failed")
        assert (refused.param, refused.retry_after_s) == (None, 1)
    assert checker.checked == ["dead", "dead"]


async def test_a_check_that_nobody_waits_for_is_not_made(checker):
    reader = GrammarReader(checker)
    tasks = [read(reader, "web", text) for text in "abc"]
    await settle()
    tasks[1].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await tasks[1]
    checker.go_on()
    await asyncio.gather(tasks[0], tasks[2])
    assert checker.checked == ["a", "c"]
    assert reader._open == {}
    assert await read(reader, "web", "b") == Grammar(GrammarKind.REGEX, "b", "b")


async def test_the_key_whose_checks_took_least_is_next():
    """
    One that was away gets nothing for that time.
    """
    queue = CheckQueue()
    for number in range(4):
        queue.push("slow", f"slow{number}")
        queue.push("fast", f"fast{number}")
    order = []
    while (following := queue.pop()) is not None:
        key, check = following
        order.append(check)
        queue.charge(key, 3.0 if key == "slow" else 1.0)
        if check == "fast2":
            queue.push("late", "late0")
    assert order == [
        *("slow0", "fast0", "fast1", "fast2", "slow1", "fast3", "late0", "slow2", "slow3")
    ]
    assert queue.count("slow") == 0
