"""
Each kernel's operation in plain torch: the reference of its tests, and the CPU's implementation.

Shapes: t tokens, b rows, h query heads, g KV heads, d values a head, v vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.kernels.cache import INT8_TOP, PagedCache

MASK32 = 0xFFFFFFFF
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)  # "lowbias32", Chris Wellons, hash-prospector


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """
    Return x (t, n) over its root mean square, times *weight* (n,).
    """
    return functional.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(
    x: Tensor, y: Tensor, weight: Tensor, eps: float, post: Tensor | None
) -> tuple[Tensor, Tensor]:
    """
    Return x + y, both (t, n), and that normed by *weight*; *post* norms y before.
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
    Rotate the leading values of each head of x (t, heads, d), pair by neighbouring pair.

    Args:
        angles: (2, t, rotary / 2) fp32, cosines and sines.
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
    Store k and v (t, g, d) where the slot and position (t,) of each token say.
    """
    size = cache.page_tokens
    pages, places = cache.table[slots, positions // size].long(), positions % size
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
        # fp8 has no indexed store on the CPU; its bytes do.
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
    found = []
    for store, scales in (
        (cache.keys, cache.key_scales),
        (cache.values, cache.value_scales),
    ):
        raw = store[layer].view(torch.uint8) if store.element_size() == 1 else store[layer]
        read = raw[pages].view(store.dtype).to(dtype)  # (pages, g, page_tokens, d)
        if scales is not None:
            read = (read.float() * scales[layer][pages][..., None]).to(dtype)
        found.append(read.transpose(1, 2).flatten(0, 1)[:tokens])
    return found[0], found[1]


def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """
    Attend q (s, h, d) to keys and values (t, g, d): the last query sees all, each before it one
    less.
    """
    s, h, d = q.shape
    t, g, _ = keys.shape
    mask = torch.ones(s, t, dtype=torch.bool, device=q.device).tril(t - s)
    # Query heads that share a KV head are a batch dimension: keys and values are not repeated.
    grouped = q.view(s, g, h // g, d).permute(1, 2, 0, 3).reshape(g, h // g * s, d)
    y = functional.scaled_dot_product_attention(
        grouped[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        attn_mask=mask.repeat(h // g, 1),
    )
    return y.view(g, h // g, s, d).permute(2, 0, 1, 3).reshape(s, h, d)


def decode_attention(
    q: Tensor, cache: PagedCache, layer: int, slots: Tensor, positions: Tensor
) -> Tensor:
    """
    Attend one query (b, h, d) a row to what its slot has up to its position, itself included.
    """
    rows = []
    for row, (slot, position) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        keys, values = read_cache(cache, layer, slot, position + 1, q.dtype)
        rows.append(attend(q[row : row + 1], keys, values))
    return torch.cat(rows) if rows else q


def sample(
    logits: Tensor, temperatures: Tensor, top_ps: Tensor, seeds: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """
    Return a token for each row of *logits* (b, v), and whether the row is finite: (b,) each.

    Greedy at temperature 0; else the likeliest of noisy logits (the Gumbel trick), among the
    smallest set of tokens that reaches top_p.  The noise is a hash of seed, position and token, so
    no answer depends on its neighbours, and a step that is repeated draws the same.
    """
    logits = logits.float()
    finite = torch.isfinite(logits).all(dim=-1)
    chosen = logits.argmax(dim=-1)
    drawn = (temperatures > 0).nonzero()[:, 0]
    if not drawn.numel():
        return chosen, finite
    scaled = logits[drawn] / temperatures[drawn, None]
    shares, order = scaled.softmax(dim=-1).sort(dim=-1, descending=True)
    # The smallest set that reaches top_p: tokens with less than that before them.  Never empty.
    kept = shares.cumsum(dim=-1) - shares < top_ps[drawn, None]
    noise = gumbel(seeds[drawn], positions[drawn], logits.shape[-1])
    noisy = (scaled + noise).gather(1, order).masked_fill(~kept, -torch.inf)
    chosen[drawn] = order.gather(1, noisy.argmax(dim=-1, keepdim=True))[:, 0]
    return chosen, finite


def gumbel(seeds: Tensor, positions: Tensor, size: int) -> Tensor:
    """
    Return standard Gumbel noise (b, size), fixed by seed and position (b,).
    """
    low = hash32(seeds.long() & MASK32)
    high = hash32(low ^ (positions.long() & MASK32))
    index = torch.arange(size, device=seeds.device)
    bits = hash32(hash32((index + low[:, None]) & MASK32) ^ high[:, None])
    # 23 bits and a half: the largest is below 1 in fp32 too, where noise would be infinite.
    uniform = (bits >> 9).float() * 2.0**-23 + 2.0**-24
    return -torch.log(-torch.log(uniform))


def hash32(x: Tensor) -> Tensor:
    """
    Return well mixed 32 bits of the 32 bits in x, both held in int64.
    """
    x = x ^ (x >> 16)
    x = (x * MULTIPLIERS[0]) & MASK32
    x = x ^ (x >> 15)
    x = (x * MULTIPLIERS[1]) & MASK32
    return x ^ (x >> 16)
