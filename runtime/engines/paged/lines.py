"""
Requests that wait, a line for each key.  Pure; its cost does not grow with its length.

In a line the lowest priority number is first, then the earliest; between lines, the shares decide.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from runtime.engines.base.protocol import Share
from runtime.engines.paged.fairness import PROMPT_COST, FairShares

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Generic[Item]):
    """
    Attributes:
        tokens: Of its prompt: what its key is charged for the present choice.
    """

    id: int
    share: Share
    priority: int
    tokens: int
    item: Item


class Lines(Generic[Item]):
    """
    Args:
        shares: What the keys got.
    """

    def __init__(self, shares: FairShares) -> None:
        self._shares = shares
        self._entries: dict[int, Entry[Item]] = {}
        # By key and priority.
        self._lines: dict[str, dict[int, OrderedDict[int, Entry[Item]]]] = {}
        self._prioritized = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, id: int) -> bool:
        return id in self._entries

    @property
    def has_priorities(self) -> bool:
        """
        Whether a request has another priority than 0.
        """
        return self._prioritized > 0

    def get(self, id: int) -> Entry[Item]:
        return self._entries[id]

    def count(self, key: str) -> int:
        return sum(map(len, self._lines.get(key, {}).values()))

    def push(self, entry: Entry[Item], *, in_front: bool = False) -> None:
        """
        Args:
            in_front: Of its key and priority.
        """
        self._entries[entry.id] = entry
        line = self._lines.setdefault(entry.share.key, {})
        same = line.setdefault(entry.priority, OrderedDict())
        same[entry.id] = entry
        if in_front:
            same.move_to_end(entry.id, last=False)
        self._prioritized += entry.priority != 0

    def pop(self, id: int) -> Entry[Item] | None:
        entry = self._entries.pop(id, None)
        if entry is None:
            return None
        line = self._lines[entry.share.key]
        del line[entry.priority][id]
        if not line[entry.priority]:
            del line[entry.priority]
        if not line:
            del self._lines[entry.share.key]
        self._prioritized -= entry.priority != 0
        return entry

    def in_order(self, may_take: Callable[[Entry[Item]], bool]) -> Iterator[Entry[Item]]:
        """
        Yield the entries, the next one first; nothing may be pushed or popped meanwhile.

        Args:
            may_take: Called with each before it is yielded; after False its key has no more.
                Not where one key alone is in use, without a limit of its rows.
        """
        shares = self._shares
        if len(self._lines) < 2 and not shares.is_shared:  # the usual case costs no heap
            for key in self._lines:
                for entry in self._line(key):
                    if entry.share.concurrency is not None and not may_take(entry):
                        return
                    yield entry
            return
        lines = {key: self._line(key) for key in self._lines}
        heads = {key: next(line) for key, line in lines.items()}
        heap = [(*shares.rank(head.share, head.priority), key) for key, head in heads.items()]
        heapify(heap)
        while heap:
            _, served, held, key = heappop(heap)
            head = heads[key]
            if not may_take(head):
                continue
            yield head
            if (following := next(lines[key], None)) is not None:
                heads[key] = following
                # As if its prompt were computed: or one key would take all of a turn.
                served += PROMPT_COST * head.tokens / head.share.weight
                level = following.share.level(following.priority)
                heappush(heap, (level, served, held + 1, key))

    def _line(self, key: str) -> Iterator[Entry[Item]]:
        line = self._lines[key]
        for priority in sorted(line):
            yield from line[priority].values()
