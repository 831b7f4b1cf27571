"""
The bytes of each token, which may be a part of a character.
"""

import re
from functools import cache

from tokenizers import Tokenizer

from runtime.server.token_bound import byte_alphabet, states

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # of tokenizers with byte fallback
_SPACE = "\u2581"  # how SentencePiece writes it


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """
    Return the bytes that *token* stands for within a text; empty for an id without a token.
    """
    word = tokenizer.id_to_token(token)
    if word is None:
        return b""
    if token in tokenizer.get_added_tokens_decoder():
        return word.encode()
    if any(each["type"] == "ByteLevel" for each in states(tokenizer.decoder)):
        alphabet = _alphabet()
        if all(char in alphabet for char in word):
            return bytes(alphabet[char] for char in word)
    if match := _BYTE_TOKEN.fullmatch(word):
        return bytes.fromhex(match[1])
    return word.replace(_SPACE, " ").encode()


_alphabet = cache(byte_alphabet)
