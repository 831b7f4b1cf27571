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

from runtime.engines.paged.blocks import PagePool


def lease(pool, prompt, more=1):
    return pool.lease(pool.names(prompt), len(prompt), len(prompt) + more)


def compute(pool, prompt, more=1):
    """
    Have a row come, compute its prompt and leave; return the pages that it had.
    """
    row = lease(pool, prompt, more)
    pages = list(row.pages)
    pool.register(row, prompt, len(prompt))
    pool.give_back(row)
    return pages


def test_a_prompt_finds_the_pages_that_begin_like_it():
    """
    Whole pages of the same tokens from the first on, and never the page of the last token.
    """
    pool = PagePool(20, page_tokens=2)
    pages = compute(pool, [1, 2, 3, 4, 5])

    assert lease(pool, [1, 2, 3, 4, 9]).pages[:2] == pages[:2]
    assert lease(pool, [1, 2, 3, 4]).cached == 2  # its last page has the token to compute
    assert lease(pool, [1, 2, 3, 9]).cached == 2
    assert lease(pool, [3, 4, 1, 2, 5]).cached == 0  # the same pages, in another place
    assert (pool.hit_tokens, pool.query_tokens) == (4 + 2 + 2, 5 + 5 + 4 + 4 + 5)


def test_what_is_not_launched_is_not_found():
    """
    A page is found once its last token is computed, and not before.
    """
    pool = PagePool(20, page_tokens=2)
    row = lease(pool, [1, 2, 3, 4])
    pool.register(row, [1, 2, 3, 4], computed=1)
    assert lease(pool, [1, 2, 3]).cached == 0
    pool.register(row, [1, 2, 3, 4], computed=3)
    assert lease(pool, [1, 2, 3, 4, 5]).cached == 2


def test_an_answer_is_found_by_the_prompt_that_goes_on_with_it():
    """
    Pages of generated tokens have names too.
    """
    pool = PagePool(20, page_tokens=2)
    row = lease(pool, [1], more=5)
    pool.register(row, [1], computed=1)
    pool.register(row, [1, 7, 8, 9], computed=4)
    assert lease(pool, [1, 7, 8, 9, 2]).cached == 4


def test_bad_numbers_are_not_found_again():
    """
    Neither by the row that made them nor through those before them.
    """
    pool = PagePool(20, page_tokens=2)
    compute(pool, [1, 2, 3])
    row = lease(pool, [1, 2, 3, 4, 5])
    pool.register(row, [1, 2, 3, 4, 5], computed=5)
    assert row.cached == 2
    pool.forget(row)
    pool.give_back(row)
    assert lease(pool, [1, 2, 3, 4, 5]).cached == 0


def test_nothing_outlives_a_clearing():
    """
    Not what is idle, and not what a row that still runs computes after it.
    """
    pool = PagePool(20, page_tokens=2)
    compute(pool, [1, 2, 3])
    row = lease(pool, [5, 6, 7, 8])
    pool.clear()
    pool.register(row, [5, 6, 7, 8], computed=4)
    assert lease(pool, [1, 2, 3]).cached == 0
    assert lease(pool, [5, 6, 7]).cached == 0


def test_shared_pages_are_free_of_charge_only_while_a_row_holds_them():
    """
    An idle page that a row finds is room that the row takes.
    """
    pool = PagePool(6, page_tokens=2)
    compute(pool, [1, 2, 3, 4, 5])
    names = pool.names([1, 2, 3, 4, 5])
    assert pool.room == 5
    assert pool.need(names, 10) == 5
    assert pool.need(names, 12) == 6  # more than there are: the two it finds count
    lease(pool, [1, 2, 3, 4, 5])
    assert pool.room == 2
    assert pool.need(names, 8) == 2


def test_the_page_that_was_held_longest_ago_goes_first():
    """
    Of one row the last page, for it is found only behind the others.
    """
    pool = PagePool(5, page_tokens=2)
    first = compute(pool, [1, 2, 3, 4], more=0)
    compute(pool, [5, 6, 7, 8], more=0)
    compute(pool, [1, 2, 9], more=0)  # the first page of the first row is used again
    assert pool.evictions == 1

    row = lease(pool, [5, 6, 7, 8, 9], more=0)
    assert row.cached == 4
    pool.give_back(row)
    assert lease(pool, [1, 2, 3, 4, 9], more=0).pages[0] == first[0]
    assert pool.evictions == 2


