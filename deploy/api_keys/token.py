"""
Tokens of API keys: made here, shown once, stored as a hash.
"""

import hashlib
import secrets

PREFIX = "sk-slipway-"  # found by scanners for secrets; some clients expect sk-
_BYTES = 32


def make_token() -> str:
    """
    Return a new token with 256 random bits.

    That many cannot be guessed, so hosts store a plain SHA-256: a slow hash protects guessable
    passwords, and would cost each request its time.
    """
    return PREFIX + secrets.token_urlsafe(_BYTES)


def hash_of(token: str) -> str:
    """
    Return what hosts store of *token*.
    """
    return hashlib.sha256(token.encode()).hexdigest()
