"""
Each kernel against its reference in fp64, on random shapes.
"""

import random

import pytest
import torch

from runtime.kernels import gated, linear, norm, rope, sampling
from runtime.kernels import reference as truth
from runtime.kernels.attention import decode as attention
from runtime.kernels.attention import prefill as chunks
from runtime.kernels.attention.chunked import Span
from runtime.kernels.quantize import dequantize, quantize
from tests.unit.runtime.kernels.truth import (
    DEVICE,
    TOLERANCE,
    TYPES,
    distance,
    make,
    make_filled_cache,
)

pytestmark = [  # of numpy, in Triton's interpreter
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning"),
]
SHAPE = linear.TileShape(programs_each=2, block_k=64, warps=4, stages=3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("has_post", [False, True])
@pytest.mark.parametrize(("tokens", "size"), [(1, 64), (5, 96), (3, 200)])
def test_norms_match_the_reference(dtype, has_post, tokens, size):
    """
    The RMS norm alone and after the residual, with and without a post norm.
    """
    x, y = make(tokens, size, dtype=dtype), make(tokens, size, dtype=dtype, seed=1)
    weight, post = make(size, dtype=dtype, seed=2), make(size, dtype=dtype, seed=3)
    post = post if has_post else None

    alone = norm.rms_norm(x, weight, 1e-5)
    summed, normed = norm.add_rms_norm(x, y, weight, 1e-5, post)

    wide = [None if t is None else t.double() for t in (x, y, weight, post)]
    assert distance(alone, truth.rms_norm(wide[0], wide[2], 1e-5)) < TOLERANCE[dtype]
    expected = truth.add_rms_norm(wide[0], wide[1], wide[2], 1e-5, wide[3])
    assert distance(summed, expected[0]) < TOLERANCE[dtype]
    assert distance(normed, expected[1]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 48, 64), (3, 96, 160), (17, 130, 96), (33, 40, 224)])
@pytest.mark.parametrize("programs", [1, 3])
def test_a_small_batch_gemm_matches_the_product(dtype, m, n, k, programs):
    """
    Any number of tokens, weights that are no multiple of a block, rows divided among few programs.
    """
    x, w = make(m, k, dtype=dtype), make(n, k, dtype=dtype, seed=1)
    bias = make(n, dtype=dtype, seed=2)

    actual = linear.small_batch_gemm(x, w, bias, shape=SHAPE, multiprocessors=programs)

    assert distance(actual, x.double() @ w.double().T + bias.double()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_gated_product_is_swiglu(dtype):
    """
    In one kernel, and as a product followed by SwiGLU.
    """
    x, w = make(5, 96, dtype=dtype), make(2 * 56, 96, dtype=dtype, seed=1, scale=0.3)
    expected = truth.gated(x.double() @ w.double().T)

    fused = linear.small_batch_gemm(x, w, is_gated=True, shape=SHAPE, multiprocessors=2)

    assert distance(fused, expected) < TOLERANCE[dtype]
    assert distance(linear.swiglu(x @ w.T), expected) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("tokens", "k", "n"),
    [(70, 96, 104), (300, 64, 128), ((gated.BAND + 2) * gated.BLOCK_M - 3, 32, 136)],
)
def test_a_gated_product_of_many_tokens_matches_the_reference(tokens, k, n):
    """
    Partial tiles at the edges, several bands, and fewer or more tiles than programs.
    """
    x, w = make(tokens, k, dtype=torch.bfloat16), make(2 * n, k, seed=1, scale=0.3).bfloat16()

    actual = gated.gated(x, w, multiprocessors=3)

    assert gated.can_gate(x, w)
    assert distance(actual, truth.gated(x.double() @ w.double().T)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize(
    ("dtype", "k", "n"),
    [(torch.float32, 96, 104), (torch.bfloat16, 100, 104), (torch.bfloat16, 96, 100)],
)
def test_the_gated_kernel_refuses_rows_that_are_not_whole_16_bytes(dtype, k, n):
    """
    The tensor memory accelerator cannot address them.
    """
    assert not gated.can_gate(make(4, k, dtype=dtype), make(2 * n, k, dtype=dtype))


@pytest.mark.parametrize("splits", [1, 2, 3])
def test_the_norm_sums_the_parts_of_a_split_product(splits):
    """
    The columns are divided among programs (split-K).
    """
    x, w = make(4, 320), make(96, 320, seed=1)
    residual, weight = make(4, 96, seed=2), make(96, seed=3)
    shape = linear.TileShape(2, 64, 4, 3, splits=splits)

    parts = linear.small_batch_gemm(x, w, shape=shape, multiprocessors=3)
    actual = norm.add_rms_norm(residual, parts, weight, 1e-5, None)

    product = x.double() @ w.double().T
    expected = truth.add_rms_norm(residual.double(), product, weight.double(), 1e-5, None)
    assert parts.dim() == (2 if splits == 1 else 3)
    assert distance(actual[0], expected[0]) < 2e-6
    assert distance(actual[1], expected[1]) < 2e-6


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("is_gated", [False, True])
def test_quantised_products_match_the_dequantised_weights(bits, is_gated):
    """
    The kernel decodes 8 and 4 bits as the reference does.
    """
    x, w = make(3, 256), make(64, 256, seed=1, scale=0.2)
    held = quantize(w, bits, torch.float32)

    actual = linear.small_batch_gemm(x, held, is_gated=is_gated, shape=SHAPE, multiprocessors=2)

    product = x.double() @ dequantize(held, torch.float64).T
    assert distance(actual, truth.gated(product) if is_gated else product) < 2e-6
    assert distance(actual, x.double() @ w.double().T if not is_gated else product[:, :32]) > 1e-3


@pytest.mark.parametrize("bits", [8, 4])
def test_widened_weights_match_the_reference(bits):
    """
    For many tokens the weights are dequantised first.
    """
    held = quantize(make(21, 384, scale=0.2), bits, torch.float32)
    assert distance(linear.widen(held, torch.float32), dequantize(held, torch.float64)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "rotary"), [(4, 2, 32, 16), (17, 1, 16, 16)])
