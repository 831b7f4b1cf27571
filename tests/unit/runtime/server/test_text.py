import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from runtime.contract.errors import ModelError
from runtime.server.text import Detokenizer, StopScanner, TokenizerCodec

TEXTS = ["where ships meet the sea", "naïve café — 船は港へ 🚢⚓", "a b  c\n\nd"]


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>", "<|call|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save(str(folder / "tokenizer.json"))
    return TokenizerCodec(folder)


@pytest.fixture(scope="module")
def framed(codec, tmp_path_factory):
    """
    As *codec*, with <end> around each text, as BOS and EOS.
    """
    tokenizer = Tokenizer.from_str(codec._tokenizer.to_str())
    end = tokenizer.token_to_id("<end>")
    frame = processors.TemplateProcessing(single="<end> $A <end>", special_tokens=[("<end>", end)])
    # As Llama's: it takes the space in front of a word out of the offsets.
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), frame])
    folder = tmp_path_factory.mktemp("framed")
    tokenizer.save(str(folder / "tokenizer.json"))
    return TokenizerCodec(folder)


@given(text=st.sampled_from(TEXTS) | st.text(max_size=30), typed=st.sampled_from(["", "<|call|>"]))
def test_offsets_are_where_tokens_begin_in_the_text(framed, text, typed):
    """
    Special tokens that the client wrote have a place of their own; those that the tokenizer adds
    have no text.  The parts of a character begin where it does.
    """
    text = f"{typed}{text}{typed} end"
    tokens, offsets = framed.encode(text), framed.offsets(text)
    assert (offsets[0], offsets[-1]) == (0, len(text))
    begin, raw = 0, text.encode()
    for token, offset in zip(tokens[1:-1], offsets[1:-1], strict=True):
        assert offset == len(raw[:begin].decode(errors="ignore"))
        begin += len(framed.token_bytes(token))
    assert begin == len(raw)
    inner = framed.offsets(text, adds_special=False)
    assert (len(tokens), inner) == (len(offsets), offsets[1:-1])


def test_offsets_have_one_bos(framed):
    """
    As `encode` has it, of a client that wrote it.
    """
    assert framed.offsets("<end>ab") == [0, 5, 6, 7]
    assert len(framed.encode("<end>ab")) == 4


def chunks(items, cuts):
    at = 0
    for cut in cuts:
        yield items[at : at + cut]
        at += cut
    yield items[at:]


@given(data=st.data(), text=st.sampled_from(TEXTS) | st.text(max_size=30))
def test_the_deltas_together_are_the_text(codec, data, text):
    """
    For any division of the tokens; no delta ends within a character.
    """
    tokens = codec.encode(text)
    cuts = data.draw(st.lists(st.integers(0, 4), max_size=10))
    detokenizer = Detokenizer(codec)

    pieces = [detokenizer.add(chunk) for chunk in chunks(tokens, cuts)]
    last = detokenizer.add((), is_last=True)

    assert "".join(pieces) + last == codec.decode(tokens)
    assert not any(piece.endswith("\ufffd") for piece in pieces)


@pytest.mark.parametrize("text", ["\x80\U00010000\u0800", "a\U00010000\U00010000\U00010000"])
@pytest.mark.parametrize("first", range(9))
def test_a_character_that_ends_where_much_is_pending_is_whole(codec, text, first):
    """
    Two characters of many tokens, with an unfinished one behind, in every division.
    """
    tokens = codec.encode(text)
    for second in range(len(tokens) - first + 1):
        detokenizer = Detokenizer(codec)
        pieces = [detokenizer.add(chunk) for chunk in chunks(tokens, [first, second])]
        assert "".join(pieces) + detokenizer.add((), is_last=True) == text


def test_marks_are_kept_though_they_are_special_tokens(codec):
    """
    And no other special token, nor these without being asked for.
    """
    tokens = codec.encode("<|call|>where<end> ships<|call|>")
    assert codec.decode(tokens) == "where ships"
    decoder = codec.keeping(("<|call|>", "ships", "absent"))
    assert decoder.decode(tokens) == "<|call|>where ships<|call|>"
    detokenizer = Detokenizer(decoder)
    pieces = [detokenizer.add([token]) for token in tokens]
    assert "".join(pieces) == "<|call|>where ships<|call|>"
    assert codec.keeping(("absent",)) is codec


