"""
What the API process and the engine process say to each other: one JSON object a line.

Times are spans in seconds, never clock readings: each process has its own clock.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from runtime.contract.engine_options import EngineOptions
from runtime.engines.base.sampling import SamplingParams

# Not slots: `vars` is the cheapest way to a dict, and these are made for every token.


class FinishReason(StrEnum):
    """
    How a request left the engine.
    """

    STOP = "stop"  # the model said that it is done
    LENGTH = "length"  # it has max_tokens
    EXPIRED = "expired"  # its deadline passed
    NONFINITE = "nonfinite"  # its logits are NaN or infinite; its neighbours' are not touched
    ERROR = "error"  # the model raised
    DIED = "died"  # the engine process is gone; said by the client, as is the next
    ABANDONED = "abandoned"  # the runtime leaves and can't wait longer

    @property
    def is_good(self) -> bool:
        return self in (FinishReason.STOP, FinishReason.LENGTH)


@dataclass(frozen=True)
class Load:
    """
    Read this model and serve it in place of the one before.  Refused while requests are running.

    Attributes:
        beat_s: Seconds between two reports of an idle engine.
    """

    model_dir: str
    beat_s: float
    options: EngineOptions


@dataclass(frozen=True)
class Submit:
    """
    Attributes:
        id: The client's own id of the request, never used twice.
        timeout_s: Seconds from now.
    """

    id: int
    tokens: Sequence[int]
    params: SamplingParams
    timeout_s: float


@dataclass(frozen=True)
class Cancel:
    id: int


@dataclass(frozen=True)
class Swap:
    """
    Exchange the weights for those of this directory, of the same shapes; no request is lost.

    They are read while the old ones serve.  Then nobody joins until who runs has finished.
    """

    model_dir: str


@dataclass(frozen=True)
class Loaded:
    context_tokens: int
    vocabulary: int
    parameters: int
    took_s: float


@dataclass(frozen=True)
class LoadFailed:
    """
    Attributes:
        is_model: The directory is at fault, not the engine: a restart will not help.
    """

    what: str
    why: str
    fix: str
    is_model: bool


@dataclass(frozen=True)
class EngineReport:
    """
    What one turn of the engine's loop did; with nothing in it, that the loop turns.

    Attributes:
        tokens: Pairs of request and new token, in the order they were made.
        ended: Triples of request, FinishReason and a line of detail.
        running, waiting: Requests after the turn.
        batch: Requests that the step computed; 0 when there was none.
        steps: Steps since the start.
        prompt_tokens: Tokens of prompts that the step computed.
        cached_tokens: Those that it found computed, of the requests that joined it.
        pages_used, pages: Of the KV cache: held by requests, and in all.
        oom_splits: How often steps were cut in two for want of memory, since the last report.
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

    @property
    def is_beat(self) -> bool:
        """
        Whether it says only that the loop turns.
        """
        return not (self.tokens or self.ended or self.batch)


ToEngine = Load | Submit | Cancel | Swap
FromEngine = Loaded | LoadFailed | EngineReport

_NAMES: dict[type, str] = {
    Load: "load",
    Submit: "submit",
    Cancel: "cancel",
    Swap: "swap",
    Loaded: "loaded",
    LoadFailed: "load_failed",
    EngineReport: "report",
}
_TYPES = {name: kind for kind, name in _NAMES.items()}


def encode(message: ToEngine | FromEngine) -> bytes:
    """
    Return the line of *message*, newline included.
    """
    document = {"is": _NAMES[type(message)], **vars(message)}
    return json.dumps(document, separators=(",", ":"), default=vars).encode() + b"\n"


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
        document["params"] = SamplingParams(**document["params"])
    return kind(**document)
