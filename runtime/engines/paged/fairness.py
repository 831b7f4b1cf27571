"""
Fairness between API keys: virtual token counters, and a place in the batch for the others.

Each key has a counter of the tokens that it got, divided by its weight; the key with the lowest
counter is next.  A key that comes back starts at the lowest counter of the keys that wait, so it
gets its share from now on, and nothing for the time that it was away.
Source: Sheng et al., "Fairness in Serving Large Language Models", arXiv 2401.00588, algorithm 2.

Counters alone leave a newcomer waiting for a row to end.  So while several keys are in use, a key
takes at most 8 times its weight of the rows, and of the pages, that it leaves free.

Pure: the clock is an argument.
"""

from collections import Counter

from runtime.engines.base.protocol import Share

PROMPT_COST, ANSWER_COST = 1, 2  # of a token: a decoded one takes more of a step
LEFT_FREE = 8  # rows that a key of weight 1 may hold for each one that is free then
WINDOW_S = 60.0  # a key is in use until then after its last request

Rank = tuple[int, float, int]


class FairShares:
    """
    What each key got and holds.

    Requests without a key count as those of one more key, for which no place is left free.

    Args:
        slots: Rows of the batch.
    """

    def __init__(self, slots: int) -> None:
        self._free_slots = slots
        self._served: dict[str, float] = {}
        self._last_served = 0.0  # counter of the key that was last to leave the queue
        self._seen_s: dict[str, float] = {}  # last request of each key, the earliest first
        self._waiting: Counter[str] = Counter()
        self._slots: dict[str, int] = {}
        self._pages: dict[str, int] = {}

    @property
    def is_shared(self) -> bool:
        """
        Whether several keys are in use.
        """
        return len(self._seen_s) > 1

    def arrive(self, share: Share, now_s: float) -> None:
        """
        Note a request of *share*, which waits until `leave_queue`.
        """
        key = share.key
        self._forget(now_s)
        if key:
            self._seen_s.pop(key, None)
            self._seen_s[key] = now_s
        if key not in self._waiting:
            served = self._served
            least = min((served.get(one, 0.0) for one in self._waiting), default=self._last_served)
            served[key] = max(served.get(key, 0.0), least)
        self._waiting[key] += 1

    def leave_queue(self, share: Share) -> None:
        self._waiting[share.key] -= 1
        if not self._waiting[share.key]:
            del self._waiting[share.key]
        self._last_served = max(self._last_served, self._served.get(share.key, 0.0))

    def join(self, share: Share, pages: int) -> None:
        """
        Note that a request holds a row and *pages*.
        """
        self._free_slots -= 1
        self._slots[share.key] = self._slots.get(share.key, 0) + 1
        self._pages[share.key] = self._pages.get(share.key, 0) + pages

    def leave(self, share: Share, pages: int) -> None:
        self._free_slots += 1
        self._slots[share.key] -= 1
        self._pages[share.key] -= pages
        if not self._slots[share.key]:
            del self._slots[share.key], self._pages[share.key]

    def charge(self, share: Share, cost: float) -> None:
        """
        Count *cost*; while one key is alone in use, there is nothing to compare.
        """
        if len(self._seen_s) > 1:
            self._served[share.key] = self._served.get(share.key, 0.0) + cost / share.weight

    def rank(self, share: Share, priority: int = 0) -> Rank:
        """
        Return the rank of a request of a key: the lowest is next.
        """
        served = self._served.get(share.key, 0.0)
        return share.level(priority), served, self._slots.get(share.key, 0)

    def may_join(self, share: Share, slots: dict[str, int], pages: int, room: int) -> bool:
        """
        Return whether a request of *share* leaves enough to the other keys, and its key has no
        more rows than it may.

        Args:
            slots: Rows that requests of each key take ahead of it.
            pages: Pages that it takes.
            room: Pages that are free now.
        """
        key = share.key
        held = self._slots.get(key, 0) + slots.get(key, 0)
        if share.concurrency is not None and held >= share.concurrency:
            return False
        if not held or not self.is_shared:
            return True
        free = self._free_slots - sum(slots.values()) - 1
        held_pages = self._pages.get(key, 0) + pages
        most = LEFT_FREE * share.weight
        return held + 1 <= most * free and held_pages <= most * (room - pages)

    def _forget(self, now_s: float) -> None:
        """
        Forget the keys whose last request is long ago, and that neither wait nor hold a row.
        """
        for key, seen_s in list(self._seen_s.items()):
            if seen_s + WINDOW_S > now_s:
                return
            del self._seen_s[key]
            if key in self._slots or key in self._waiting:
                self._seen_s[key] = now_s
            else:
                self._served.pop(key, None)
