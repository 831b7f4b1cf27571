"""
The messages between the API process and the engine process: one JSON object a line.

Times are durations in seconds, never clock readings: each process has its own clock.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from runtime.contract.engine_options import EngineOptions
from runtime.engines.base.sampling import SamplingParams

MAX_PRIORITY = 100  # of a request, and its negative

# No slots: `vars` is the cheapest way to a dict, and messages are sent for every token.


class FinishReason(StrEnum):
    """
    Why a request ended.
    """

    STOP = "stop"  # the model generated a stop token
    LENGTH = "length"  # it reached max_tokens
    EXPIRED = "expired"  # its deadline passed
    NONFINITE = "nonfinite"  # its logits are NaN or infinite; other requests go on
    GRAMMAR = "grammar"  # its grammar can't be used; the client's request is at fault
    ERROR = "error"  # the model raised
    DIED = "died"  # the engine process ended; set by the client, as is the next
    ABANDONED = "abandoned"  # the drain timeout passed

    @property
    def is_good(self) -> bool:
        return self in (FinishReason.STOP, FinishReason.LENGTH)


@dataclass(frozen=True)
class Load:
    """
    Read this model and serve it in place of the current one.  Refused while requests run.

    Attributes:
        beat_s: Seconds between two reports of an idle engine.
        stop_token_ids: Tokens that end an answer, beside those of the model's config.
    """

    model_dir: str
    beat_s: float
    options: EngineOptions
    stop_token_ids: Sequence[int] = ()


@dataclass(frozen=True)
class Share:
    """
    Whose request it is, for fairness between API keys.

    Attributes:
        key: Name of the key; "" for all requests without one.
        weight: Its share of the engine, compared with keys of the same priority.
        priority: Keys with a lower number are computed first.
        concurrency: Most rows of the batch that the key holds; None: no limit.
    """

    key: str = ""
    weight: int = 1
    priority: int = 5
    concurrency: int | None = None

    def level(self, priority: int) -> int:
        """
        Return the level of a request of *priority* among those of all keys; the lowest is first.
        """
        # Never below the key's own: its client writes the request's.
        return self.priority + max(priority, 0)


@dataclass(frozen=True)
class Submit:
    """
    Attributes:
        id: The client's own id of the request, never used twice.
        timeout_s: Seconds from now.
        prefix_of: A request with the same prompt.  This one joins once that one's prompt is in the
            cache, or once it has ended; None for a request of its own.
        priority: Requests of a lower number are computed first: all numbers compare requests of
            the same key.  Those over 0 put it behind other keys too, as if they were added to the
            key's; none puts it ahead of its key's.
    """

    id: int
    tokens: Sequence[int]
    params: SamplingParams
    timeout_s: float
    share: Share = Share()
    prefix_of: int | None = None
    priority: int = 0


@dataclass(frozen=True)
class Embed:
    """
    One text to embed; ended as any request, with its vector in the same report.

    Attributes:
        timeout_s: Seconds from now.
        priority: As of `Submit`.
    """

    id: int
    tokens: Sequence[int]
    timeout_s: float
    share: Share = Share()
    priority: int = 0


@dataclass(frozen=True)
class Cancel:
    id: int


@dataclass(frozen=True)
class Swap:
    """
    Exchange the weights for those of this directory, of the same shapes; no request is lost.

    They are read while the old ones serve.  Then no request joins until the running ones end.
    """

    model_dir: str


@dataclass(frozen=True)
class Loaded:
    """
    Attributes:
        dimensions: Of the model's embeddings; 0 if it makes none.
        shorter_dimensions: What they may be cut to.
        generates: Whether the model generates text.
    """

    context_tokens: int
    vocabulary: int
    parameters: int
    took_s: float
    dimensions: int = 0
    shorter_dimensions: Sequence[int] = ()
    generates: bool = True


@dataclass(frozen=True)
class LoadFailed:
    """
    Attributes:
        is_model: Whether the directory is at fault: a restart would not help.
    """

    what: str
    why: str
    fix: str
    is_model: bool


# A token's log probability, and pairs of the likeliest token ids and theirs.
Scored = tuple[float, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class EngineReport:
    """
    What one turn of the engine's loop did; an empty one shows that the loop is alive.

    Attributes:
        tokens: Pairs of request id and new token, in order.
        ended: Triples of request id, FinishReason and a line of detail.
        running, waiting: Requests after the turn.
        batch: Requests that the step computed; 0 when there was none.
        steps: Steps since the start.
        prompt_tokens: Prompt tokens that the step computed.
        cached_tokens: Prompt tokens found in the cache, of the requests that joined.
        pages_used, pages: Pages of the KV cache: held by requests, and in total.
        oom_splits: Out-of-memory splits of steps since the last report.
        cached: Pairs of the id of a request that joined and its prompt tokens found in the cache,
            where there are any.
        logprobs: For each of *tokens* whose request asks for it, in that order: the request's id,
            the token's log probability, and pairs of the likeliest token ids and theirs.
        prompt_logprobs: Pairs of a request's id and the log probabilities of its next prompt
            tokens, in the form of *logprobs*, from its second token on.
        vectors: Pairs of request id and embedding: base64 of fp32 values, little-endian.
    """

    tokens: Sequence[tuple[int, int]]
    ended: Sequence[tuple[int, str, str]]
    running: int
    waiting: int
    batch: int
    steps: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    pages_used: int = 0
    pages: int = 0
    oom_splits: int = 0
    cached: Sequence[tuple[int, int]] = ()
    logprobs: Sequence[tuple[int, float, Sequence[tuple[int, float]]]] = ()
    vectors: Sequence[tuple[int, str]] = ()
    prompt_logprobs: Sequence[tuple[int, Sequence[Scored]]] = ()

    @property
    def is_beat(self) -> bool:
        """
        Whether it has no news.
        """
        return not (self.tokens or self.ended or self.batch)


ToEngine = Load | Submit | Embed | Cancel | Swap
FromEngine = Loaded | LoadFailed | EngineReport

_NAMES: dict[type, str] = {
    Load: "load",
    Submit: "submit",
    Embed: "embed",
    Cancel: "cancel",
    Swap: "swap",
    Loaded: "loaded",
    LoadFailed: "load_failed",
    EngineReport: "report",
}
# Left out where they are empty.
_RARE = {
    "prefix_of": None,
    "priority": 0,
    "cached": (),
    "logprobs": (),
    "prompt_logprobs": (),
    "vectors": (),
}
_TYPES = {name: kind for kind, name in _NAMES.items()}


def encode(message: ToEngine | FromEngine) -> bytes:
    """
    Return the line of *message*, newline included.
    """
    document = {"is": _NAMES[type(message)], **vars(message)}
    for name, empty in _RARE.items():
        if document.get(name, empty) == empty:
            document.pop(name, None)
    return json.dumps(document, separators=(",", ":"), default=_document).encode() + b"\n"


def _document(value: object) -> dict[str, Any]:
    return value.as_document() if isinstance(value, SamplingParams) else vars(value)


def decode_to_engine(line: bytes) -> ToEngine:
    message = _decode(line)
    assert isinstance(message, ToEngine), type(message)
    return message


def decode_from_engine(line: bytes) -> FromEngine:
    message = _decode(line)
    assert isinstance(message, FromEngine), type(message)
    return message


def _decode(line: bytes) -> object:
    document: dict[str, Any] = json.loads(line)
    kind = _TYPES[document.pop("is")]
    if kind is Load:
        document["options"] = EngineOptions.from_document(document["options"])
    elif kind is Submit:
        document["params"] = SamplingParams.from_document(document["params"])
        document["share"] = Share(**document["share"])
    elif kind is Embed:
        document["share"] = Share(**document["share"])
    return kind(**document)
