"""
Selects the waiting requests that join the batch.  Pure; called before every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pending:
    id: int
    arrived_s: float  # time.monotonic of the engine
    deadline_s: float  # time.monotonic of the engine
    tokens: int  # prompt and the most it may generate, in whole pages of the KV cache


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """
    Free capacity.

    Attributes:
        max_requests: Free slots; 0 when the batch is full.
        max_tokens: KV-cache tokens that are free or can be evicted.
        max_wait_s: Longest wait of the oldest request for others; 0 while a batch runs, which
            requests join between two steps.
    """

    max_requests: int
    max_tokens: int
    max_wait_s: float


@dataclass(frozen=True, slots=True)
class Take:
    """
    One decision. `batch`, `expired` and `rest` together are the queue, each request once.

    Attributes:
        batch: Join now, in arrival order.
        expired: Past their deadline; never computed.
        rest: Keep waiting.
        wake_at_s: When to decide again if nothing arrives or leaves before; None: nothing waits.
    """

    batch: tuple[Pending, ...]
    expired: tuple[Pending, ...]
    rest: tuple[Pending, ...]
    wake_at_s: float | None


def take(queue: Sequence[Pending], now_s: float, policy: BatchPolicy) -> Take:
    """
    Close a batch when it is full, or when its oldest request has waited long enough.
    """
    expired = tuple(p for p in queue if p.deadline_s <= now_s)
    alive = tuple(p for p in queue if p.deadline_s > now_s)
    if not alive:
        return Take((), expired, (), None)

    batch = _fit(alive, policy)
    full = len(batch) == policy.max_requests or len(batch) < len(alive)
    due_s = alive[0].arrived_s + policy.max_wait_s
    if batch and (full or now_s >= due_s):
        rest = alive[len(batch) :]
        return Take(batch, expired, rest, now_s if rest else None)

    first_deadline_s = min(p.deadline_s for p in alive)
    # Without room only a sequence that ends, or a deadline, can change the decision.
    wake_at_s = min(due_s, first_deadline_s) if batch else first_deadline_s
    return Take((), expired, alive, wake_at_s)


def _fit(alive: Sequence[Pending], policy: BatchPolicy) -> tuple[Pending, ...]:
    tokens = 0
    for count, pending in enumerate(alive[: policy.max_requests]):
        tokens += pending.tokens
        if tokens > policy.max_tokens:
            return tuple(alive[:count])
    return tuple(alive[: policy.max_requests])
