"""
Text to tokens and back, in the API process: the engine handles token ids only.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from runtime.contract.errors import ModelError
from runtime.server.token_bound import bound_of
from runtime.server.token_bytes import token_bytes
from runtime.server.tokenizer_files import TOKENIZER, load_tokenizer

CONTEXT_TOKENS = 8  # of a prompt that an answer's first piece is decoded with
MAX_CONTEXT_TOKENS = 64  # that a piece is decoded with, if tokens without text come before it
MAX_PENDING = 8  # tokens whose text is held back because it ends within a character
UNFINISHED_TOKENS = 3  # of them at most: a character has four bytes, and a token at least one
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

    def offsets(self, text: str, *, adds_special: bool = True) -> list[int]:
        """
        Return where the text of each token that `encode` makes begins in *text*, in characters.
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

    Attributes:
        eos_token_ids: Tokens that end an answer, whatever the model's config says.

    Raises:
        ModelError: It has none, or one that can't be read.
    """

    def __init__(self, model_dir: Path) -> None:
        loaded = load_tokenizer(model_dir)
        self._tokenizer, self.eos_token_ids = loaded.tokenizer, loaded.eos_token_ids
        try:
            self._bound = bound_of(self._tokenizer)
            self._prefix = _prefix_of(self._tokenizer)
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise ModelError(
                f"{model_dir / TOKENIZER}: can't be used",
                why=str(error),
                fix="use the file that was published with the model",
            ) from error
        self._token_bytes: dict[int, bytes] = {}  # of tokens in answers with log probabilities

    @property
    def longest_token_bytes(self) -> int | None:
        return self._bound.longest

    @property
    def vocabulary(self) -> int:
        """
        The highest token id, plus 1.
        """
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, text: str, *, adds_special: bool = True) -> list[int]:
        # `encode` holds Python's lock for as long as it takes, seconds for a long text: no other
        # request, health check or report of the engine would be answered.  The batch releases it.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=adds_special)
        ids = list(encoding.ids)
        return ids[self._doubled(ids) :] if adds_special else ids

    def offsets(self, text: str, *, adds_special: bool = True) -> list[int]:
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=adds_special)
        found, end = [], 0
        places = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        for (start, stop), is_added in places:
            # Parts of one character begin where it does.
            found.append(end if is_added else min(start, end))
            end = max(end, stop)
        return found[self._doubled(encoding.ids) :] if adds_special else found

    def _doubled(self, ids: Sequence[int]) -> int:
        """
        Return how many of the first *ids* to drop: the client has written BOS already.
        """
        prefix = self._prefix
        is_doubled = bool(prefix) and list(ids[: 2 * len(prefix)]) == prefix * 2
        return len(prefix) if is_doubled else 0

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

    def tokens_from(self, first: int) -> list[tuple[str, int]]:
        """
        Return the tokens with the ids from *first* on, by id.
        """
        vocabulary = self._tokenizer.get_vocab()
        found = [(text, id) for text, id in vocabulary.items() if id >= first]
        return sorted(found, key=lambda pair: pair[1])


class _KeepingDecoder:
    """
    Skips some of the special tokens alone.
    """

    def __init__(self, tokenizer: Tokenizer, skipped: Collection[int]) -> None:
        self._tokenizer, self._skipped = tokenizer, skipped

    def decode(self, tokens: Sequence[int]) -> str:
        kept = [token for token in tokens if token not in self._skipped]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))


def _prefix_of(tokenizer: Tokenizer) -> list[int]:
    """
    Return the tokens that the tokenizer puts before a text, such as BOS.
    """
    plain, whole = (
        tokenizer.encode_batch_fast(["0"], add_special_tokens=adds)[0].ids for adds in (False, True)
    )
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return list(whole[:start])
    return []


class Detokenizer:
    """
    Decodes tokens incrementally; the parts joined are the decoded whole.

    Text is held back while it ends within a character, for less than MAX_PENDING tokens: bytes may
    come that never become one.  Tokens are decoded together with those of the part before, because
    decoders treat the first token of a text differently: some drop its space.  Tokens without text,
    such as special ones, are no such part.

    Args:
        prompt: What the tokens continue.

    Attributes:
        lead: Characters that were held back before the newest tokens and are not of their text.
    """

    def __init__(self, codec: Decoder, prompt: Sequence[int] = ()) -> None:
        self.lead = 0
        self._codec = codec
        self._held = ""  # text that was held back
        self._begin = 0  # where its last character begins
        self._tokens = list(prompt[-CONTEXT_TOKENS:])
        if codec.decode(self._tokens).endswith(REPLACEMENT):
            self._tokens = []  # the prompt ends within a character, which is none of the answer
        self._context = 0  # where the piece before begins
        self._done = len(self._tokens)  # tokens whose text was given out

    def add(self, tokens: Sequence[int], *, is_last: bool = False) -> str:
        self._tokens += tokens
        before = self._codec.decode(self._tokens[self._context : self._done])
        text = self._codec.decode(self._tokens[self._context :])
        end, held, self._held = len(self._tokens), self._held, ""
        self.lead, self._begin = self._begin, 0
        if len(text) > len(before) + len(held) and text.startswith(held, len(before)):
            self.lead = len(held)  # it was no beginning of a character: more text follows it
        if text.endswith(REPLACEMENT) and not is_last:
            if end - self._done < MAX_PENDING:
                self._held, self._begin = text[len(before) :], self.lead
                return ""
            whole = text
            end, text = self._settled(whole)
            self._held = whole[len(text) :]
        if len(text) > len(before) or end - self._context > MAX_CONTEXT_TOKENS:
            self._context = self._done
        self._done = end
        return text[len(before) :]

    def _settled(self, text: str) -> tuple[int, str]:
        """
        Return the end of the tokens whose text no later one changes, and their part of *text*.
        """
        last = len(self._tokens) - UNFINISHED_TOKENS
        # A character of four tokens has three ends within it: the fourth is outside.
        for end in range(last, last - UNFINISHED_TOKENS - 1, -1):
            settled = self._codec.decode(self._tokens[self._context : end])
            if text.startswith(settled):  # it does not end within a character
                return end, settled
        return len(self._tokens), text


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
