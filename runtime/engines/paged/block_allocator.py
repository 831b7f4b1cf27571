"""
Allocates the pages of the KV cache, and finds pages that hold a known prefix.  Pure.

A full page is found by a hash of all tokens up to its end.  A sequence whose prompt begins with
these tokens reads the page instead of computing it again.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(slots=True, eq=False)
class Allocation:
    """
    The pages of one sequence.

    Attributes:
        pages: In the order of the tokens; leading ones may be shared.
        cached: Leading tokens whose keys and values were in the cache.
        block_hashes: Of the full pages that were hashed so far.
        registered: Leading pages that were registered, by this sequence or another.
        generation: Of the allocator: number of times it had been cleared.
    """

    pages: list[int]
    cached: int
    block_hashes: list[bytes]
    registered: int
    generation: int


class BlockAllocator:
    """
    Pages 1 to *pages* - 1; page 0 is never allocated: padding writes there.

    A page is held by one or several sequences, or idle: held by none, but found by its hash until
    it is evicted.  The least recently held page is evicted first.

    Attributes:
        hit_tokens: Tokens of all prompts that were found in the cache.
        evictions: Idle pages that were allocated anew.
    """

    def __init__(self, pages: int, page_tokens: int) -> None:
        assert pages > 1, "page 0 is reserved"
        self.pages = pages
        self.page_tokens = page_tokens
        self.hit_tokens = self.evictions = 0
        self._free = list(range(pages - 1, 0, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # next to be evicted first
        self._holders = [0] * pages
        self._page_of: dict[bytes, int] = {}  # page of a block_hash
        self._hash_of: dict[int, bytes] = {}  # its inverse
        self._generation = 0

    @property
    def room(self) -> int:
        """
        Pages that no sequence holds.
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

        Without the page of the last token: a sequence needs a token to compute.
        """
        block_hashes: list[bytes] = []
        for index in range((len(prompt) - 1) // self.page_tokens):
            block_hashes.append(self._hash_block(block_hashes, prompt, index))
        return block_hashes

    def need(self, block_hashes: Sequence[bytes], budget: int) -> int:
        """
        Return the pages that a sequence of *budget* tokens takes out of `room`.

        Pages shared with running sequences cost nothing; idle ones count as room.
        """
        return self.count(budget) - sum(
            self._holders[page] > 0 for page in self._match(block_hashes)
        )

    def allocate(self, block_hashes: list[bytes], budget: int) -> Allocation:
        """
        Return all pages of a sequence of *budget* tokens, which `need` found room for.

        Args:
            block_hashes: Of its prompt; the allocation extends this list.
        """
        shared = self._match(block_hashes)
        # Held before others are taken, so that these are not evicted.
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
        Make the full pages among the first *computed* tokens findable.

        Call it once the step that computes them is launched: only later steps read them.
        """
        if allocation.generation != self._generation:
            return
        while (allocation.registered + 1) * self.page_tokens <= computed:
            index = allocation.registered
            if index == len(allocation.block_hashes):
                allocation.block_hashes.append(
                    self._hash_block(allocation.block_hashes, tokens, index)
                )
            # Two sequences may compute the same page at once: the first is found.
            page = allocation.pages[index]
            if self._page_of.setdefault(allocation.block_hashes[index], page) == page:
                self._hash_of[page] = allocation.block_hashes[index]
            allocation.registered += 1

    def forget(self, allocation: Allocation) -> None:
        """
        Make none of these pages findable: their contents are not finite.

        Sequences that read them fail too, and are passed here in turn.  Pages found by these hashes
        now hold the same tokens, also when the sequence has ended.
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
        Free the pages of a sequence, once the last step that needs them is launched.
        """
        # Last page first: a page is found only through those before it, so they are evicted later.
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
        Make nothing findable that was computed before now; sequences keep their pages.
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