def test_a_partial_character_is_held_back(codec):
    """
    Negative control: the ship is several tokens, and nothing is emitted before the last.
    """
    tokens = codec.encode("\U0001f6a2")
    assert len(tokens) > 1
    detokenizer = Detokenizer(codec)

    assert [detokenizer.add([token]) for token in tokens[:-1]] == [""] * (len(tokens) - 1)
    assert detokenizer.add(tokens[-1:]) == "\U0001f6a2"


class Counting:
    """
    A decoder that counts the tokens that it was given.
    """

    def __init__(self, decoder):
        self._decoder, self.count = decoder, 0

    def decode(self, tokens):
        self.count += len(tokens)
        return self._decoder.decode(tokens)


@pytest.mark.parametrize(
    "pattern", [b"\xff", b"\xe2", b"\xe2\x82", b"\xe2\x82\xacaaaa\xff", b"\xf0\x9f"]
)
def test_bytes_that_are_no_text_are_decoded_in_linear_time(codec, pattern):
    """
    They all end within a character; the text is that of the whole.
    """
    of_byte = {codec.token_bytes(id): id for id in range(codec.vocabulary)}
    tokens = [of_byte[bytes([byte])] for byte in pattern * (2000 // len(pattern))]
    decoder = Counting(codec)
    detokenizer = Detokenizer(decoder)
    pieces = [detokenizer.add([token]) for token in tokens]
    assert decoder.count < 40 * len(tokens)
    assert "".join(pieces) + detokenizer.add((), is_last=True) == codec.decode(tokens)
    assert any(pieces)


@given(bytes_=st.lists(st.sampled_from("\u00e9\u8239\U0001f6a2a".encode()), max_size=40))
def test_any_bytes_come_out_as_decoded_at_once(codec, bytes_):
    of_byte = {codec.token_bytes(id): id for id in range(codec.vocabulary)}
    tokens = [of_byte[bytes([byte])] for byte in bytes_]
    detokenizer = Detokenizer(codec)
    pieces = [detokenizer.add([token]) for token in tokens]
    assert "".join(pieces) + detokenizer.add((), is_last=True) == codec.decode(tokens)


def test_a_partial_character_at_the_end_is_emitted(codec):
    """
    At the end nothing is held back.
    """
    detokenizer = Detokenizer(codec)
    assert detokenizer.add(codec.encode("\U0001f6a2")[:1]) == ""
    assert detokenizer.add((), is_last=True) == "\ufffd"


@given(
    text=st.text("abc", max_size=20),
    stops=st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    cuts=st.lists(st.integers(0, 4), max_size=8),
)
def test_the_text_ends_before_the_first_stop_string(text, stops, cuts):
    """
    For any division into deltas.
    """
    scanner = StopScanner(stops)
    given_out = "".join(scanner.add(piece) for piece in chunks(text, cuts))
    given_out += scanner.add("", is_last=True)

    ends = [text.find(stop) for stop in stops if stop in text]
    if not scanner.is_stopped:
        assert not ends
        assert given_out == text
    else:
        assert not any(stop in given_out for stop in stops)
        assert any(text.startswith(given_out + stop) for stop in stops)


def test_only_a_possible_stop_string_is_held_back():
    """
    A delta that cannot begin a stop string is emitted at once.
    """
    scanner = StopScanner(["\n\n"])
    assert scanner.add("one line") == "one line"
    assert scanner.add("\n") == ""
    assert scanner.add("more") == "\nmore"
    assert not scanner.is_stopped


def test_a_model_without_a_tokenizer_is_named(tmp_path):
    """
    The error names the file.
    """
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        TokenizerCodec(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        TokenizerCodec(tmp_path)


def test_a_long_text_does_not_stop_other_threads(codec):
    """
    Health checks and the engine's reports are answered while a prompt is tokenized.

    The text is long enough for many turns; `Tokenizer.encode` would let none pass.
    """
    turns = 0
    text = "where ships meet the sea " * 20_000
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(codec.encode, text)
        while not job.done():
            turns += 1
            time.sleep(0)
    assert turns > 100
    assert len(job.result()) > 20_000


def test_a_prompt_is_never_cut_or_padded(codec, tmp_path):
    """
    A tokenizer.json may ask for both; the prompt would not be the client's.
    """
    tokenizer = Tokenizer.from_str(codec._tokenizer.to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert TokenizerCodec(tmp_path).encode(TEXTS[0]) == codec.encode(TEXTS[0])
    assert len(codec.encode(TEXTS[0])) > 4
