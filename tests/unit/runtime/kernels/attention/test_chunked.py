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
def test_a_long_chunk_that_is_a_step_goes_to_cudnn(spans, is_lone):
    """
    Alone, with nothing before it; else, and where no kernels are, it is one like the others.
    """
    pytest.importorskip("runtime.kernels.attention.prefill")
    cache = make_filled_cache([20], kv_heads=1, dim=16, page_tokens=16, dtype=torch.float32)

    assert Prefill(spans, cache, group=16, is_fused=True).is_lone is is_lone
    assert not Prefill(spans, cache, group=16, is_fused=False).is_lone
    for kind in (torch.int8, torch.float8_e4m3fn):
        cache = make_filled_cache([20], kv_heads=1, dim=16, page_tokens=16, dtype=kind)
        assert not Prefill(spans, cache, group=16, is_fused=True).is_lone


def test_tiles_hold_every_token_once_and_those_that_see_most_first():
    """
    Eight tokens a tile, where 16 query heads share a KV head; none reaches into another chunk.
    """
    pytest.importorskip("runtime.kernels.attention.prefill")
    cache = make_filled_cache([20], kv_heads=1, dim=16, page_tokens=16, dtype=torch.float32)
    spans = [Span(3, 2, 0, 20), Span(5, 22, 64, 9)]

    tiles = Prefill(spans, cache, group=16, is_fused=True)._tiles.tolist()

    assert [start for *_, start in tiles] == [72, 64, 16, 8, 0]
    wanted = [[2, 8, 3, 0], [10, 8, 3, 8], [18, 4, 3, 16], [22, 8, 5, 64], [30, 1, 5, 72]]
    assert sorted(tiles) == wanted


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
    found = torch.full_like(q, 7.0)

    Prefill(spans, cache, group=2, is_fused=False)(1, q, found)

    for span in spans:
        keys, values = reference.read_cache(cache, 1, span.slot, span.seen, torch.float32)
        wanted = reference.attend(q[span.rows], keys, values)
        assert distance(found[span.rows], wanted) < 1e-6
    assert (found[:3] == 7.0).all()
