"""
The queue of requests that wait to join the batch.  Pure; its cost does not grow with its length.

Requests of one key wait in the order of their arrival; between keys, the shares decide.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import islice

from runtime.engines.base.protocol import Share, Submit
from runtime.engines.paged.batcher import BatchPolicy, Pending, Take, take
from runtime.engines.paged.block_allocator import BlockAllocator
from runtime.engines.paged.fairness import PROMPT_COST, FairShares


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
    Requests of each key in the order of their arrival.

    Those that share the prompt of a request ahead of them are held until `release`.
    """

    def __init__(self, allocator: BlockAllocator, shares: FairShares) -> None:
        self._allocator, self._shares = allocator, shares
        self._waiting: OrderedDict[int, Waiting] = OrderedDict()
        self._by_key: dict[str, OrderedDict[int, Waiting]] = {}
        self._held: dict[int, Waiting] = {}
        self._held_by: dict[int, list[int]] = {}  # ids of held requests by whom they wait for
        self._deadlines: list[
            tuple[float, int]
        ] = []  # a heap; ids that left the queue may remain in it

    def __len__(self) -> int:
        return len(self._waiting) + len(self._held)

    def push(self, request: Submit, now_s: float, *, is_held: bool = False) -> None:
        # Whole pages for its whole budget: a running request never waits for a page.
        tokens = (
            self._allocator.count(len(request.tokens) + request.params.max_tokens)
            * self._allocator.page_tokens
        )
        pending = Pending(request.id, now_s, now_s + request.timeout_s, tokens)
        self._shares.arrive(request.share, self._by_key, now_s)
        waiting = Waiting(request, pending)
        if is_held:
            assert request.prefix_of is not None, request.id
            self._held[request.id] = waiting
            self._held_by.setdefault(request.prefix_of, []).append(request.id)
        else:
            self._line_up(waiting)
        heappush(self._deadlines, (pending.deadline_s, request.id))

    def pop(self, id: int) -> Waiting | None:
        waiting = self._waiting.pop(id, None)
        if waiting is None:
            return self._held.pop(id, None)
        share = waiting.request.share
        del self._by_key[share.key][id]
        if not self._by_key[share.key]:
            del self._by_key[share.key]
        self._shares.leave_queue(share)
        return waiting

    def release(self, id: int) -> None:
        """
        Put what waits for *id* in front of its key: *id* was there, and they came with it.
        """
        for held in reversed(self._held_by.pop(id, [])):
            if waiting := self._held.pop(held, None):
                self._line_up(waiting, in_front=True)

    def _line_up(self, waiting: Waiting, *, in_front: bool = False) -> None:
        id = waiting.request.id
        of_key = self._by_key.setdefault(waiting.request.share.key, OrderedDict())
        self._waiting[id] = of_key[id] = waiting
        if in_front:
            self._waiting.move_to_end(id, last=False)
            of_key.move_to_end(id, last=False)

    def share(self, id: int) -> Share:
        return self._waiting[id].request.share

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
        return id in self._waiting or id in self._held

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
        if len(self._by_key) < 2 and not self._shares.is_shared:
            yield from self._waiting.values()
            return
        shares, room = self._shares, self._allocator.room
        queues = {key: iter(waiting.values()) for key, waiting in self._by_key.items()}
        heads = {key: next(queue) for key, queue in queues.items()}
        heap = [(*shares.rank(head.request.share), key) for key, head in heads.items()]
        heapify(heap)
        joining: dict[str, int] = {}
        while heap:
            priority, served, held, key = heappop(heap)
            waiting = heads[key]
            pages = waiting.pending.tokens // self._allocator.page_tokens
            if not shares.may_join(waiting.request.share, joining, pages, room):
                continue
            yield waiting
            joining[key] = joining.get(key, 0) + 1
            if (following := next(queues[key], None)) is not None:
                heads[key] = following
                # As if its prompt were computed: or one key would take all the rows of a turn.
                cost = PROMPT_COST * len(waiting.request.tokens) / waiting.request.share.weight
                heappush(heap, (priority, served + cost, held + 1, key))

    def block_hashes(self, waiting: Waiting) -> list[bytes]:
        if waiting.block_hashes is None:
            waiting.block_hashes = self._allocator.block_hashes(waiting.request.tokens)
        return waiting.block_hashes
