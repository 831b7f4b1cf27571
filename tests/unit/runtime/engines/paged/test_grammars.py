"""
Answers that must match a grammar, computed by the runner with a model of random weights.
"""

import json
import random
import re
import threading
import time
from dataclasses import replace

import pytest

from runtime.engines.base.protocol import FinishReason, Submit
from runtime.engines.base.sampling import SamplingParams
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.grammars import Grammars, open_grammars
from runtime.engines.paged.runner import PagedRunner
from runtime.engines.paged.scheduler import Capacity, Scheduler
from runtime.structured import Grammar, GrammarError, GrammarKind
from runtime.structured.answer import AnswerState
from runtime.structured.compiler import GrammarCompiler, translate
from tests.unit.runtime.builders import make_model, make_tokenizer
from tests.unit.runtime.fakes import FakeRunner
from tests.unit.runtime.structured.schemas import make_schema, why_invalid

PAGE, CONTEXT, SLOTS = 8, 512, 16
PROMPT = [1, 2, 3]
STOP = make_tokenizer().token_to_id("~")
VOCABULARY = make_tokenizer().get_vocab_size() + 5  # of the head: some rows have no token


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer().save(str(path))
    return GrammarCompiler(path, VOCABULARY, [STOP])


def make_scheduler(compiler, grammars=None, *, is_synchronous=False):
    model = make_model(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, std=0.1)
    pages = 1 + SLOTS * CONTEXT // PAGE
    runner = PagedRunner(
        model, slots=SLOTS, pages=pages, page_tokens=PAGE, row_pages=CONTEXT // PAGE
    )
    return Scheduler(
        runner,
        Capacity(SLOTS, 128, 0.0),
        [STOP],
        BlockAllocator(pages, PAGE),
        random.Random(1),
        Grammars(compiler) if grammars is None else grammars,
        is_synchronous=is_synchronous,
    )


def make_grammar(kind, text):
    return Grammar(kind, text, translate(kind, text))


def make_params(seed, kind=None, text="", **changes):
    grammar = None if kind is None else make_grammar(kind, text)
    return SamplingParams(
        **{"max_tokens": 300, "temperature": 1.0, "seed": seed, "grammar": grammar} | changes
    )


def run(scheduler, params):
    """
    Return the text, the finish reason and the detail of an answer for each of *params*.
    """
    tokenizer = make_tokenizer()
    tokens, ended = {}, {}
    for id, each in enumerate(params):
        scheduler.submit(Submit(id, PROMPT, each, 1e6), 0.0)
    for _ in range(100_000):
        if scheduler.is_idle:
            break
        report = scheduler.turn(0.0)
        for id, token in report.tokens:
            tokens.setdefault(id, []).append(token)
        for id, reason, detail in report.ended:
            assert id not in ended, "ended twice"
            ended[id] = reason, detail
        if report.is_beat:
            time.sleep(0.001)  # a grammar is being compiled
    assert scheduler.is_idle
    return [(tokenizer.decode(tokens.get(id, [])), *ended[id]) for id in range(len(params))]


def test_finished_answers_match_their_schema(compiler):
    """
    200 schemas; the control draws the same answers without masks.
    """
    schemas = [make_schema(random.Random(seed)) for seed in range(200)]
    texts = [json.dumps(schema) for schema in schemas]
    scheduler = make_scheduler(compiler)
    answers = run(scheduler, [make_params(n, GrammarKind.JSON, t) for n, t in enumerate(texts)])
    failed = [answer for answer in answers if answer[1] == FinishReason.ERROR]
    assert failed == []
    finished = [
        (schema, text)
        for schema, (text, reason, _) in zip(schemas, answers, strict=True)
        if reason == FinishReason.STOP
    ]
    assert len(finished) >= 190
    assert [why for schema, text in finished if (why := why_invalid(schema, text))] == []

    free = run(make_scheduler(compiler), [make_params(n) for n in range(20)])
    assert all(
        why_invalid(schema, text) for schema, (text, _, _) in zip(schemas, free, strict=False)
    )


def test_rows_beside_a_grammar_get_the_tokens_that_they_get_alone(compiler):
    """
    Greedy and drawn rows; the control draws with other seeds.
    """

    def plain(first_seed):
        return [make_params(first_seed + n, max_tokens=30, temperature=n % 2) for n in range(6)]

    masked = [make_params(n, GrammarKind.REGEX, "[0-9]{20,30}") for n in range(6)]
    alone = [run(make_scheduler(compiler), [each])[0] for each in plain(0)]
    pairs = zip(plain(0), masked, strict=True)
    mixed = run(make_scheduler(compiler), [row for pair in pairs for row in pair])
    assert mixed[::2] == alone
    assert all(re.fullmatch("[0-9]{20,30}", text) for text, _, _ in mixed[1::2])
    assert run(make_scheduler(compiler), plain(9)) != alone


