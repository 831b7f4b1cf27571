"""
Who may send requests: the tokens of the environment, the keys of the file, the host's own checks.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from hmac import compare_digest

from pydantic import SecretStr

from runtime.contract import TIMEOUT_HEADER
from runtime.server.admission import Refusal
from runtime.server.caller import Caller
from runtime.server.key_watch import KeyWatch
from runtime.server.rate_limits import RateLimits

HOST = "(host)"  # the host program's golden prompts and its request through the public port
OWN = "(warm-up)"
# What OpenAI's clients say about their own timeout, in seconds.  Source: openai-python 2,
# _base_client.py; openai-node 5, client.ts; read 2026-11-26.
CLIENT_TIMEOUT_HEADERS = ("x-stainless-read-timeout", "x-stainless-timeout")
MAX_TIMEOUT_S = 86400.0


class Access:
    """
    Tells callers apart.

    Without tokens and without a file of keys, everybody is let in.

    Args:
        tokens: Bearer tokens of the environment.
        keys: Keys of the file.
        own_token: What the runtime itself sends for its warm-up.
        wall_s: Seconds since 1970.
    """

    def __init__(
        self,
        tokens: Sequence[SecretStr],
        keys: KeyWatch,
        own_token: SecretStr,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._tokens = [token.get_secret_value().encode() for token in tokens]
        self._keys, self._wall_s = keys, wall_s
        self._own = own_token.get_secret_value().encode()
        self._limits = RateLimits()
        self._places: Counter[str] = Counter()

    def identify(self, headers: Mapping[bytes, bytes]) -> Caller | Refusal:
        """
        Return whose request it is, or its refusal.
        """
        ring = self._keys.ring
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        token = given.strip() if kind.lower() == b"bearer" else b""
        if compare_digest(token, self._own):
            return Caller(OWN)
        known = [compare_digest(token, one) for one in self._tokens]
        if any(known):
            return Caller(f"(token {known.index(True) + 1})")
        if ring is None:
            return Caller() if not self._tokens else _unknown()
        if self._is_host(token):
            return Caller(HOST)
        found = ring.find(token)
        if found is None:
            return _unknown()
        key, secret = found
        if secret.expires_at is not None and secret.expires_at <= self._wall_s():
            return Refusal(401, "invalid_api_key", "this API key has expired")
        limits = self._limits.of(key, time.monotonic())
        return Caller(key.name, key, limits, places=self._places)

    def _is_host(self, token: bytes) -> bool:
        expected = self._keys.host_hash
        return expected is not None and compare_digest(
            sha256(token).hexdigest().encode(), expected.encode()
        )


def deadline_s(headers: Mapping[str, str], *, is_stream: bool) -> float | None:
    """
    Return the seconds that the client waits for the whole answer, by its headers.

    OpenAI's own header is a hint: it is ignored where it is no number, and for streams, where it
    limits the silence between two events.

    Raises:
        ValueError: Our own header is not a number of seconds.
    """
    if (text := headers.get(TIMEOUT_HEADER)) is not None:
        seconds = _seconds(text)
        if seconds is None:
            raise ValueError(f"{TIMEOUT_HEADER} should be a number of seconds over 0")
        return seconds
    if is_stream:
        return None
    for name in CLIENT_TIMEOUT_HEADERS:
        if (seconds := _seconds(headers.get(name, ""))) is not None:
            return seconds
    return None


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text[:32])
    except ValueError:
        return None
    return min(seconds, MAX_TIMEOUT_S) if math.isfinite(seconds) and seconds > 0 else None


def _unknown() -> Refusal:
    return Refusal(401, "invalid_api_key", "send Authorization: Bearer TOKEN with a valid API key")
