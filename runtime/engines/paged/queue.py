"""
The queue of requests that wait to join the batch.  Pure; its cost does not grow with its length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import islice

from runtime.engines.base.protocol import Submit
from runtime.engines.paged.batcher import BatchPolicy, Pending, Take, take
from runtime.engines.paged.block_allocator import BlockAllocator


@dataclass(slots=True, eq=False)
class Waiting:
    """
    A queued request, and its entry for the batcher.

    Attributes:
        block_hashes: Of its prompt; None until it is the first in the queue.
    """

    request: Submit
    pending: Pending
    block_hashes: list[bytes] | None = None


class Queue:
    """
    Requests in the order of their arrival.
    """

    def __init__(self, allocator: BlockAllocator) -> None:
        self._allocator = allocator
        self._waiting: dict[int, Waiting] = {}
        self._deadlines: list[
            tuple[float, int]
        ] = []  # a heap; ids that left the queue may remain in it

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, request: Submit, now_s: float) -> None:
        # Whole pages for its whole budget: a running request never waits for a page.
        tokens = (
            self._allocator.count(len(request.tokens) + request.params.max_tokens)
            * self._allocator.page_tokens
        )
        pending = Pending(request.id, now_s, now_s + request.timeout_s, tokens)
        self._waiting[request.id] = Waiting(request, pending)
        heappush(self._deadlines, (pending.deadline_s, request.id))

    def pop(self, id: int) -> Waiting | None:
        return self._waiting.pop(id, None)

    def expire(self, now_s: float) -> Sequence[int]:
        """
        Remove the requests whose deadline has passed; return their ids.
        """
        late = []
        while (deadline_s := self.deadline_s()) is not None and deadline_s <= now_s:
            late.append(heappop(self._deadlines)[1])
            del self._waiting[late[-1]]
        return late

    def deadline_s(self) -> float | None:
        """
        Return the earliest deadline; None for an empty queue.
        """
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def take(self, now_s: float, rows: int, max_wait_s: float) -> Take:
        """
        Ask the batcher about as many as there are free *rows*.

        Shared pages of the first request are not counted; those of the others are, so call it
        again once these have joined.
        """
        first = list(islice(self._waiting.values(), rows))
        pending = [waiting.pending for waiting in first]
        if first:
            need = self._allocator.need(self.block_hashes(first[0]), pending[0].tokens)
            pending[0] = replace(pending[0], tokens=need * self._allocator.page_tokens)
        room = self._allocator.room * self._allocator.page_tokens
        return take(pending, now_s, BatchPolicy(rows, room, max_wait_s))

    def block_hashes(self, waiting: Waiting) -> list[bytes]:
        if waiting.block_hashes is None:
            waiting.block_hashes = self._allocator.block_hashes(waiting.request.tokens)
        return waiting.block_hashes
