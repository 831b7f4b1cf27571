"""
Whose request it is: its key, what it may spend and what it used.

A context variable carries it from the middleware to the generator, through the routes, which need
not know it.  Each request runs in a context of its own.
"""

import math
import time
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field

from runtime.engines.base.protocol import Share
from runtime.server.admission import Refusal
from runtime.server.errors import Failed
from runtime.server.key_file import ServedKey
from runtime.server.rate_limits import Bucket, KeyLimits

LONGEST_RETRY_S = 3600


@dataclass(slots=True)
class Usage:
    """
    Tokens of one request, of all its prompts and answers.

    Attributes:
        cached_tokens: Of the prompts, found in the prefix cache.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


@dataclass(slots=True)
class Caller:
    """
    The sender of one request.

    Attributes:
        name: Of the key; "" where none is needed, in parentheses where it is of the environment
            or of the host program.
        deadline_s: Seconds that the client waits, by its headers.
        places: Places that the requests of each key hold, shared by all callers.
    """

    name: str = ""
    key: ServedKey | None = None
    limits: KeyLimits | None = None
    deadline_s: float | None = None
    usage: Usage = field(default_factory=Usage)
    places: Counter[str] = field(default_factory=Counter)
    _reserved: int = 0
    _held: int = 0

    @property
    def share(self) -> Share:
        if self.key is None:
            return Share(self.name)
        key = self.key
        return Share(self.name, key.weight, key.priority, key.concurrency)

    @property
    def is_over_concurrency(self) -> bool:
        """
        Whether the key has more answers in flight than it may have computed at once.
        """
        most = None if self.key is None else self.key.concurrency
        return most is not None and self.places[self.name] > most

    def may_use(self, model: str) -> bool:
        return self.key is None or not self.key.models or model in self.key.models

    def take_request(self) -> None:
        """
        Count one request.

        Raises:
            Failed: 429: the key has sent as many as it may in a minute.
        """
        if self.limits is not None and (bucket := self.limits.requests) is not None:
            _take(bucket, 1, "requests")

    def take_prompt(self, tokens: int, answer_tokens: int) -> None:
        """
        Count a prompt, and reserve what the client asks for as its answer.

        All prompts of a request are taken as one: a limit that is smaller needs a full bucket.

        Raises:
            Failed: 429: the key has used as many tokens as it may in a minute.
        """
        prompts = self.usage.prompt_tokens + tokens
        if self.limits is not None and (bucket := self.limits.tokens) is not None:
            held, self._reserved = self._reserved, 0
            wanted = min(held + tokens + answer_tokens, max(prompts, bucket.per_minute))
            bucket.settle(held, time.monotonic())
            _take(bucket, wanted, "tokens")
            self._reserved = wanted
        self.usage.prompt_tokens = prompts

    def refund(self) -> None:
        """
        Give back what `take_prompt` took: the request is refused, or its client left, before the
        engine had it.
        """
        if self.limits is not None and (bucket := self.limits.tokens) is not None:
            bucket.settle(self._reserved, time.monotonic())
            self._reserved = 0
        self.usage.prompt_tokens = 0

    def hold(self, places: int) -> None:
        """
        Note that the request holds more places, until it ends.
        """
        if self.key is not None:
            self.places[self.name] += places
            self._held += places

    def settle(self) -> None:
        """
        Give back what was reserved and not used, or take what was used beyond; at the end.
        """
        if self._held:
            self.places[self.name] -= self._held
            self._held = 0
            if not self.places[self.name]:
                del self.places[self.name]
        if self.limits is not None and (bucket := self.limits.tokens) is not None:
            used = self.usage.prompt_tokens + self.usage.generated_tokens
            bucket.settle(self._reserved - used, time.monotonic())
            self._reserved = 0


CALLER: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """
    Return the caller of the present request; one without a key where no request is served.
    """
    return CALLER.get(None) or Caller()


def _take(bucket: Bucket, count: int, kind: str) -> None:
    now_s = time.monotonic()
    if bucket.take(count, now_s):
        return
    wait_s = bucket.wait_s(count, now_s)
    message = (
        f"Rate limit reached for this API key on {kind} per min. Limit: {bucket.per_minute}, "
        f"remaining: {bucket.left(now_s)}, requested: {count}."
    )
    retry_s = min(max(math.ceil(wait_s), 1), LONGEST_RETRY_S)
    raise Failed(Refusal(429, "rate_limit_exceeded", message, retry_after_s=retry_s))
