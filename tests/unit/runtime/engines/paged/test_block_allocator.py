import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from runtime.engines.paged.block_allocator import BlockAllocator


def allocate(allocator, prompt, more=1):
    return allocator.allocate(allocator.block_hashes(prompt), len(prompt) + more)


def compute(allocator, prompt, more=1):
    """
    Add a row, compute its prompt and remove it; return its pages.
    """
    row = allocate(allocator, prompt, more)
    pages = list(row.pages)
    allocator.register(row, prompt, len(prompt))
    allocator.free(row)
    return pages


def test_a_prompt_reuses_the_pages_of_its_prefix():
    """
    Full pages with the same tokens from the first on, but never the page of the last token.
    """
    allocator = BlockAllocator(20, page_tokens=2)
    pages = compute(allocator, [1, 2, 3, 4, 5])

    assert allocate(allocator, [1, 2, 3, 4, 9]).pages[:2] == pages[:2]
    assert allocate(allocator, [1, 2, 3, 4]).cached == 2  # its last page has the token to compute
    assert allocate(allocator, [1, 2, 3, 9]).cached == 2
    assert allocate(allocator, [3, 4, 1, 2, 5]).cached == 0  # the same pages, in another place
    assert allocator.hit_tokens == 4 + 2 + 2


def test_a_page_is_reusable_once_its_last_token_is_launched():
    """
    Not before.
    """
    allocator = BlockAllocator(20, page_tokens=2)
    row = allocate(allocator, [1, 2, 3, 4])
    allocator.register(row, [1, 2, 3, 4], computed=1)
    assert allocate(allocator, [1, 2, 3]).cached == 0
    allocator.register(row, [1, 2, 3, 4], computed=3)
    assert allocate(allocator, [1, 2, 3, 4, 5]).cached == 2


def test_a_prompt_reuses_the_pages_of_the_answer_that_it_continues():
    """
    Pages of generated tokens have block hashes too.
    """
    allocator = BlockAllocator(20, page_tokens=2)
    row = allocate(allocator, [1], more=5)
    allocator.register(row, [1], computed=1)
    allocator.register(row, [1, 7, 8, 9], computed=4)
    assert allocate(allocator, [1, 7, 8, 9, 2]).cached == 4


def test_pages_with_non_finite_values_are_not_reused():
    """
    Neither by their own row nor through the pages before them.
    """
    allocator = BlockAllocator(20, page_tokens=2)
    compute(allocator, [1, 2, 3])
    row = allocate(allocator, [1, 2, 3, 4, 5])
    allocator.register(row, [1, 2, 3, 4, 5], computed=5)
    assert row.cached == 2
    allocator.forget(row)
    allocator.free(row)
    assert allocate(allocator, [1, 2, 3, 4, 5]).cached == 0


def test_clear_forgets_all_pages():
    """
    Idle pages, and those that a running row computes afterwards.
    """
    allocator = BlockAllocator(20, page_tokens=2)
    compute(allocator, [1, 2, 3])
    row = allocate(allocator, [5, 6, 7, 8])
    allocator.clear()
    allocator.register(row, [5, 6, 7, 8], computed=4)
    assert allocate(allocator, [1, 2, 3]).cached == 0
    assert allocate(allocator, [5, 6, 7]).cached == 0


def test_shared_pages_cost_nothing_only_while_a_row_holds_them():
    """
    Reusing an idle page takes capacity.
    """
    allocator = BlockAllocator(6, page_tokens=2)
    compute(allocator, [1, 2, 3, 4, 5])
    block_hashes = allocator.block_hashes([1, 2, 3, 4, 5])
    assert allocator.room == 5
    assert allocator.need(block_hashes, 10) == 5
    assert allocator.need(block_hashes, 12) == 6  # more than there are: the two it finds count
    allocate(allocator, [1, 2, 3, 4, 5])
    assert allocator.room == 2
    assert allocator.need(block_hashes, 8) == 2


def test_the_least_recently_used_page_is_evicted_first():
    """
    Within a row the last page goes first, because it is reachable only through the others.
    """
    allocator = BlockAllocator(5, page_tokens=2)
    first = compute(allocator, [1, 2, 3, 4], more=0)
    compute(allocator, [5, 6, 7, 8], more=0)
    compute(allocator, [1, 2, 9], more=0)  # the first page of the first row is used again
    assert allocator.evictions == 1

    row = allocate(allocator, [5, 6, 7, 8, 9], more=0)
    assert row.cached == 4
    allocator.free(row)
    assert allocate(allocator, [1, 2, 3, 4, 9], more=0).pages[0] == first[0]
    assert allocator.evictions == 2


