import pytest
import torch

from runtime.kernels import prefill, reference
from runtime.kernels.prefill import BLOCK_TOKENS, LONG_TOKENS, Prefill, Span
from tests.unit.runtime.kernels.truth import distance, make, make_filled_cache

SHORT = Span(0, 0, 0, 40)
LONG = Span(1, 0, 0, LONG_TOKENS)
BEHIND = Span(2, 0, 64, 40)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (SHORT, SHORT, True),
        (BEHIND, BEHIND, True),
        (SHORT, BEHIND, False),
        (SHORT, LONG, False),
        (LONG, LONG, False),
        (BEHIND, Span(3, 0, 64, LONG_TOKENS), True),
    ],
)
def test_one_call_takes_chunks_of_one_kind(one, other, together):
    """
    Long ones go to cuDNN one by one; those with a prefix are read from the cache.
    """
    assert one.goes_with(other) is other.goes_with(one) is together


def test_no_more_is_read_from_the_cache_at_once_than_is_planned_for(monkeypatch):
    """
    Many rows behind a long prefix that they share are read in groups.
    """
    monkeypatch.setattr(prefill, "GATHER_TOKENS", 200)
    cache = make_filled_cache([90] * 6, kv_heads=1, dim=16, page_tokens=16, dtype=torch.float32)
    spans = [Span(slot, 10 * slot, 80, 10) for slot in range(6)]

    runs = Prefill(spans, cache)._runs

    assert [len(run.spans) for run in runs] == [2, 2, 2]
    assert [span for run in runs for span in run.spans] == spans


def test_chunks_attend_to_their_prefix_and_to_themselves():
    """
    In blocks or whole: the same as each alone.
    """
    lengths = [BLOCK_TOKENS + 70, 30, 90]
    starts = [0, 20, 50]
    cache = make_filled_cache(lengths, kv_heads=2, dim=16, page_tokens=16, dtype=torch.float32)
    spans, first = [], 3  # behind three decodes
    for slot, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        at = torch.arange(length)
        k, v = make(length, 2, 16, seed=slot), make(length, 2, 16, seed=9 + slot)
        reference.write_cache(cache, 1, k, v, torch.full_like(at, slot), at)
        spans.append(Span(slot, first, start, length - start))
        first += length - start
    q = make(first, 4, 16)

    found = Prefill(spans, cache)(1, q, q, q)

    wanted = []
    for span in spans:
        keys, values = reference.read_cache(cache, 1, span.slot, span.seen, torch.float32)
        wanted.append(reference.attend(q[span.first :][: span.tokens], keys, values))
    assert found.shape == (first - 3, 4, 16)
    assert distance(found, torch.cat(wanted)) < 1e-6
