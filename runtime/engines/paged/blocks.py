"""
Who holds which page of the KV cache, and what pages nobody holds still know.  Pure.

A full page is named by a hash of every token up to its end.  A row whose prompt begins with the
tokens of a named page reads that page instead of computing it again.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(slots=True, eq=False)
class Lease:
    """
    The pages of one row.

    Attributes:
        pages: In the order of the row's tokens; those at the front may be shared.
        cached: Tokens at the front whose keys and values were there already.
        names: Of the row's full pages, as far as somebody asked.
        registered: Pages at the front that were registered, by this row or by another.
        era: How often the pool had been cleared when it was given.
    """

    pages: list[int]
    cached: int
    names: list[bytes]
    registered: int
    era: int


class PagePool:
    """
    Pages 1 to *pages* - 1; page 0 is never given away, for padding writes there.

    A page is held by one row or by several that share it, or it is idle: held by none, but found
    by its name until a row needs the room.  The page that was held longest ago goes first.

    Attributes:
        query_tokens: Tokens of all prompts that pages were leased for.
        hit_tokens: Those of them that need not be computed.
        evictions: Idle pages whose names were given up for room.
    """

    def __init__(self, pages: int, page_tokens: int) -> None:
        assert pages > 1, "page 0 is nobody's"
        self.pages = pages
        self.page_tokens = page_tokens
        self.query_tokens = self.hit_tokens = self.evictions = 0
        self._free = list(range(pages - 1, 0, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # next to be evicted first
        self._holders = [0] * pages
        self._found: dict[bytes, int] = {}  # page of a name
        self._names: dict[int, bytes] = {}  # the same, the other way round
        self._era = 0

    @property
    def room(self) -> int:
        """
        Pages that no row holds.
        """
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        return self.pages - 1 - self.room

    def count(self, tokens: int) -> int:
        """
        Return the pages that hold *tokens*.
        """
        return -(-tokens // self.page_tokens)

    def names(self, prompt: Sequence[int]) -> list[bytes]:
        """
        Return the names of the pages that `lease` may find for *prompt*.

        The page of its last token is none of them: a row needs a token to compute.
        """
        names: list[bytes] = []
        for index in range((len(prompt) - 1) // self.page_tokens):
            names.append(self._name(names, prompt, index))
        return names

    def need(self, names: Sequence[bytes], budget: int) -> int:
        """
        Return how much of the room a row of *budget* tokens takes.

        Pages that it shares with rows that run are free of charge; idle ones are room, and go.
        """
        return self.count(budget) - sum(self._holders[page] > 0 for page in self._match(names))

    def lease(self, names: list[bytes], prompt: int, budget: int) -> Lease:
        """
        Give a row of *budget* tokens, *prompt* of them known, all its pages; `need` says if it may.

        Args:
            names: Of its prompt; the lease goes on with them.
        """
        shared = self._match(names)
        # Held before others are taken, so that none of them is evicted.
        for page in shared:
            if not self._holders[page]:
                del self._idle[page]
            self._holders[page] += 1
        taken = [self._take() for _ in range(self.count(budget) - len(shared))]
        cached = len(shared) * self.page_tokens
        self.query_tokens += prompt
        self.hit_tokens += cached
        return Lease(shared + taken, cached, names, len(shared), self._era)

    def register(self, lease: Lease, tokens: Sequence[int], computed: int) -> None:
        """
        Have the full pages among the first *computed* tokens of a row found from now on.

        Call it once the step that computes them is launched: whoever finds them comes later.
        """
        if lease.era != self._era:
            return
        while (lease.registered + 1) * self.page_tokens <= computed:
            index = lease.registered
            if index == len(lease.names):
                lease.names.append(self._name(lease.names, tokens, index))
            # Two rows may compute the same at once: the first is found.
            page = lease.pages[index]
            if self._found.setdefault(lease.names[index], page) == page:
                self._names[page] = lease.names[index]
            lease.registered += 1

    def forget(self, lease: Lease) -> None:
        """
        Have none of these pages found again, whoever registered them: their numbers are bad.

        What others computed from them is bad too, and those rows come here in their turn.  The row
        may have gone: what is found behind its names now is of the same tokens.
        """
        if lease.era != self._era:
            return
        for name in lease.names[: lease.registered]:
            page = self._found.pop(name, None)
            if page is None:
                continue
            del self._names[page]
            if page in self._idle:
                del self._idle[page]
                self._free.append(page)

    def give_back(self, lease: Lease) -> None:
        """
        Take the pages of a row back, once the last step that needs them is launched.
        """
        # From the back: a page is found only behind those before it, so they go later.
        for page in reversed(lease.pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._names:
                self._idle[page] = None
            else:
                self._free.append(page)
        lease.pages = []

    def clear(self) -> None:
        """
        Have nothing found that was computed before now; rows keep what they hold.
        """
        self._era += 1
        self._found.clear()
        self._names.clear()
        self._free += self._idle
        self._idle.clear()

    def _match(self, names: Sequence[bytes]) -> list[int]:
        pages = []
        for name in names:
            page = self._found.get(name)
            if page is None:
                break
            pages.append(page)
        return pages

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._found[self._names.pop(page)]
            self.evictions += 1
        self._holders[page] = 1
        return page

    def _name(self, before: Sequence[bytes], tokens: Sequence[int], index: int) -> bytes:
        ids = array("q", tokens[index * self.page_tokens : (index + 1) * self.page_tokens])
        parent = before[index - 1] if index else b""
        return blake2b(parent + ids.tobytes(), digest_size=16).digest()