def test_steps_that_are_launched_ahead_give_the_answers_of_a_cpu(compiler):
    """
    With and without grammars, some of which are complete before their last token.
    """
    regexes = ["[0-9]{20,30}", "[a-f]{3}", "(yes|no)"]
    params = [make_params(n, GrammarKind.REGEX, regex) for n, regex in enumerate(regexes)]
    params += [make_params(9, max_tokens=20), make_params(8, temperature=0.0, max_tokens=20)]
    answers = [
        run(make_scheduler(compiler, is_synchronous=is_synchronous), params)
        for is_synchronous in (True, False)
    ]
    assert answers[0] == answers[1]
    for regex, (text, reason, _) in zip(regexes, answers[0][:3], strict=True):
        assert (bool(re.fullmatch(regex, text)), reason) == (True, FinishReason.STOP)


def test_an_answer_depends_on_nothing_but_its_request_and_its_grammar(compiler):
    """
    The same rows in one batch, and one after the other.
    """
    params = [make_params(n, GrammarKind.JSON, '{"type": "integer"}') for n in range(5)]
    alone = [run(make_scheduler(compiler), [each])[0] for each in params]
    assert run(make_scheduler(compiler), params) == alone
    assert len(set(alone)) > 1


def test_a_grammar_that_fails_ends_its_own_request(compiler, monkeypatch):
    """
    One fails when it is compiled, one with its third token.
    """
    accept = AnswerState.accept

    def fail(self, tokens):
        accept(self, tokens)
        if "#" in self.compiled and self.accepted == 3:
            raise GrammarError("too complex")

    monkeypatch.setattr(AnswerState, "accept", fail)
    good = make_params(1, GrammarKind.REGEX, "[ab]{8}")
    broken = replace(good, grammar=make_grammar(GrammarKind.REGEX, "("))
    failing = make_params(1, GrammarKind.REGEX, "[#]{8}")
    first, second, third, fourth = run(
        make_scheduler(compiler), [good, broken, failing, make_params(1, max_tokens=8)]
    )
    assert first[1] == FinishReason.STOP
    assert re.fullmatch("[ab]{8}", first[0])
    assert second[1] == FinishReason.GRAMMAR
    assert "regex" in second[2]
    assert third == ("###", FinishReason.GRAMMAR, "too complex")
    assert fourth[1] == FinishReason.LENGTH


class PanicException(BaseException):
    """
    What Python sees of a panic in Rust: no Exception.
    """


@pytest.mark.parametrize("error", [RuntimeError("lost"), PanicException("lost")])
@pytest.mark.parametrize("where", ["compile", "accept", "is_complete", "masks"])
def test_an_error_of_a_grammar_ends_its_row_and_no_other(compiler, monkeypatch, where, error):
    """
    Wherever it is raised, neighbours with grammars get the answers that they get alone.
    """
    good = [make_params(n, GrammarKind.REGEX, "[0-9]{20,30}") for n in range(3)]
    alone = [run(make_scheduler(compiler), [each])[0] for each in good]
    owner = AnswerState if where in ("accept", "is_complete") else GrammarCompiler
    real = getattr(owner, where)
    call = real.fget if isinstance(real, property) else real

    def fail(self, *args):
        grammars = {
            "compile": lambda: args[0],
            "masks": lambda: "".join(state.compiled for state in args[0]),
        }
        if "#" in grammars.get(where, lambda: self.compiled)():
            raise error
        return call(self, *args)

    monkeypatch.setattr(owner, where, property(fail) if isinstance(real, property) else fail)
    broken = make_params(9, GrammarKind.REGEX, "[#]{20,30}")
    answers = run(make_scheduler(compiler), [good[0], broken, *good[1:]])
    text, reason, detail = answers.pop(1)
    assert (text, reason, detail) == ("", FinishReason.GRAMMAR, f"{type(error).__name__}: lost")
    assert answers == alone


@pytest.mark.parametrize(
    ("regex", "most", "text", "reason"),
    [
        ("ab", 9, "ab", FinishReason.STOP),
        ("ab", 2, "ab", FinishReason.STOP),
        ("abc", 2, "ab", FinishReason.LENGTH),
        ("", 9, "", FinishReason.STOP),
    ],
)
def test_an_answer_stops_when_it_is_complete(compiler, regex, most, text, reason):
    """
    Without a stop token of the model too, and at its last token; cut short it has another reason.
    """
    params = make_params(1, GrammarKind.REGEX, regex, max_tokens=most)
    [(found, ended, _)] = run(make_scheduler(compiler), [params])
    assert (found, ended) == (text, reason)


def test_a_model_without_a_tokenizer_refuses_a_grammar_alone(tmp_path):
    scheduler = make_scheduler(None, open_grammars(str(tmp_path), VOCABULARY, [STOP], 1))
    cut = make_params(1, max_tokens=8)
    refused, plain = run(scheduler, [make_params(1, GrammarKind.REGEX, "a"), cut])
    assert refused[1] == FinishReason.GRAMMAR
    assert "tokenizer.json" in refused[2]
    assert plain[1] == FinishReason.LENGTH


