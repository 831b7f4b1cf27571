"""
The queue of requests that wait to join the batch.  Pure; its cost does not grow with its length.

Requests of one key wait in the order of their priority and arrival; between keys, the shares
decide.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import islice

from runtime.engines.base.protocol import Submit
from runtime.engines.paged.batcher import BatchPolicy, Pending, Take, take
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.fairness import FairShares
from runtime.engines.paged.lines import Entry, Lines


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
    Requests of each key in the order of their priority and arrival.

    Those that share the prompt of a request ahead of them are held until `release`.
    """

    def __init__(self, allocator: BlockAllocator, shares: FairShares) -> None:
        self._allocator, self._shares = allocator, shares
        self._lines: Lines[Waiting] = Lines(shares)
        self._held: dict[int, Waiting] = {}
        self._held_by: dict[int, list[int]] = {}  # ids of held requests by whom they wait for
        self._deadlines: list[
            tuple[float, int]
        ] = []  # a heap; ids that left the queue may remain in it

    def __len__(self) -> int:
        return len(self._lines) + len(self._held)

    @property
    def has_priorities(self) -> bool:
        """
        Whether a request that may join has another priority than 0.
        """
        return self._lines.has_priorities

    def count(self, key: str) -> int:
        """
        Return the number of requests of *key* that may join.
        """
        return self._lines.count(key)

    def push(self, request: Submit, now_s: float, *, is_held: bool = False) -> None:
        # Whole pages for its whole budget: a running request never waits for a page.
        tokens = (
            self._allocator.count(len(request.tokens) + request.params.max_tokens)
            * self._allocator.page_tokens
        )
        pending = Pending(request.id, now_s, now_s + request.timeout_s, tokens)
        self._shares.arrive(request.share, now_s)
        waiting = Waiting(request, pending)
        if is_held:
            assert request.prefix_of is not None, request.id
            self._held[request.id] = waiting
            self._held_by.setdefault(request.prefix_of, []).append(request.id)
        else:
            self._line_up(waiting)
        heappush(self._deadlines, (pending.deadline_s, request.id))

    def pop(self, id: int) -> Waiting | None:
        entry = self._lines.pop(id)
        waiting = entry.item if entry else self._held.pop(id, None)
        if waiting is not None:
            self._shares.leave_queue(waiting.request.share)
        return waiting

    def release(self, id: int) -> None:
        """
        Put what waits for *id* in front of its key: *id* was there, and they came with it.
        """
        for held in reversed(self._held_by.pop(id, [])):
            if waiting := self._held.pop(held, None):
                self._line_up(waiting, in_front=True)

    def _line_up(self, waiting: Waiting, *, in_front: bool = False) -> None:
        request = waiting.request
        tokens = len(request.tokens)
        entry = Entry(request.id, request.share, request.priority, tokens, waiting)
        self._lines.push(entry, in_front=in_front)

    def request(self, id: int) -> Submit:
        return self._lines.get(id).item.request

    def expire(self, now_s: float) -> Sequence[int]:
        """
        Remove the requests whose deadline has passed; return their ids.
        """
        late = []
        while (deadline_s := self.deadline_s()) is not None and deadline_s <= now_s:
            late.append(heappop(self._deadlines)[1])
            self.pop(late[-1])
        return late

    def deadline_s(self) -> float | None:
        """
        Return the earliest deadline; None for an empty queue.
        """
        while self._deadlines and not self.has(self._deadlines[0][1]):
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def has(self, id: int) -> bool:
        return id in self._lines or id in self._held

    def take(self, now_s: float, rows: int, max_wait_s: float) -> Take:
        """
        Ask the batcher about as many as there are free *rows*.

        Shared pages of the first request are not counted; those of the others are, so call it
        again once these have joined.
        """
        first = list(islice(self._in_order(), rows))
        pending = [waiting.pending for waiting in first]
        if first:
            need = self._allocator.need(self.block_hashes(first[0]), pending[0].tokens)
            pending[0] = replace(pending[0], tokens=need * self._allocator.page_tokens)
        room = self._allocator.room * self._allocator.page_tokens
        return take(pending, now_s, BatchPolicy(rows, room, max_wait_s))

    def _in_order(self) -> Iterator[Waiting]:
        """
        Yield the requests that may join, the next one first.
        """
        shares, room, joining = self._shares, self._allocator.room, Counter[str]()

        def may_join(entry: Entry[Waiting]) -> bool:
            pages = entry.item.pending.tokens // self._allocator.page_tokens
            if not shares.may_join(entry.share, joining, pages, room):
                return False
            joining[entry.share.key] += 1
            return True

        for entry in self._lines.in_order(may_join):
            yield entry.item

    def block_hashes(self, waiting: Waiting) -> list[bytes]:
        if waiting.request.params.prompt_logprobs is not None:
            return []  # positions that the cache has give no logits
        if waiting.block_hashes is None:
            waiting.block_hashes = self._allocator.block_hashes(waiting.request.tokens)
        return waiting.block_hashes
