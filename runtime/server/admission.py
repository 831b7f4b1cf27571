"""
Admission control.  Pure: limits and load in, a refusal or None out.
"""

import math
from dataclasses import dataclass

from runtime.contract import QUEUE_FULL

MAX_RETRY_AFTER_S = 30
KEY_PLACES = 8


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """
    Limits of the runtime.

    Attributes:
        context_tokens: Prompt and answer of one request, together.
        max_batch_requests: Requests computed at once.
        max_queue_requests: Most requests that wait beyond those.
        request_timeout_s: Longest time of a request, and its default.
        vocabulary: Tokens that the model has, from 0 on; None if that is not known.
    """

    context_tokens: int
    max_batch_requests: int
    max_queue_requests: int
    request_timeout_s: float
    vocabulary: int | None = None


@dataclass(frozen=True, slots=True)
class CurrentLoad:
    """
    Current load of the runtime.

    Attributes:
        in_flight: Admitted requests without a complete answer.
        mean_s: Recent mean time of an answer; 0 before the first.
    """

    in_flight: int
    mean_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    A refusal, as the client gets it.

    Attributes:
        retry_after_s: Seconds until a retry may succeed; None if none can.
        excuse: Why a 5xx says nothing about this runtime, one of `EXCUSES`.
        param: The field of the request that is at fault.
        never_repeat: Clients must not send it again by themselves: it may have been computed.
    """

    status: int
    code: str
    message: str
    retry_after_s: int | None = None
    excuse: str | None = None
    param: str | None = None
    never_repeat: bool = False


def refuse(
    prompt_tokens: int,
    max_tokens: int,
    load: CurrentLoad,
    limits: AdmissionLimits,
    *,
    field: str = "prompt",
) -> Refusal | None:
    """
    Return the refusal of a request, or None.

    Too many tokens is checked before a full queue: waiting would not help.

    Args:
        field: The field of the body that has the prompt.
    """
    if prompt_tokens < 1:
        return Refusal(400, "empty_prompt", "the prompt has no tokens", param=field)
    wanted = prompt_tokens + max_tokens
    if wanted > limits.context_tokens:
        return Refusal(
            400,
            "context_length_exceeded",
            # OpenAI's words: clients look for them.
            f"This model's maximum context length is {limits.context_tokens} tokens. However, you "
            f"requested {wanted} tokens ({prompt_tokens} in the {field}, {max_tokens} in the "
            "completion).",
            param=field,
        )
    if load.in_flight >= limits.max_batch_requests + limits.max_queue_requests:
        return Refusal(
            503,
            "queue_full",
            f"{load.in_flight} requests are running or waiting",
            retry_after_s=retry_after_s(load, limits),
            excuse=QUEUE_FULL,
        )
    return None


def refuse_share(
    held: int, count: int, load: CurrentLoad, limits: AdmissionLimits
) -> Refusal | None:
    """
    Return the refusal of *count* answers of a key that leaves too few places to the others.

    A key holds at most KEY_PLACES times the places that are free then.

    Args:
        held: Places that its other requests hold.
    """
    most = limits.max_batch_requests + limits.max_queue_requests
    free = most - load.in_flight - count
    if not held or held + count <= KEY_PLACES * free:
        return None
    return Refusal(
        503,
        "queue_full",
        f"{held} requests of this API key are running or waiting; the other places are for others",
        retry_after_s=retry_after_s(load, limits),
        excuse=QUEUE_FULL,
    )


def retry_after_s(load: CurrentLoad, limits: AdmissionLimits) -> int:
    """
    Return the estimated seconds until the requests in flight are done, from 1 to 30.
    """
    rounds = load.in_flight / limits.max_batch_requests
    return min(max(math.ceil(load.mean_s * rounds), 1), MAX_RETRY_AFTER_S)


def time_allowed_s(asked_s: float | None, limits: AdmissionLimits) -> float:
    """
    Return the seconds that the request may take: what it asks for, up to the limit.
    """
    return limits.request_timeout_s if asked_s is None else min(asked_s, limits.request_timeout_s)