@pytest.mark.parametrize("tokens", [5, 11])  # a head a program, or several
def test_one_kernel_rotates_and_stores(dtype, has_norms, heads, kv_heads, dim, rotary, tokens):
    """
    q and k are normed and rotated; k and v are at their slot and position; all else is unchanged.
    """
    compute = torch.float32 if dtype == torch.int8 else dtype
    lengths = [9, 40, 17]
    slots = torch.tensor([0, 0, 1, 2, 2] + [1] * (tokens - 5), dtype=torch.int32, device=DEVICE)
    places = [7, 8, 39, 15, 16, *range(tokens - 5)]
    positions = torch.tensor(places, dtype=torch.int32, device=DEVICE)
    caches = [
        make_filled_cache(lengths, kv_heads=kv_heads, dim=dim, page_tokens=16, dtype=dtype)
        for _ in range(2)
    ]
    rows = make(tokens, (heads + 2 * kv_heads) * dim, dtype=compute)
    turn = make(tokens, rotary // 2, seed=1)
    angles = torch.stack((turn.cos(), turn.sin()))
    norms = [make(dim, dtype=compute, seed=s) if has_norms else None for s in (2, 3)]

    actual = rows.clone()
    rope.turn_and_store(
        actual, angles, caches[0], 1, slots, positions,
        heads=heads, q_norm=norms[0], k_norm=norms[1], eps=1e-5,
    )  # fmt: skip

    q, k, v = rows.unflatten(1, (-1, dim)).split((heads, kv_heads, kv_heads), dim=1)
    if has_norms:
        q, k = truth.rms_norm(q, norms[0], 1e-5), truth.rms_norm(k, norms[1], 1e-5)
    q, k = truth.rotate(q, angles), truth.rotate(k, angles)
    truth.write_cache(caches[1], 1, k, v, slots, positions)
    tolerance = 2 * TOLERANCE[compute]
    assert distance(actual.unflatten(1, (-1, dim))[:, :heads], q) < tolerance
    assert torch.equal(actual.unflatten(1, (-1, dim))[:, heads + kv_heads :], v)
    for name in ("keys", "values"):
        stored, expected = (getattr(cache, name).double() for cache in caches)
        assert torch.equal(stored.isnan(), expected.isnan())
        near = 1.0 if dtype == torch.int8 else 0.05  # a step of int8, or of rounding
        assert (stored.nan_to_num() - expected.nan_to_num()).abs().max() <= near
        assert torch.equal(stored[0].isnan(), expected[0].isnan())
    if dtype == torch.int8:
        for name in ("key_scales", "value_scales"):
            actual, expected = (getattr(cache, name) for cache in caches)
            assert torch.allclose(actual, expected, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("splits", [1, 2, 8])
@pytest.mark.parametrize(("heads", "kv_heads"), [(16, 1), (8, 2), (3, 3), (32, 1)])
def test_decode_attention_matches_the_reference(dtype, splits, heads, kv_heads):
    """
    Every ratio of query to KV heads, rows of any length, pages in any order, surrounded by NaN.
    """
    dim, page = 16, 16
    rng = random.Random(heads)
    lengths = [1, page, page + 1, 5 * page, rng.randint(2, 80)]
    cache = make_filled_cache(lengths, kv_heads=kv_heads, dim=dim, page_tokens=page, dtype=dtype)
    for slot, length in enumerate(lengths):
        k, v = make(length, kv_heads, dim, seed=slot), make(length, kv_heads, dim, seed=9 + slot)
        at = torch.arange(length, device=DEVICE)
        truth.write_cache(cache, 1, k.to(dtype), v.to(dtype), torch.full_like(at, slot), at)
    order = torch.tensor([3, 0, 4, 2, 1], dtype=torch.int32, device=DEVICE)
    positions = torch.tensor([lengths[slot] - 1 for slot in order], dtype=torch.int32).to(DEVICE)
    q = make(5, heads, dim, dtype=dtype)
    workspace = attention.Workspace(64, kv_heads, heads // kv_heads, dim, torch.device(DEVICE))

    actual = torch.full_like(q, float("nan"))
    attention.decode_attention(q, cache, 1, order, positions, workspace, out=actual, splits=splits)

    expected = truth.decode_attention(q.double(), cache, 1, order, positions)
    assert distance(actual, expected) < TOLERANCE[dtype]
    assert not workspace.counters.any()  # left as they were found


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("most", [1, 256, 1024])
def test_the_workspace_holds_the_splits_of_any_batch(kv_heads, most):
    """
    For any number of rows up to *most*.
    """
    workspace = attention.Workspace(most, kv_heads, 1, 16, torch.device("meta"))
    room = workspace.weights.numel() // 2 // 16
    for rows in range(1, most + 1):
        splits = attention.choose_splits(rows, kv_heads)
        assert splits == 1 or rows * kv_heads * splits <= room
        assert rows * kv_heads <= workspace.counters.numel()


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_decode_attention_reads_a_quantised_cache(kind):
    """
    With 8 bits a value, attention sees the stored values.
    """
    lengths = [33, 7]
    cache = make_filled_cache(lengths, kv_heads=2, dim=32, page_tokens=16, dtype=kind)
    for slot, length in enumerate(lengths):
        at = torch.arange(length, device=DEVICE)
        k, v = make(length, 2, 32, seed=slot), make(length, 2, 32, seed=5 + slot)
        truth.write_cache(cache, 0, k, v, torch.full_like(at, slot), at)
    slots = torch.arange(2, dtype=torch.int32, device=DEVICE)
    positions = torch.tensor([32, 6], dtype=torch.int32, device=DEVICE)
    q = make(2, 4, 32)
    workspace = attention.Workspace(2, 2, 2, 32, torch.device(DEVICE))

    actual = torch.full_like(q, float("nan"))
    attention.decode_attention(q, cache, 0, slots, positions, workspace, out=actual, splits=2)

    expected = truth.decode_attention(q.double(), cache, 0, slots, positions)
    assert distance(actual, expected) < 1e-5


@pytest.mark.parametrize("kind", ["same", torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("heads", "kv_heads"), [(16, 1), (6, 2), (3, 3), (64, 1)])
def test_chunks_attend_to_their_pages(heads, kv_heads, kind):
    """
    Chunks of one tile and of several, with and without a prefix, among the rows of others.
    """
    dim, page = 32, 16
    dtype = torch.float32 if DEVICE == "cpu" else torch.bfloat16  # fp32 is the reference's
    lengths, starts = [150, 30, 90, 1, page], [0, 29, 50, 0, 0]
    stored = dtype if kind == "same" else kind
    cache = make_filled_cache(lengths, kv_heads=kv_heads, dim=dim, page_tokens=page, dtype=stored)
    spans, first = [], 3  # behind three decodes
    for slot, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        at = torch.arange(length, device=DEVICE)
        k, v = make(length, kv_heads, dim, seed=slot), make(length, kv_heads, dim, seed=9 + slot)
        truth.write_cache(cache, 1, k.to(dtype), v.to(dtype), torch.full_like(at, slot), at)
        spans.append(Span(slot, first, start, length - start))
        first += length - start
    rows = make(first + 2, heads + 2 * kv_heads, dim, dtype=dtype)
    each = chunks.tile_tokens(heads // kv_heads)
    tiles = torch.tensor([tile for span in spans for tile in span.tiles(each)], dtype=torch.int32)
    actual = torch.full((first + 2, heads, dim), 7.0, dtype=dtype, device=DEVICE)

    chunks.attend_chunks(rows[:, :heads], cache, 1, tiles.to(DEVICE), out=actual)

    for span in spans:
        q = rows[span.rows, :heads].double()
        keys, values = truth.read_cache(cache, 1, span.slot, span.seen, torch.float64)
        assert distance(actual[span.rows], truth.attend(q, keys, values)) < 2 * TOLERANCE[dtype]
    assert (actual[:3] == 7.0).all()
    assert (actual[first:] == 7.0).all()


def sampled(logits, temperatures, top_ps, seeds, positions, slots=None):
    rows = logits.shape[0]
    whole = torch.arange(rows, dtype=torch.int32, device=DEVICE)
    slots = whole if slots is None else slots
    newest, tokens, finite = (
        torch.full((rows + 1,), -1, dtype=torch.int32, device=DEVICE) for _ in range(3)
    )
    sampling.sample(logits, slots, temperatures, top_ps, seeds, positions, newest, tokens, finite)
    return newest, tokens[:rows], finite[:rows]


def test_sampling_matches_the_reference():
    """
    Greedy, with temperature, with top_p: the same token for the same seed and position.
    """
    rows, size = 12, 500
    logits = make(rows, size, scale=3.0)
    temperatures = torch.tensor([0.0, 0.7, 1.3] * 4, device=DEVICE)
    top_ps = torch.tensor([1.0, 1.0, 0.6, 0.9] * 3, device=DEVICE)
    seeds = torch.tensor([3, -5, 2**31 - 1, -(2**31)] * 3, dtype=torch.int32, device=DEVICE)
    positions = torch.arange(rows, dtype=torch.int32, device=DEVICE)

    newest, tokens, finite = sampled(logits, temperatures, top_ps, seeds, positions)

    expected, is_finite = truth.sample(logits, temperatures, top_ps, seeds, positions)
    assert tokens.tolist() == expected.tolist()
    assert newest[:rows].tolist() == tokens.tolist()
    assert finite.bool().tolist() == is_finite.tolist() == [True] * rows
    greedy = logits.argmax(dim=-1)
    assert (tokens != greedy).any()
    assert tokens[0] == greedy[0]


def test_top_p_separates_close_logits():
    """
    The threshold's resolution is 32 / 8**7: of two tokens 6e-5 apart, only the likelier is kept.
    """
    rows = 32
    logits = torch.full((rows, 64), -30.0, device=DEVICE)
    logits[:, 5], logits[:, 9] = -6e-5, 0.0
    ones, whole = torch.ones(rows, device=DEVICE), torch.arange(rows, dtype=torch.int32).to(DEVICE)

    for top_p, expected in ((1e-6, {9}), (0.4, {9}), (0.6, {5, 9})):
        _, tokens, _ = sampled(logits, ones, ones * top_p, whole, whole)
        assert set(tokens.tolist()) == expected


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_row_is_reported_alone(bad):
    """
    The other rows keep their tokens, and no token is outside of the vocabulary.
    """
    logits = make(3, 300)
    logits[1, 17] = bad
    zeros = torch.zeros(3, device=DEVICE)
    whole = zeros.int()

    _, tokens, finite = sampled(logits, zeros, zeros + 1, whole, whole)

    assert finite.tolist() == [1, 0, 1]
    assert [tokens[0], tokens[2]] == [logits[0].argmax(), logits[2].argmax()]
    assert 0 <= tokens[1] < 300


def test_noise_is_finite_for_all_bits(monkeypatch):
    """
    Including all ones and all zeros: infinite noise would always win.
    """
    for bits in (0, 2**32 - 1):
        monkeypatch.setattr(truth, "hash32", lambda x, bits=bits: torch.full_like(x, bits))
        one = torch.ones(1, dtype=torch.int32)
        assert truth.gumbel(one, one, 4).isfinite().all()
    step = sampling.STEP.value
    assert torch.tensor((2**23 - 1) * step, dtype=torch.float32) + 0.5 * step < 1


@pytest.mark.parametrize("seed", range(3))
def test_a_nearly_impossible_token_is_not_drawn(seed):
    """
    With a vocabulary of 150,000 tokens, over many positions.
    """
    rows, size = 8, 150_000
    logits = torch.full((rows, size), -20.0, device=DEVICE)
    logits[:, 7] = 0.0
    ones = torch.ones(rows, device=DEVICE)
    seeds = torch.full((rows,), seed, dtype=torch.int32, device=DEVICE)
    positions = torch.arange(rows, dtype=torch.int32, device=DEVICE) + 100 * seed

    _, tokens, _ = sampled(logits, ones, ones, seeds, positions)

    assert tokens.tolist() == [7] * rows


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_nan_stays_nan_in_a_quantised_cache(kind):
    """
    A broken row stays detectable in every format of the cache.
    """
    if kind == torch.float8_e4m3fn and DEVICE == "cpu":
        pytest.skip("the interpreter's fp8 has no NaN")
    cache = make_filled_cache([4], kv_heads=1, dim=16, page_tokens=16, dtype=kind)
    rows = make(2, 3 * 16)
    rows[0, 16:] = float("nan")
    rows[1, 20] = float("nan")
    angles = torch.stack((torch.ones(2, 8), torch.zeros(2, 8))).to(DEVICE)
    slots = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    positions = torch.arange(2, dtype=torch.int32, device=DEVICE)

    rope.turn_and_store(
        rows, angles, cache, 0, slots, positions, heads=1, q_norm=None, k_norm=None, eps=1e-5
    )

    keys, values = truth.read_cache(cache, 0, 0, 2, torch.float32)
    assert keys[0].isnan().all()
    assert values[0].isnan().all()
    assert keys[1].isnan().any()
    assert values[1].isfinite().all()


def test_the_noise_gives_each_token_its_probability():
    """
    Over many seeds.
    """
    share = torch.tensor([0.5, 0.3, 0.15, 0.05], device=DEVICE)
    count = 4000
    logits = share.log().expand(count, 4)
    ones = torch.ones(count, device=DEVICE)
    seeds = torch.arange(count, device=DEVICE)

    tokens, _ = truth.sample(logits, ones, ones, seeds, seeds * 7)

    actual = torch.bincount(tokens, minlength=4) / count
    assert (actual - share).abs().max() < 4 * (0.25 / count) ** 0.5


def test_wrong_numbers_would_be_noticed():
    """
    Negative control: NaN, a wrong sign and one missing row have a large distance.
    """
    right = make(4, 8)
    for wrong in (right * float("nan"), -right, torch.cat((right[:3], right[:1] * 0))):
        assert distance(wrong, right) > 0.1
    assert distance(right, right) == 0
