"""
The file of API keys as the runtime reads it.  Pure.

The host program writes it (`deploy/host/api_keys.py`).  It has hashes of tokens, never a token.
Unknown fields are ignored: a newer release may have written them.
"""

import hashlib
import json
from collections.abc import Iterator
from hmac import compare_digest
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from runtime.server.schemas import problems_of

MAX_FILE_BYTES = 1 << 20
MAX_KEYS = 1000
MAX_TOKEN_BYTES = 512  # of a token that a client sends; none of ours is longer
_SHOWN = 3  # problems that a message names

# pydantic's `$` is the end of the text, also before a line end.
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, hide_input_in_errors=True)


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # JSON has no tuples


class TokenHash(_Loose):
    """
    Attributes:
        expires_at: Seconds since 1970; None: it does not expire.
    """

    sha256: Digest
    expires_at: int | None = None


class ServedKey(_Loose):
    """
    A key and what it may do.

    Attributes:
        secrets: Hashes of its tokens; empty: it is revoked.
        models: Names of models; empty: all.
        weight: Share of the engine, compared with keys of the same priority.
        priority: Keys with a lower number are computed first.
        concurrency: Most of its answers that are computed at once; None: no limit.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    secrets: Annotated[tuple[TokenHash, ...], BeforeValidator(_tuple), Field(max_length=16)] = ()
    models: Annotated[tuple[str, ...], BeforeValidator(_tuple), Field(max_length=64)] = ()
    requests_per_minute: int | None = Field(default=None, ge=1, le=10**9)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10**9)
    weight: int = Field(default=1, ge=1, le=100)
    priority: int = Field(default=5, ge=0, le=9)
    concurrency: int | None = Field(default=None, ge=1, le=10**6)


class _Document(_Loose):
    format: Literal[1]
    version: int = Field(ge=1)
    keys: Annotated[tuple[ServedKey, ...], BeforeValidator(_tuple), Field(max_length=MAX_KEYS)]


class KeyRing:
    """
    The keys that are accepted, by the hash of their tokens.

    Attributes:
        version: Of the list; 0: there is no valid one, and no key is accepted.
    """

    def __init__(self, version: int = 0, keys: tuple[ServedKey, ...] = ()) -> None:
        self.version = version
        self._by_hash = dict(_hashes(keys))

    def __len__(self) -> int:
        return len(self._by_hash)

    def find(self, token: bytes) -> tuple[ServedKey, TokenHash] | None:
        """
        Return the key of *token*, also an expired one; None if no key has it.

        The token is hashed before it is compared, so the time says nothing about a stored hash
        that helps to find its token.
        """
        if not token or len(token) > MAX_TOKEN_BYTES:
            return None
        digest = hashlib.sha256(token).hexdigest()
        found = self._by_hash.get(digest)
        if found is None or not compare_digest(found[1].sha256, digest):
            return None
        return found


def parse_keys(content: bytes) -> KeyRing:
    """
    Return the keys in *content*.

    Raises:
        ValueError: It is no list of keys; the message has no value of it.
    """
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
    try:
        document = _Document.model_validate(json.loads(content))
    except ValidationError as error:
        raise ValueError("; ".join(problems_of(error)[:_SHOWN])) from None
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    hashes = [digest for digest, _ in _hashes(document.keys)]
    if len(set(hashes)) != len(hashes):
        raise ValueError("two keys have the same token")
    return KeyRing(document.version, document.keys)


def _hashes(keys: tuple[ServedKey, ...]) -> Iterator[tuple[str, tuple[ServedKey, TokenHash]]]:
    for key in keys:
        for secret in key.secrets:
            yield secret.sha256, (key, secret)
