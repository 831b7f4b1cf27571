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
class Allocation:
    """
    The pages of one row.

    Attributes:
        pages: In the order of the row's tokens; those at the front may be shared.
        cached: Tokens at the front whose keys and values were there already.
        block_hashes: Of the row's full pages, as far as somebody asked.
        registered: Pages at the front that were registered, by this row or by another.
        generation: How often the allocator had been cleared when it was given.
    """

    pages: list[int]
    cached: int
    block_hashes: list[bytes]
    registered: int
    generation: int


class BlockAllocator:
    """
    Pages 1 to *pages* - 1; page 0 is never given away, for padding writes there.

    A page is held by one row or by several that share it, or it is idle: held by none, but found
    by its block_hash until a row needs the room.  The page that was held longest ago goes first.

    Attributes:
        hit_tokens: Those of them that need not be computed.
        evictions: Idle pages whose block_hashes were given up for room.
    """

    def __init__(self, pages: int, page_tokens: int) -> None:
        assert pages > 1, "page 0 is nobody's"
        self.pages = pages
        self.page_tokens = page_tokens
        self.hit_tokens = self.evictions = 0
        self._free = list(range(pages - 1, 0, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # next to be evicted first
        self._holders = [0] * pages
        self._page_of: dict[bytes, int] = {}  # page of a block_hash
        self._hash_of: dict[int, bytes] = {}  # the same, the other way round
        self._generation = 0

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

    def block_hashes(self, prompt: Sequence[int]) -> list[bytes]:
        """
        Return the block_hashes of the pages that `allocation` may find for *prompt*.

        The page of its last token is none of them: a row needs a token to compute.
        """
        block_hashes: list[bytes] = []
        for index in range((len(prompt) - 1) // self.page_tokens):
            block_hashes.append(self._hash_block(block_hashes, prompt, index))
        return block_hashes

    def need(self, block_hashes: Sequence[bytes], budget: int) -> int:
        """
        Return how much of the room a row of *budget* tokens takes.

        Pages that it shares with rows that run are free of charge; idle ones are room, and go.
        """
        return self.count(budget) - sum(
            self._holders[page] > 0 for page in self._match(block_hashes)
        )

    def allocate(self, block_hashes: list[bytes], budget: int) -> Allocation:
        """
        Give a row of *budget* tokens, *prompt* of them known, all its pages; `need` says if it may.

        Args:
            block_hashes: Of its prompt; the allocation goes on with them.
        """
        shared = self._match(block_hashes)
        # Held before others are taken, so that none of them is evicted.
        for page in shared:
            if not self._holders[page]:
                del self._idle[page]
            self._holders[page] += 1
        taken = [self._take() for _ in range(self.count(budget) - len(shared))]
        cached = len(shared) * self.page_tokens
        self.hit_tokens += cached
        return Allocation(shared + taken, cached, block_hashes, len(shared), self._generation)

    def register(self, allocation: Allocation, tokens: Sequence[int], computed: int) -> None:
        """
        Have the full pages among the first *computed* tokens of a row found from now on.

        Call it once the step that computes them is launched: whoever finds them comes later.
        """
        if allocation.generation != self._generation:
            return
        while (allocation.registered + 1) * self.page_tokens <= computed:
            index = allocation.registered
            if index == len(allocation.block_hashes):
                allocation.block_hashes.append(
                    self._hash_block(allocation.block_hashes, tokens, index)
                )
            # Two rows may compute the same at once: the first is found.
            page = allocation.pages[index]
            if self._page_of.setdefault(allocation.block_hashes[index], page) == page:
                self._hash_of[page] = allocation.block_hashes[index]
            allocation.registered += 1

    def forget(self, allocation: Allocation) -> None:
        """
        Have none of these pages found again, whoever registered them: their numbers are bad.

        What others computed from them is bad too, and those rows come here in their turn.  The row
        may have gone: what is found behind its block_hashes now is of the same tokens.
        """
        if allocation.generation != self._generation:
            return
        for block_hash in allocation.block_hashes[: allocation.registered]:
            page = self._page_of.pop(block_hash, None)
            if page is None:
                continue
            del self._hash_of[page]
            if page in self._idle:
                del self._idle[page]
                self._free.append(page)

    def free(self, allocation: Allocation) -> None:
        """
        Take the pages of a row back, once the last step that needs them is launched.
        """
        # From the back: a page is found only behind those before it, so they go later.
        for page in reversed(allocation.pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._hash_of:
                self._idle[page] = None
            else:
                self._free.append(page)
        allocation.pages = []

    def clear(self) -> None:
        """
        Have nothing found that was computed before now; rows keep what they hold.
        """
        self._generation += 1
        self._page_of.clear()
        self._hash_of.clear()
        self._free += self._idle
        self._idle.clear()

    def _match(self, block_hashes: Sequence[bytes]) -> list[int]:
        pages = []
        for block_hash in block_hashes:
            page = self._page_of.get(block_hash)
            if page is None:
                break
            pages.append(page)
        return pages

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._hash_of.pop(page)]
            self.evictions += 1
        self._holders[page] = 1
        return page

    def _hash_block(self, before: Sequence[bytes], tokens: Sequence[int], index: int) -> bytes:
        ids = array("q", tokens[index * self.page_tokens : (index + 1) * self.page_tokens])
        parent = before[index - 1] if index else b""
        return blake2b(parent + ids.tobytes(), digest_size=16).digest()
