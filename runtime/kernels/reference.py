"""
Each kernel's operation in plain torch: the reference in tests, and the implementation on a CPU.

Shapes: t tokens, b rows, h query heads, g KV heads, d values per head, v vocabulary.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from runtime.kernels.cache import INT8_TOP, PagedCache

MASK32 = 0xFFFFFFFF
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)  # Source: "lowbias32", Chris Wellons, hash-prospector


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """
    Return x (t, n) divided by its root mean square, times *weight* (n,).
    """
    return functional.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(
    x: Tensor, y: Tensor, weight: Tensor, eps: float, post: Tensor | None
) -> tuple[Tensor, Tensor]:
    """
    Return x + y, both (t, n), and the sum normed by *weight*; *post* norms y first.
    """
    x = x + (y if post is None else rms_norm(y, post, eps))
    return x, rms_norm(x, weight, eps)


def gated(gate_up: Tensor) -> Tensor:
    """
    Return SwiGLU of gate_up (t, 2n), the gates first: (t, n).
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """
    Rotate the leading values of each head of x (t, heads, d), in neighbouring pairs.

    Args:
        angles: (2, t, rotary / 2) fp32: cosines, then sines.
    """
    cos, sin = angles.to(x.dtype)[:, :, None]
    rotary = 2 * cos.shape[-1]
    even, odd = x[..., 0:rotary:2], x[..., 1:rotary:2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((turned, x[..., rotary:]), dim=-1)


def write_cache(
    cache: PagedCache, layer: int, k: Tensor, v: Tensor, slots: Tensor, positions: Tensor
) -> None:
    """
    Store k and v (t, g, d) in the cache, at each token's slot and position (t,).
    """
    store_at(cache, layer, k, v, *places_of(cache, slots, positions))


def places_of(cache: PagedCache, slots: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """
    Return the page of each token (t,), and its place in that page; of all layers the same.
    """
    size = cache.page_tokens
    return cache.table[slots, positions // size].long(), positions % size


def store_at(
    cache: PagedCache, layer: int, k: Tensor, v: Tensor, pages: Tensor, places: Tensor
) -> None:
    """
    Store k and v (t, g, d) at their `places_of`.
    """
    for store, scales, new in (
        (cache.keys, cache.key_scales, k),
        (cache.values, cache.value_scales, v),
    ):
        if scales is not None:
            scale = new.float().abs().amax(dim=-1) / INT8_TOP
            scales[layer, pages, :, places] = scale
            new = (new.float() / scale.clamp_min(1e-30)[..., None]).round()
        elif store.dtype == torch.float8_e4m3fn:
            new = new.clamp(-448, 448)
        # torch has no indexed store of fp8 on the CPU; store bytes.
        as_bytes = new.to(store.dtype).view(torch.uint8) if store.element_size() == 1 else new
        target = store[layer].view(torch.uint8) if store.element_size() == 1 else store[layer]
        target[pages, :, places] = as_bytes


def read_cache(
    cache: PagedCache, layer: int, slot: int, tokens: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """
    Return the keys and values (tokens, g, d) of the first *tokens* of a slot.
    """
    pages = cache.table[slot, : -(-tokens // cache.page_tokens)].long()
    results = []
    for store, scales in (
        (cache.keys, cache.key_scales),
        (cache.values, cache.value_scales),
    ):
        raw = store[layer].view(torch.uint8) if store.element_size() == 1 else store[layer]
        read = raw[pages].view(store.dtype).to(dtype)  # (pages, g, page_tokens, d)
        if scales is not None:
            read = (read.float() * scales[layer][pages][..., None]).to(dtype)
        results.append(read.transpose(1, 2).flatten(0, 1)[:tokens])
    return results[0], results[1]


def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """
    Return causal attention of q (s, h, d) over keys and values (t, g, d): the last s positions.
    """
    s, h, d = q.shape
    t, g, _ = keys.shape
    mask = None  # one query, the last position, attends to all
    if s > 1:
        mask = torch.ones(s, t, dtype=torch.bool, device=q.device).tril(t - s).repeat(h // g, 1)
    # Query heads that share a KV head become query rows: keys and values are not repeated.
    grouped = q.view(s, g, h // g, d).permute(1, 2, 0, 3).reshape(g, h // g * s, d)
    y = functional.scaled_dot_product_attention(
        grouped[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=mask,
    )
    return y.view(g, h // g, s, d).permute(2, 0, 1, 3).reshape(s, h, d)


def decode_attention(
    q: Tensor, cache: PagedCache, layer: int, slots: Tensor, positions: Tensor
) -> Tensor:
    """
    Return attention of one query per row (b, h, d) over its slot's cache, up to its own position.
    """
    return attend_rows(q, cache, layer, zip(slots.tolist(), positions.tolist(), strict=True))


def attend_rows(
    q: Tensor, cache: PagedCache, layer: int, slot_positions: Iterable[tuple[int, int]]
) -> Tensor:
    """
    Do what `decode_attention` does, with slots and positions of the rows in host memory.
    """
    rows = []
    for row, (slot, position) in enumerate(slot_positions):
        keys, values = read_cache(cache, layer, slot, position + 1, q.dtype)
        rows.append(attend(q[row : row + 1], keys, values))
    return torch.cat(rows) if rows else q


def sample(
    logits: Tensor, temperatures: Tensor, top_ps: Tensor, seeds: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """
    Return a token for each row of *logits* (b, v), and whether the row is finite: (b,) each.

    Temperature 0 is greedy.  Otherwise the token is the argmax of the logits plus Gumbel noise,
    over the smallest set of tokens that reaches top_p.  The noise is a hash of seed, position and
    token: a token does not depend on the other rows, and a repeated step draws it again.
    """
    logits = logits.float()
    finite = torch.isfinite(logits).all(dim=-1)
    chosen = logits.argmax(dim=-1)
    drawn = (temperatures > 0).nonzero()[:, 0]
    if not drawn.numel():
        return chosen, finite
    scaled = logits[drawn] / temperatures[drawn, None]
    shares, order = scaled.softmax(dim=-1).sort(dim=-1, descending=True)
    # Keep a token if the probabilities before it sum to less than top_p: never an empty set.
    kept = shares.cumsum(dim=-1) - shares < top_ps[drawn, None]
    noise = gumbel(seeds[drawn], positions[drawn], logits.shape[-1])
    noisy = (scaled + noise).gather(1, order).masked_fill(~kept, -torch.inf)
    chosen[drawn] = order.gather(1, noisy.argmax(dim=-1, keepdim=True))[:, 0]
    return chosen, finite


def gumbel(seeds: Tensor, positions: Tensor, size: int) -> Tensor:
    """
    Return standard Gumbel noise (b, size), a function of seed and position (b,).
    """
    low = hash32(seeds.long() & MASK32)
    high = hash32(low ^ (positions.long() & MASK32))
    index = torch.arange(size, device=seeds.device)
    bits = hash32(hash32((index + low[:, None]) & MASK32) ^ high[:, None])
    # 23 bits plus one half step: below 1 in fp32 too; at 1 the noise would be infinite.
    uniform = (bits >> 9).float() * 2.0**-23 + 2.0**-24
    return -torch.log(-torch.log(uniform))


def hash32(x: Tensor) -> Tensor:
    """
    Return a 32-bit hash of the 32 bits in x; both are int64.
    """
    x = x ^ (x >> 16)
    x = (x * MULTIPLIERS[0]) & MASK32
    x = x ^ (x >> 15)
    x = (x * MULTIPLIERS[1]) & MASK32
    return x ^ (x >> 16)
