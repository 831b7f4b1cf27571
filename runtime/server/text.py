"""
Text to tokens and back, in the API process: the engine handles token ids only.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

# Before the first use: one text is tokenized by one thread, so a thread for each core only waits.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from tokenizers import Tokenizer

from runtime.contract.errors import ModelError
from runtime.server.token_bound import bound_of
from runtime.server.token_bytes import token_bytes

TOKENIZER = "tokenizer.json"
REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to


def is_unicode(text: str) -> bool:
    """
    Return whether *text* can be tokenized: JSON may hold one half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Decoder(Protocol):
    def decode(self, tokens: Sequence[int]) -> str: ...


class Codec(Decoder, Protocol):
    """
    Attributes:
        longest_token_bytes: None where it bounds nothing.
    """

    @property
    def longest_token_bytes(self) -> int | None: ...

    def encode(self, text: str, *, adds_special: bool = True) -> list[int]:
        """
        Args:
            adds_special: Put the tokenizer's own tokens around, such as BOS.
        """

    def least_tokens(self, text: str, enough: int) -> int:
        """
        Return, in milliseconds, a number of tokens that *text* has at least; *enough* at most.
        """

    def keeping(self, marks: Collection[str]) -> Decoder:
        """
        Return a decoder that keeps *marks* in the text, even if they are special tokens.
        """

    def verbatim(self) -> Decoder:
        """
        Return a decoder that keeps all special tokens in the text.
        """

    def token_bytes(self, token: int) -> bytes:
        """
        Return the bytes of *token* within a text; they may be a part of a character.
        """


class TokenizerCodec:
    """
    The tokenizer of a model directory.

    Raises:
        ModelError: It has none, or one that can't be read.
    """

    def __init__(self, model_dir: Path) -> None:
        path = model_dir / TOKENIZER
        try:
            self._tokenizer = Tokenizer.from_buffer(path.read_bytes())
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise ModelError(
                f"{path}: can't be read", why=str(error), fix="give the directory of a whole model"
            ) from error
        # A prompt that is too long is an error of its request, not cut without a word.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._bound = bound_of(self._tokenizer)
        self._token_bytes: dict[int, bytes] = {}  # of tokens in answers with log probabilities

    @property
    def longest_token_bytes(self) -> int | None:
        return self._bound.longest

    @property
    def vocabulary(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, *, adds_special: bool = True) -> list[int]:
        # `encode` holds Python's lock for as long as it takes, seconds for a long text: no other
        # request, health check or report of the engine would be answered.  The batch releases it.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=adds_special)
        return list(encoding.ids)

    def least_tokens(self, text: str, enough: int) -> int:
        return self._bound.least_tokens(text, enough)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def token_bytes(self, token: int) -> bytes:
        if token not in self._token_bytes:
            self._token_bytes[token] = token_bytes(self._tokenizer, token)
        return self._token_bytes[token]

    def keeping(self, marks: Collection[str]) -> Decoder:
        added = self._tokenizer.get_added_tokens_decoder()
        special = {id: token.content for id, token in added.items() if token.special}
        skipped = frozenset(id for id, text in special.items() if text not in marks)
        return self if len(skipped) == len(special) else _KeepingDecoder(self._tokenizer, skipped)

    def verbatim(self) -> Decoder:
        return _KeepingDecoder(self._tokenizer, ())


class _KeepingDecoder:
    """
    Skips some of the special tokens alone.
    """

    def __init__(self, tokenizer: Tokenizer, skipped: Collection[int]) -> None:
        self._tokenizer, self._skipped = tokenizer, skipped

    def decode(self, tokens: Sequence[int]) -> str:
        kept = [token for token in tokens if token not in self._skipped]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))


class Detokenizer:
    """
    Decodes tokens incrementally; the parts joined are the decoded whole.

    Text is held back while it ends within a character.  Tokens are decoded together with those
    of the part before, because decoders treat the first token of a text differently.
    """

    def __init__(self, codec: Decoder) -> None:
        self._codec = codec
        self._tokens: list[int] = []
        self._context = 0  # where the piece before begins
        self._done = 0  # tokens whose text was given out

    def add(self, tokens: Sequence[int], *, is_last: bool = False) -> str:
        self._tokens += tokens
        before = self._codec.decode(self._tokens[self._context : self._done])
        text = self._codec.decode(self._tokens[self._context :])
        if text.endswith(REPLACEMENT) and not is_last:
            return ""
        self._context, self._done = self._done, len(self._tokens)
        return text[len(before) :]


class StopScanner:
    """
    Ends a text at the first of some strings, which does not become part of it.

    Attributes:
        is_stopped: Whether one was found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.is_stopped = False
        self._stops = stops
        self._held = ""

    def add(self, text: str, *, is_last: bool = False) -> str:
        """
        Return what of the text so far can be given out.
        """
        if not self._stops or self.is_stopped:
            return "" if self.is_stopped else text
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            cut = min(found)
        else:
            cut = len(self._held) - (0 if is_last else self._undecided())
        given, self._held = self._held[:cut], self._held[cut:]
        return given

    def _undecided(self) -> int:
        # the longest end of the text that a stop string begins with
        most = max(len(stop) for stop in self._stops) - 1
        for length in range(min(most, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
