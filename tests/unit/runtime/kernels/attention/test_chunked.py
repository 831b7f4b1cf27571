import pytest
import torch

from runtime.kernels import reference
from runtime.kernels.attention.chunked import BLOCK_TOKENS, LONG_TOKENS, Prefill, Span
from tests.unit.runtime.kernels.truth import distance, make, make_filled_cache


@pytest.mark.parametrize(
    ("spans", "is_lone"),
    [
        ([Span(0, 0, 0, LONG_TOKENS)], True),
        ([Span(0, 0, 0, LONG_TOKENS - 1)], False),
        ([Span(0, 0, 64, LONG_TOKENS)], False),  # behind a prefix
        ([Span(0, 1, 0, LONG_TOKENS)], False),  # behind a decode
        ([Span(0, 0, 0, LONG_TOKENS), Span(1, LONG_TOKENS, 0, 8)], False),
    ],
)
def test_a_lone_long_chunk_uses_cudnn(spans, is_lone):
    """
    If it has no prefix; all other chunks, and all chunks without kernels, take the common path.
    """
    pytest.importorskip("runtime.kernels.attention.prefill")
    cache = make_filled_cache([20], kv_heads=1, dim=16, page_tokens=16, dtype=torch.float32)

    assert Prefill(spans, cache, group=16, is_fused=True).is_lone is is_lone
    assert not Prefill(spans, cache, group=16, is_fused=False).is_lone
    for kind in (torch.int8, torch.float8_e4m3fn):
        cache = make_filled_cache([20], kv_heads=1, dim=16, page_tokens=16, dtype=kind)
        assert not Prefill(spans, cache, group=16, is_fused=True).is_lone


def test_tiles_hold_every_token_once_longest_context_first():
    """
    Eight tokens per tile if 16 query heads share a KV head; no tile spans two chunks.
    """
    pytest.importorskip("runtime.kernels.attention.prefill")
    cache = make_filled_cache([20], kv_heads=1, dim=16, page_tokens=16, dtype=torch.float32)
    spans = [Span(3, 2, 0, 20), Span(5, 22, 64, 9)]

    tiles = Prefill(spans, cache, group=16, is_fused=True)._tiles.tolist()

    assert [start for *_, start in tiles] == [72, 64, 16, 8, 0]
    expected = [[2, 8, 3, 0], [10, 8, 3, 8], [18, 4, 3, 16], [22, 8, 5, 64], [30, 1, 5, 72]]
    assert sorted(tiles) == expected


def test_chunks_attend_to_their_prefix_and_to_themselves():
    """
    In blocks or whole, with the same result as each chunk alone.
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
    actual = torch.full_like(q, 7.0)

    Prefill(spans, cache, group=2, is_fused=False)(1, q, actual)

    for span in spans:
        keys, values = reference.read_cache(cache, 1, span.slot, span.seen, torch.float32)
        expected = reference.attend(q[span.rows], keys, values)
        assert distance(actual[span.rows], expected) < 1e-6
    assert (actual[:3] == 7.0).all()