class Rows(RuleBasedStateMachine):
    """
    Rows that come, compute, break and leave, beside a model that is slow and simple.
    """

    Pool = PagePool
    prompts = st.builds(
        lambda tokens, count: tokens[:count],
        st.sampled_from([[1] * 9, [1, 1, 1, 1, 2, 1, 2, 2, 1], [2] * 9]),
        st.integers(1, 9),
    )

    @initialize(pages=st.integers(2, 12), page_tokens=st.integers(1, 3))
    def start(self, pages, page_tokens):
        self.pool = self.Pool(pages, page_tokens)
        self.size = page_tokens
        self.rows = []  # lease, tokens, computed
        self.holds = {}  # page: the tokens up to its end that it really holds
        self.found = {}  # tokens up to the end of a page: page
        self.idle = []  # longest ago first
        self.evictions = 0

    def held(self):
        return {page for row, _, _ in self.rows for page in row.pages}

    def expected(self, prompt):
        pages = []
        for end in range(self.size, len(prompt), self.size):
            if tuple(prompt[:end]) not in self.found:
                break
            pages.append(self.found[tuple(prompt[:end])])
        return pages

    def lose(self, pages):
        self.found = {tokens: page for tokens, page in self.found.items() if page not in pages}

    @rule(prompt=prompts, more=st.integers(0, 4))
    def come(self, prompt, more):
        names, budget = self.pool.names(prompt), len(prompt) + more
        shared, held = self.expected(prompt), self.held()
        count = -(-budget // self.size)
        need = count - len(held & set(shared))
        assert self.pool.need(names, budget) == need
        if need > self.pool.room:
            return
        self.idle = [page for page in self.idle if page not in shared]
        free = self.pool.pages - 1 - len(held | set(shared)) - len(self.idle)
        evicted = self.idle[: max(count - len(shared) - free, 0)]
        self.idle = self.idle[len(evicted) :]

        row = self.pool.lease(names, len(prompt), budget)

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
        self.pool.register(row, tokens, end)
        for place, page in enumerate(row.pages):
            known = tuple(tokens[: (place + 1) * self.size])
            if computed < (place + 1) * self.size <= end:
                self.holds[page] = known
                if row.era == self.pool._era:
                    self.found.setdefault(known, page)
        self.rows[index] = row, tokens, end

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), is_bad=st.sampled_from([False, False, False, True]))
    def leave(self, data, is_bad):
        row, tokens, computed = self.rows.pop(data.draw(st.integers(0, len(self.rows) - 1)))
        pages = list(row.pages)
        if is_bad:
            self.pool.forget(row)
            if row.era == self.pool._era:
                # Of the same tokens, whichever row's they are.
                ends = range(self.size, computed + 1, self.size)
                bad = {self.found.pop(tuple(tokens[:end]), None) for end in ends}
                self.idle = [page for page in self.idle if page not in bad]
        self.pool.give_back(row)
        named = set(self.found.values())
        self.idle += [p for p in reversed(pages) if p in named and p not in self.held()]

    @rule(is_time=st.integers(0, 19).map(lambda draw: draw == 7))
    def clear(self, is_time):
        if not is_time:
            return
        self.pool.clear()
        self.found, self.idle = {}, []

    @invariant()
    def every_page_is_somewhere(self):
        if not hasattr(self, "pool"):
            return
        held = self.held()
        assert self.pool.used == len(held)
        assert self.pool.room == self.pool.pages - 1 - len(held)
        assert set(self.idle) == set(self.found.values()) - held
        assert self.pool.evictions == self.evictions

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        for row, _, _ in self.rows:
            self.pool.give_back(row)
        assert self.pool.used == 0
        free = [self.pool._take() for _ in range(self.pool.pages - 1)]
        assert sorted(free) == list(range(1, self.pool.pages))


def test_pages_are_held_found_and_evicted_as_the_model_says():
    """
    No page has two owners but by its prefix, none is lost, and what is found is the prefix.
    """
    run_state_machine_as_test(
        Rows, settings=settings(max_examples=150, stateful_step_count=30, deadline=None)
    )


class NamesWithoutParents(PagePool):
    def _name(self, before, tokens, index):
        return super()._name([b""] * index, tokens, index)


class ForgetsNothing(PagePool):
    def forget(self, lease):
        pass


class EvictsTheNewest(PagePool):
    def _take(self):
        if not self._free:
            self._idle.move_to_end(next(reversed(self._idle)), last=False)
        return super()._take()


class LeaksThePagesThatItShares(PagePool):
    def give_back(self, lease):
        lease.pages = lease.pages[lease.cached // self.page_tokens :]
        super().give_back(lease)


class EvictsWhatItHasJustFound(PagePool):
    def _match(self, names):
        pages = super()._match(names)
        for page in self._idle.keys() & set(pages):
            self._free.append(page)
        return pages


@pytest.mark.parametrize(
    "pool",
    [
        NamesWithoutParents,
        ForgetsNothing,
        EvictsTheNewest,
        LeaksThePagesThatItShares,
        EvictsWhatItHasJustFound,
    ],
)
def test_a_pool_that_is_wrong_would_be_noticed(pool):
    """
    Negative control: the same machine over a pool with one rule broken.
    """
    machine = type("Wrong", (Rows,), {"Pool": pool})
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
