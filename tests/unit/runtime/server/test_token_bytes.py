"""
The bytes of tokens, and the text of an answer with its scores.
"""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from runtime.engines.base.sampling import TokenLogprobs
from runtime.server.answer_text import AnswerText
from runtime.server.echo import echo_tokens
from runtime.server.token_bound import byte_alphabet
from runtime.server.token_bytes import token_bytes
from tests.unit.runtime.fakes import CharCodec


def make_byte_level():
    """
    Return a tokenizer with a token for each byte, one longer token, and a special one.
    """
    alphabet = byte_alphabet()
    tokenizer = Tokenizer(models.BPE({char: n for n, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel()])
    tokenizer.add_special_tokens([AddedToken("<|user|>", special=True)])
    return tokenizer


BYTE_LEVEL = make_byte_level()


@given(st.text())
def test_the_bytes_of_all_tokens_are_the_text(text):
    """
    Also where a token is a part of a character, and of special tokens.
    """
    for whole in (text, text + "<|user|>" + text):
        ids = BYTE_LEVEL.encode(whole).ids
        assert b"".join(token_bytes(BYTE_LEVEL, id) for id in ids) == whole.encode()


@pytest.mark.parametrize(
    ("word", "raw"),
    [("\u2581the", b" the"), ("<0xE2>", b"\xe2"), ("<0xZZ>", b"<0xZZ>"), ("sea", b"sea")],
)
def test_bytes_of_a_sentencepiece_token(word, raw):
    """
    Spaces and byte tokens are what they stand for.
    """
    tokenizer = Tokenizer(models.BPE({word: 0}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert token_bytes(tokenizer, 0) == raw
    assert token_bytes(tokenizer, 7) == b""


def make_answer(stop=(), *, is_scored=True):
    return AnswerText(CharCodec(), CharCodec(), (), stop, is_scored=is_scored)


def take(answer, text):
    tokens = [ord(char) for char in text]
    return answer.add(tokens, [TokenLogprobs(-1.0)] * len(tokens))


def shown(scores):
    return [(each.chosen.text, each.offset) for each in scores]


@given(st.text("abcd", max_size=30), st.lists(st.integers(0, 30)), st.sampled_from(["abc", "dd"]))
def test_the_scored_tokens_are_the_text_that_is_given_out(text, cuts, stop):
    """
    However the tokens come, and with a stop string.
    """
    answer, given_out, scores = make_answer([stop]), "", []
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for start, end in pairwise(places):
        given_out += take(answer, text[start:end])
        scores += answer.take_scores(is_last=answer.is_stopped)
        assert "".join(each.chosen.text for each in scores) == given_out
        if answer.is_stopped:
            break
    if not answer.is_stopped:
        given_out += answer.end()
        scores += answer.take_scores(is_last=True)
    assert given_out == text.split(stop)[0]
    assert shown(scores) == [(char, at) for at, char in enumerate(given_out)]


class ByteCodec:
    """
    A codec with one token for each byte.
    """

    def decode(self, tokens):
        return bytes(tokens).decode(errors="replace")

    def token_bytes(self, token):
        return bytes([token])


def places_of(raw):
    """
    Return which character of the text each byte is a part of.
    """
    places, start = [], 0
    while start < len(raw):
        try:
            size = len(raw[start:].decode()[0].encode())
        except UnicodeDecodeError as error:
            valid = raw[start : start + error.start].decode()
            size = len(valid[0].encode()) if valid else error.end
        places += [places[-1] + 1 if places else 0] * size
        start += size
    return places


SOME_BYTES = "aé⚓🚢".encode() + b"\xc3\xe2\xf0\xff\x80"


@given(st.lists(st.sampled_from(sorted(set(SOME_BYTES))) | st.just(0x61), max_size=24).map(bytes))
def test_a_token_begins_behind_bytes_that_became_no_character(raw):
    """
    The parts of a character begin where it does.
    """
    answer = AnswerText(ByteCodec(), ByteCodec(), (), (), is_scored=True)
    text = "".join(answer.add([token], [TokenLogprobs(-1.0)]) for token in raw) + answer.end()
    assert text == raw.decode(errors="replace")
    places = places_of(raw)
    assert [each.offset for each in answer.take_scores(is_last=True)] == places
    assert list(echo_tokens(ByteCodec(), list(raw)).offsets) == places


def test_an_answer_without_scores_has_none():
    """
    Not an empty list: nobody asked.
    """
    answer = make_answer(is_scored=False)
    assert answer.add([97]) == "a"
    assert answer.take_scores(is_last=True) is None
