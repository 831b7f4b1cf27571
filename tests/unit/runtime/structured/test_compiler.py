"""
Masks: which tokens may come next, and when an answer may end.
"""

import json

import numpy as np
import pytest

from runtime.structured import GrammarError, GrammarKind, GrammarUnavailable
from runtime.structured.compiler import GrammarCompiler, translate
from runtime.structured.limits import ParserLimits
from tests.unit.runtime.builders import make_tokenizer
from tests.unit.runtime.structured.hostile import HOSTILE

TOKENIZER = make_tokenizer()
SIZE = TOKENIZER.get_vocab_size()
STOPS = [TOKENIZER.token_to_id("~"), TOKENIZER.token_to_id("}")]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    TOKENIZER.save(str(path))
    return path


@pytest.fixture(scope="module")
def compiler(path):
    return GrammarCompiler(path, SIZE + 40, STOPS)


def start(compiler, kind, text, accepted=""):
    state = compiler.compile(translate(kind, text))
    state.accept(TOKENIZER.encode(accepted).ids)
    return state


def read(compiler, state):
    """
    Return the characters that may come, with `<stop>` for the stop tokens.
    """
    [mask] = compiler.masks([state])
    assert len(mask.words) == 4 * -(-(SIZE + 40) // 32)
    bits = np.unpackbits(np.frombuffer(mask.words, np.uint8), bitorder="little")
    ids = set(np.flatnonzero(bits).tolist())
    assert all(id < SIZE for id in ids), "a row of the head without a token"
    has_stop = set(STOPS) <= ids
    assert has_stop == mask.may_end
    assert has_stop or ids.isdisjoint(STOPS)
    assert mask.is_empty == (not ids)
    chars = {TOKENIZER.decode([id]) for id in ids - set(STOPS)}
    return "".join(sorted(chars)) + ("<stop>" if has_stop else "")


@pytest.mark.parametrize(
    ("accepted", "allowed"), [("", "ab"), ("a", "12"), ("a1", "12<stop>"), ("a12", "<stop>")]
)
def test_a_mask_has_the_next_tokens_and_stop_tokens_at_an_end(compiler, accepted, allowed):
    state = start(compiler, GrammarKind.REGEX, "[ab][12]{1,2}", accepted)
    assert read(compiler, state) == allowed
    assert state.is_complete == (allowed == "<stop>")


def test_a_stop_token_is_no_text(compiler):
    """
    Neither the grammar's own "}" nor a token that it names ends an answer that does not match.
    """
    assert read(compiler, start(compiler, GrammarKind.REGEX, "a?}")) == "a"


def test_choices_are_taken_literally(compiler):
    choices = json.dumps(["a|b", 'say "no"', "c\\d"])
    assert read(compiler, start(compiler, GrammarKind.CHOICE, choices)) == "acs"
    assert read(compiler, start(compiler, GrammarKind.CHOICE, choices, "a")) == "|"
    assert start(compiler, GrammarKind.CHOICE, choices, 'say "no"').is_complete
    assert start(compiler, GrammarKind.CHOICE, choices, "c\\d").is_complete


def test_one_bad_answer_leaves_the_others(compiler):
    bad, good, worse = (start(compiler, GrammarKind.REGEX, "ab") for _ in range(3))
    for each in (bad, worse):
        with pytest.raises(GrammarError):
            each.accept(TOKENIZER.encode("x").ids)
    masks = compiler.masks([bad, good, worse])
    assert [isinstance(mask, GrammarError) for mask in masks] == [True, False, True]
    assert read(compiler, good) == "a"
    assert read(compiler, start(compiler, GrammarKind.REGEX, "ab")) == "a"


def test_answers_of_one_grammar_are_apart(compiler):
    first, second = (start(compiler, GrammarKind.REGEX, "abc") for _ in range(2))
    first.accept(TOKENIZER.encode("ab").ids)
    assert (read(compiler, first), read(compiler, second)) == ("c", "a")


def test_white_space_ends(compiler):
    """
    A model that likes blanks can't fill its answer with them.
    """
    blanks = start(compiler, GrammarKind.JSON, '{"type": "object"}', "{" + " " * 40)
    assert " " not in read(compiler, blanks)
    one = start(compiler, GrammarKind.JSON, '{"type": "object"}', "{ ")
    assert " " in read(compiler, one)


def test_a_mask_takes_no_more_than_its_limits(path):
    """
    Control: with the usual limits the first mask is there.
    """
    kind, text = HOSTILE["doubling Lark"]
    tight = GrammarCompiler(path, SIZE, STOPS, limits=ParserLimits(step_max_items=10))
    state = tight.compile(translate(kind, text))
    tight.masks([state])
    with pytest.raises(GrammarError):
        state.accept(TOKENIZER.encode("aa").ids)
    wide = GrammarCompiler(path, SIZE, STOPS)
    [mask] = wide.masks([wide.compile(translate(GrammarKind.REGEX, "a*"))])
    assert not mask.is_empty


@pytest.mark.parametrize("others", [[SIZE + 40], [-1], [-1, 2**31 - 1, 10**30]])
@pytest.mark.parametrize("stops", [STOPS, []])
def test_stop_tokens_that_the_model_does_not_have_are_left_out(path, stops, others):
    """
    config.json of published models names some.
    """
    compiler, plain = (GrammarCompiler(path, SIZE + 40, ids) for ids in (stops + others, stops))
    masks = [
        each.masks([start(each, GrammarKind.CHOICE, '["a"]', accepted)])
        for each in (compiler, plain)
        for accepted in ("", "a")
    ]
    assert masks[:2] == masks[2:]


@pytest.mark.parametrize("stops", [[], [STOPS[1]]])
@pytest.mark.parametrize("rows", [SIZE - 1, 64, 65, 96 - 32])
def test_a_token_without_a_row_is_never_allowed(path, rows, stops):
    """
    As with a special token that a fine-tune added to tokenizer.json alone.
    """
    compiler, plain = (GrammarCompiler(path, size, stops) for size in (rows, SIZE))
    for accepted in ("", "a"):
        masks = [
            each.masks([start(each, GrammarKind.REGEX, ".*", accepted)])[0]
            for each in (compiler, plain)
        ]
        bits = [np.unpackbits(np.frombuffer(m.words, np.uint8), bitorder="little") for m in masks]
        kept, wanted = (set(np.flatnonzero(each).tolist()) for each in bits)
        assert len(masks[0].words) == 4 * -(-rows // 32)
        assert kept == {id for id in wanted if id < rows}
        assert masks[0].may_end
        assert not masks[0].is_empty
    [mask] = compiler.masks([start(compiler, GrammarKind.CHOICE, '["~"]')])
    assert mask.is_empty == (TOKENIZER.token_to_id("~") >= rows)


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(GrammarUnavailable, match=r"none\.json"):
        GrammarCompiler(tmp_path / "none.json", SIZE)