def test_a_request_is_cancelled_or_expires_while_its_grammar_is_compiled(compiler):
    scheduler = make_scheduler(compiler)
    params = make_params(1, GrammarKind.REGEX, "a{9}")
    scheduler.submit(Submit(1, PROMPT, params, 1e6), 0.0)
    assert not scheduler.is_idle
    scheduler.cancel(1)
    assert scheduler.is_idle
    scheduler.submit(Submit(2, PROMPT, params, 5.0), 0.0)
    ended = []
    while not ended:
        ended = scheduler.turn(6.0).ended
    assert [(id, reason) for id, reason, _ in ended] == [(2, FinishReason.EXPIRED)]


class HeldCompiler:
    """
    Compiles nothing before the test opens the gate of a grammar.
    """

    def __init__(self, compiler, *held):
        self._compiler = compiler
        self.gates = {text: threading.Event() for text in held}

    def compile(self, compiled):
        for text, gate in self.gates.items():
            assert text not in compiled or gate.wait(60)
        return self._compiler.compile(compiled)

    def masks(self, states):
        return self._compiler.masks(states)


def play_held(compiler, end, *, prefix_of=1):
    """
    Return what ended and the number of computed prompt tokens of three answers of one prompt.

    The grammars of the others are compiled before that of the first.

    Args:
        end: What happens to the first then.
    """
    prompt = list(range(1, 41))
    held = HeldCompiler(compiler, "[ab]{4}")
    scheduler = make_scheduler(None, Grammars(held))
    first = make_params(1, GrammarKind.REGEX, "[ab]{4}")
    if end == "refuse":
        first = replace(first, grammar=Grammar(GrammarKind.REGEX, "", "broken [ab]{4}"))
    scheduler.submit(Submit(1, prompt, first, 5.0), 0.0)
    for id in (2, 3):
        other = make_params(id, GrammarKind.REGEX, "[cd]{4}")
        scheduler.submit(Submit(id, prompt, other, 1e6, prefix_of=prefix_of), 0.0)
    while not all(scheduler._grammars._jobs[id][2].done() for id in (2, 3)):
        time.sleep(0.001)
    computed = sum(scheduler.turn(0.0).prompt_tokens for _ in range(3))
    if end == "cancel":
        scheduler.cancel(1)
    for gate in held.gates.values():
        gate.set()
    now_s = 6.0 if end == "expire" else 0.0
    ended = {}
    while not scheduler.is_idle:
        report = scheduler.turn(now_s)
        computed += report.prompt_tokens
        ended |= {id: reason for id, reason, _ in report.ended}
        if report.is_beat:
            time.sleep(0.001)
    assert scheduler.allocator.used == 0
    return ended, computed


@pytest.mark.parametrize(
    ("end", "reason", "tokens"),
    [
        ("go on", FinishReason.STOP, 40 + 8 + 8),
        ("cancel", None, 40 + 40),
        ("expire", FinishReason.EXPIRED, 40 + 40),
        ("refuse", FinishReason.GRAMMAR, 40 + 40),
    ],
)
def test_answers_of_one_prompt_compute_it_once_whichever_grammar_is_compiled_first(
    compiler, end, reason, tokens
):
    """
    Each other one computes the last page of 8 again.  They wait no longer than the first is there,
    however that ends; without it both join at once.
    """
    ended, computed = play_held(compiler, end)
    assert ended.pop(1, None) == reason
    assert ended == {2: FinishReason.STOP, 3: FinishReason.STOP}
    assert computed == tokens


def test_the_control_computes_the_prompt_of_each_request_of_its_own(compiler):
    _, computed = play_held(compiler, "go on", prefix_of=None)
    assert computed == 40 + 40 + 8  # two in one step


def test_masks_cost_no_step_and_no_overlap(compiler):
    """
    Each step is launched before the one ahead of it is collected, with grammars as without.
    """

    def steps(grammar):
        runner = FakeRunner(pages=64)
        grammars = Grammars(compiler)
        scheduler = Scheduler(
            runner, Capacity(8, 64, 0.0), [], BlockAllocator(64, 4), random.Random(1), grammars
        )
        rows = [SamplingParams(20, grammar=grammar if n % 2 else None) for n in range(6)]
        for id, params in enumerate(rows):
            scheduler.submit(Submit(id, PROMPT, params, 1e6), 0.0)
        while not all(job.done() for _, _, job in grammars._jobs.values()):
            time.sleep(0.001)
        while not scheduler.is_idle:
            scheduler.turn(0.0)
        return len(runner.steps), runner.overlaps

    assert steps(make_grammar(GrammarKind.REGEX, "[a-z]{30}")) == steps(None)
