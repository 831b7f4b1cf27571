"""
The least number of tokens that a text can have, without tokenizing it.

A token covers as many bytes as it is long.  So a byte whose longest token has 20 bytes is at least
a twentieth of a token, and the sum over all bytes of a text bounds its tokens from below.
"""

import json
import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

_PART_CHARS = 1 << 16  # counted at once
_NFC_SHRINKS = 3  # NFC makes UTF-8 at most three times shorter
_MOST_GROUPS = 8
_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True, slots=True)
class TokenBound:
    """
    The bound of one tokenizer.

    Attributes:
        longest: Bytes of the longest token; None where no bound is known.
        groups: Bytes with the length of the longest token that has one of them.  A byte of no group
            counts nothing.
        has_nfc: Whether the tokenizer normalizes to NFC before.
        longest_chars: Characters of the longest token, where characters are counted in place of
            bytes; 0 elsewhere.
    """

    longest: int | None
    groups: tuple[tuple[int, bytes], ...] = ()
    has_nfc: bool = False
    longest_chars: int = 0

    def least_tokens(self, text: str, enough: int) -> int:
        """
        Return a number of tokens that *text* has at least; stop counting at *enough*.
        """
        if self.longest is None:
            return 0
        if self.longest_chars:
            return min(math.ceil(len(text) / self.longest_chars), enough)
        if self.has_nfc and not unicodedata.is_normalized("NFC", text):
            return min(math.ceil(len(text.encode()) / (_NFC_SHRINKS * self.longest)), enough)
        least = 0.0
        for start in range(0, len(text), _PART_CHARS):
            rest = text[start : start + _PART_CHARS].encode()
            for length, members in self.groups:
                others = rest.translate(None, members)
                least += (len(rest) - len(others)) / length
                rest = others
            if least >= enough:
                return enough
        return math.ceil(least - 1e-6)  # sums of fractions are not exact


NO_BOUND = TokenBound(longest=None)


def bound_of(tokenizer: Tokenizer) -> TokenBound:
    """
    Return the bound of *tokenizer*; NO_BOUND for kinds that may drop or join any text.

    Supported: byte-level BPE, without a normalizer or with NFC; and BPE as of SentencePiece, where
    bytes stand for what is in no token.
    """
    model = tokenizer.model
    normalizer = states(tokenizer.normalizer)
    splitters = states(tokenizer.pre_tokenizer)
    added = tokenizer.get_added_tokens_decoder().values()
    if (
        not isinstance(model, BPE)
        or not all(_keeps_text(each) for each in splitters)
        or any(token.lstrip or token.rstrip for token in added)  # they take any white space
    ):
        return NO_BOUND
    added_texts = [token.content for token in added]
    vocabulary = tokenizer.get_vocab(with_added_tokens=False).keys()
    if any(each["type"] == "ByteLevel" for each in splitters):
        if any(each["type"] != "NFC" for each in normalizer):
            return NO_BOUND
        return _byte_bound(vocabulary, added_texts, has_nfc=bool(normalizer))
    if model.byte_fallback and vocabulary >= _BYTE_TOKENS and all(map(_keeps_length, normalizer)):
        texts = [*vocabulary, *added_texts]
        longest = max(len(text.encode()) for text in texts)
        return TokenBound(longest, longest_chars=max(map(len, texts)))
    return NO_BOUND


def _byte_bound(vocabulary: Iterable[str], added: Iterable[str], *, has_nfc: bool) -> TokenBound:
    alphabet = byte_alphabet()
    words = set(vocabulary)
    # What is in no token alone may be dropped by the tokenizer.
    known = {char for char in words if char in alphabet}
    lengths = [0] * 256
    for word in sorted(words, key=len, reverse=True):
        for char in known & set(word):
            lengths[alphabet[char]] = len(word)
        known -= set(word)
        if not known:
            break
    for text in added:
        for byte in set(raw := text.encode()):
            lengths[byte] = lengths[byte] and max(lengths[byte], len(raw))
    if has_nfc:
        # Later versions of Unicode than Python's compose characters of four bytes only.
        lengths[0xF0:] = [0] * 16
    longest = max(map(len, [*words, *(text.encode() for text in added), "x"]))
    return TokenBound(longest, _group(lengths), has_nfc)


def _group(lengths: list[int]) -> tuple[tuple[int, bytes], ...]:
    """
    Return the bytes by length, in few groups: each has the length of its longest.
    """
    distinct = sorted({length for length in lengths if length})
    size = math.ceil(len(distinct) / _MOST_GROUPS) or 1
    groups = []
    for start in range(0, len(distinct), size):
        members = distinct[start : start + size]
        groups.append((members[-1], bytes(b for b in range(256) if lengths[b] in members)))
    return tuple(groups)


def byte_alphabet() -> dict[str, int]:
    """
    Return the byte of each character with which byte-level tokenizers write it.

    Source: GPT-2's `bytes_to_unicode`: printable bytes as themselves, the others from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    by_char = {chr(byte): byte for byte in printable}
    return by_char | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def states(component: Any) -> list[dict[str, Any]]:
    """
    Return the parts of a normalizer, pre-tokenizer or decoder, as tokenizer.json has them.
    """
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    if state["type"] != "Sequence":
        return [state]
    parts = ("normalizers", "pretokenizers", "decoders")
    return next((list(state[part]) for part in parts if state.get(part)), [])


def _keeps_text(state: dict[str, Any]) -> bool:
    kind = state["type"]
    if kind in ("Split", "Punctuation"):
        return state.get("behavior") != "Removed"
    return kind in ("ByteLevel", "Digits", "Metaspace")


def _keeps_length(state: dict[str, Any]) -> bool:
    """
    Return whether a normalizer never makes a text shorter, in characters.
    """
    if state["type"] == "Replace":
        replaced = state["pattern"].get("String")
        return replaced is not None and len(state["content"]) >= len(replaced)
    return bool(state["type"] == "Prepend")
