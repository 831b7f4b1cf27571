"""
The least number of tokens of a text, against real tokenizers.
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from runtime.server.token_bound import NO_BOUND, bound_of

CORPUS = ["where ships meet the sea " * 20, "    return self.value\n" * 20, "船 は港へ " * 20]
SPLIT = Regex(r"\s+|\w+|[^\s\w]+")


def make_tokenizer(*, normalizer=None, splitter=None, alphabet=True, added=()):
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [splitter or pre_tokenizers.Split(SPLIT, "isolated"), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(list(added))
    return tokenizer


def make_sentencepiece(*, has_bytes=True, normalizer=None):
    """
    As Llama 2's: spaces are characters of tokens, and bytes stand for what is in none.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    document = json.loads(trained.to_str())["model"]
    words = [*document["vocab"], "<unk>", *(f"<0x{b:02X}>" for b in range(256 if has_bytes else 9))]
    tokenizer = Tokenizer(
        models.BPE(
            {word: id for id, word in enumerate(words)},
            [tuple(pair) for pair in document["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizer or normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.add_special_tokens(["<|a very long added token of the sea|>"])
    return tokenizer


TOKENIZERS = {
    "sentencepiece": make_sentencepiece(),
    "plain": make_tokenizer(),
    "nfc": make_tokenizer(normalizer=normalizers.NFC()),
    "sparse": make_tokenizer(alphabet=False),  # drops what it has no token for
    "added": make_tokenizer(added=["<|a very long added token of the sea|>", "ships"]),
}
PIECES = (
    "ships ",
    "<|a very long added token of the sea|>",
    "    ",
    "e\u0301",
    "\u1100\u1161\u11a8",
    "船は",
    "\n",
    "\U0001f6a2",
)
TEXT = st.text(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(text=TEXT)
def test_a_text_never_has_fewer_tokens(name, text):
    """
    For any text and each supported kind; otherwise a good prompt would be refused.
    """
    tokenizer = TOKENIZERS[name]
    bound = bound_of(tokenizer)
    assert bound is not NO_BOUND
    assert bound.least_tokens(text, 10**9) <= len(tokenizer.encode(text).ids)


def test_the_property_would_notice():
    """
    Negative control: a bound that takes tokens for shorter than they are is wrong.
    """
    bound = bound_of(TOKENIZERS["plain"])
    short = type(bound)(1, tuple((1, members) for _, members in bound.groups))
    text = "where ships meet the sea"
    assert short.least_tokens(text, 10**9) > len(TOKENIZERS["plain"].encode(text).ids)


@pytest.mark.parametrize("name", ["plain", "sentencepiece"])
@pytest.mark.parametrize("text", ["a" * 100_000, "船" * 100_000, " " * 100_000])
def test_a_long_text_is_known_to_be_long(name, text):
    """
    The bound is of use: within a factor of the longest token.
    """
    bound = bound_of(TOKENIZERS[name])
    assert bound.least_tokens(text, 2000) == 2000
    assert bound.least_tokens(text[:100], 2000) <= 300


@pytest.mark.parametrize(
    "tokenizer",
    [
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
        make_tokenizer(normalizer=normalizers.Lowercase()),
        make_tokenizer(splitter=pre_tokenizers.WhitespaceSplit()),
        make_tokenizer(splitter=pre_tokenizers.Split(SPLIT, "removed")),
        make_tokenizer(added=[AddedToken("<mask>", lstrip=True)]),
        make_sentencepiece(has_bytes=False),  # unknown characters are one token, however many
        make_sentencepiece(normalizer=normalizers.Replace(Regex(" +"), "\u2581")),
        make_sentencepiece(normalizer=normalizers.Replace("  ", " ")),
    ],
    ids=[
        *("word level", "normalizer", "white space", "removed", "strips"),
        *("no bytes", "joins", "shortens"),
    ],
)
def test_where_text_may_vanish_there_is_no_bound(tokenizer):
    """
    Nothing is refused by its size then; `least_tokens` is 0.
    """
    assert bound_of(tokenizer) is NO_BOUND
    assert NO_BOUND.least_tokens("a" * 10_000, 5) == 0