class AllocatorMachine(RuleBasedStateMachine):
    """
    Rows that start, compute, fail and end, compared with a simple model.
    """

    Pool = BlockAllocator
    prompts = st.builds(
        lambda tokens, count: tokens[:count],
        st.sampled_from([[1] * 9, [1, 1, 1, 1, 2, 1, 2, 2, 1], [2] * 9]),
        st.integers(1, 9),
    )

    @initialize(pages=st.integers(2, 12), page_tokens=st.integers(1, 3))
    def start(self, pages, page_tokens):
        self.allocator = self.Pool(pages, page_tokens)
        self.size = page_tokens
        self.rows = []  # allocation, tokens, computed
        self.holds = {}  # page: the tokens up to its end that it really holds
        self.page_by_prefix = {}  # tokens up to the end of a page: page
        self.idle = []  # longest ago first
        self.evictions = 0

    def held(self):
        return {page for row, _, _ in self.rows for page in row.pages}

    def expected(self, prompt):
        pages = []
        for end in range(self.size, len(prompt), self.size):
            if tuple(prompt[:end]) not in self.page_by_prefix:
                break
            pages.append(self.page_by_prefix[tuple(prompt[:end])])
        return pages

    def lose(self, pages):
        self.page_by_prefix = {
            tokens: page for tokens, page in self.page_by_prefix.items() if page not in pages
        }

    @rule(prompt=prompts, more=st.integers(0, 4))
    def come(self, prompt, more):
        block_hashes, budget = self.allocator.block_hashes(prompt), len(prompt) + more
        shared, held = self.expected(prompt), self.held()
        count = -(-budget // self.size)
        need = count - len(held & set(shared))
        assert self.allocator.need(block_hashes, budget) == need
        if need > self.allocator.room:
            return
        self.idle = [page for page in self.idle if page not in shared]
        free = self.allocator.pages - 1 - len(held | set(shared)) - len(self.idle)
        evicted = self.idle[: max(count - len(shared) - free, 0)]
        self.idle = self.idle[len(evicted) :]

        row = self.allocator.allocate(block_hashes, budget)

        taken = row.pages[len(shared) :]
        assert row.pages[: len(shared)] == shared
        assert row.cached == len(shared) * self.size < len(prompt)
        for index, page in enumerate(shared):
            assert self.holds[page] == tuple(prompt[: (index + 1) * self.size])
        assert len(row.pages) == count == len(set(row.pages))
        assert 0 not in row.pages
        assert not set(taken) & held
        assert set(evicted) <= set(taken)
        self.lose(evicted)
        self.evictions += len(evicted)
        for page in taken:
            self.holds.pop(page, None)
        self.rows.append((row, list(prompt), row.cached))

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), count=st.integers(1, 6), token=st.integers(1, 2))
    def compute(self, data, count, token):
        index = data.draw(st.integers(0, len(self.rows) - 1))
        row, tokens, computed = self.rows[index]
        end = min(computed + count, len(row.pages) * self.size)
        tokens += [token] * (end - len(tokens))
        self.allocator.register(row, tokens, end)
        for place, page in enumerate(row.pages):
            known = tuple(tokens[: (place + 1) * self.size])
            if computed < (place + 1) * self.size <= end:
                self.holds[page] = known
                if row.generation == self.allocator._generation:
                    self.page_by_prefix.setdefault(known, page)
        self.rows[index] = row, tokens, end

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), is_bad=st.sampled_from([False, False, False, True]))
    def leave(self, data, is_bad):
        row, tokens, computed = self.rows.pop(data.draw(st.integers(0, len(self.rows) - 1)))
        pages = list(row.pages)
        if is_bad:
            self.allocator.forget(row)
            if row.generation == self.allocator._generation:
                # Of the same tokens, whichever row's they are.
                ends = range(self.size, computed + 1, self.size)
                bad = {self.page_by_prefix.pop(tuple(tokens[:end]), None) for end in ends}
                self.idle = [page for page in self.idle if page not in bad]
        self.allocator.free(row)
        named = set(self.page_by_prefix.values())
        self.idle += [p for p in reversed(pages) if p in named and p not in self.held()]

    @rule(is_time=st.integers(0, 19).map(lambda draw: draw == 7))
    def clear(self, is_time):
        if not is_time:
            return
        self.allocator.clear()
        self.page_by_prefix, self.idle = {}, []

    @invariant()
    def every_page_is_somewhere(self):
        if not hasattr(self, "allocator"):
            return
        held = self.held()
        assert self.allocator.used == len(held)
        assert self.allocator.room == self.allocator.pages - 1 - len(held)
        assert set(self.idle) == set(self.page_by_prefix.values()) - held
        assert self.allocator.evictions == self.evictions

    def teardown(self):
        if not hasattr(self, "allocator"):
            return
        for row, _, _ in self.rows:
            self.allocator.free(row)
        assert self.allocator.used == 0
        free = [self.allocator._take() for _ in range(self.allocator.pages - 1)]
        assert sorted(free) == list(range(1, self.allocator.pages))


def test_the_allocator_matches_the_model():
    """
    Pages are shared only by prefix, none is lost, and a reused page holds the prefix.
    """
    run_state_machine_as_test(
        AllocatorMachine, settings=settings(max_examples=150, stateful_step_count=30, deadline=None)
    )


class NamesWithoutParents(BlockAllocator):
    def _hash_block(self, before, tokens, index):
        return super()._hash_block([b""] * index, tokens, index)


class ForgetsNothing(BlockAllocator):
    def forget(self, allocation):
        pass


class EvictsTheNewest(BlockAllocator):
    def _take(self):
        if not self._free:
            self._idle.move_to_end(next(reversed(self._idle)), last=False)
        return super()._take()


class LeaksThePagesThatItShares(BlockAllocator):
    def free(self, allocation):
        allocation.pages = allocation.pages[allocation.cached // self.page_tokens :]
        super().free(allocation)


class EvictsWhatItHasJustFound(BlockAllocator):
    def _match(self, block_hashes):
        pages = super()._match(block_hashes)
        for page in self._idle.keys() & set(pages):
            self._free.append(page)
        return pages


@pytest.mark.parametrize(
    "allocator",
    [
        NamesWithoutParents,
        ForgetsNothing,
        EvictsTheNewest,
        LeaksThePagesThatItShares,
        EvictsWhatItHasJustFound,
    ],
)
def test_a_broken_allocator_would_be_noticed(allocator):
    """
    Negative control: the same machine over an allocator with one rule broken.
    """
    machine = type("Wrong", (AllocatorMachine,), {"Pool": allocator})
    quick = settings(
        max_examples=5000,  # it ends at the first that breaks
        derandomize=True,
        stateful_step_count=30,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    with pytest.raises((AssertionError, KeyError, ExceptionGroup)):
        run_state_machine_as_test(machine, settings=quick)
