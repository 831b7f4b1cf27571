"""
The size of a model's parts on a device, in bytes.  Pure.

Weights and pages are exact.  Activations follow `Decoder.forward` with the GPU's kernels, tensor by
tensor; tests compare them with real allocations.
"""

from collections.abc import Iterator

from runtime.contract.errors import ModelError
from runtime.models.config import DecoderConfig
from runtime.models.shard import WHOLE, Shard

PRECISION_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
GROUP = 128  # kernels.quantize.GROUP
BLOCK_TOKENS = 512  # kernels.attention.chunked.BLOCK_TOKENS
LONG_TOKENS = 6144  # kernels.attention.chunked.LONG_TOKENS
GRAPH_TOKENS = 1024  # the last of runner.GRAPH_SIZES; all graphs share the memory of the largest
SAMPLING_BYTES = 48  # of each logit: what kernels.reference.sample makes of it
ATTENTION_PROGRAMS = 512  # twice kernels.attention.decode.SHARED_PAIRS


def weight_bytes(config: DecoderConfig, *, precision: str, weights: str, shard: Shard) -> int:
    """
    Return the exact size of a shard's weights.

    Raises:
        ModelError: int4, and a row is not a multiple of GROUP.
    """
    size, hidden, entries = PRECISION_BYTES[precision], config.hidden, config.vocabulary
    matrices = _matrices(config, shard)
    norms = hidden * (4 if config.has_output_norms else 2)
    norms += 2 * config.head_dim if config.has_qk_norms else 0
    bias = matrices[0][0] if config.has_bias else 0
    layer = size * (norms + bias) + sum(_matrix(*shape, weights, size) for shape in matrices)
    entries += 0 if config.is_tied else config.vocabulary // shard.size  # the head's rows
    return config.layers * layer + size * hidden * (entries + 1)


def page_bytes(
    config: DecoderConfig, kv: str, precision: str, page_tokens: int, shard: Shard
) -> int:
    """
    Return the size of one page: keys and values of all layers, and their scales.
    """
    size, scale = {"same": (PRECISION_BYTES[precision], 0), "fp8": (1, 0), "int8": (1, 4)}[kv]
    token = config.head_dim * size + scale
    return 2 * config.layers * shard.kv_heads(config.kv_heads) * page_tokens * token


def activation_bytes(
    config: DecoderConfig,
    tokens: int,
    precision: str,
    slots: int,
    shard: Shard,
    weights: str = "full",
    *,
    is_gpu: bool = True,
) -> int:
    """
    Return the peak size of a step of *tokens*, without weights and cache.

    On a GPU this includes the CUDA graphs' memory and attention's workspace.

    Args:
        slots: Most rows that a step samples.
    """
    size = PRECISION_BYTES[precision]

    def step(tokens: int) -> int:
        return max(_peaks(config, tokens, min(tokens, slots), size, shard, weights))

    longest, kv_heads = config.context_tokens, shard.kv_heads(config.kv_heads)
    group = shard.heads(config.heads) // kv_heads
    eager = step(tokens)
    if not is_gpu or precision == "fp32":
        # chunked._reference: a row's keys and values, gathered and reordered; and a mask, as bool
        # and, for each head of a group, as bool and twice as numbers: an estimate.
        eager += longest * 2 * kv_heads * config.head_dim * (3 * size + 4)
        eager += min(tokens, longest, BLOCK_TOKENS) * longest * (1 + group * (1 + 2 * size))
    if not is_gpu:
        return eager + min(tokens, slots) * config.vocabulary * SAMPLING_BYTES
    pairs = max(slots, GRAPH_TOKENS) * kv_heads
    padded = max(16, 1 << (group - 1).bit_length())
    parts = max(pairs, ATTENTION_PROGRAMS) * padded * (config.head_dim + 2)
    return eager + step(GRAPH_TOKENS) + 4 * (parts + pairs)  # attention.decode.Workspace


def embedding_bytes(config: DecoderConfig, tokens: int, precision: str, weights: str) -> int:
    """
    Return the peak size of a text of *tokens* that a decoder embeds, without its weights.

    It is computed at once, without a cache; see `engines.paged.embedding.embed_with_decoder`.
    """
    size, hidden = PRECISION_BYTES[precision], config.hidden
    shapes = _matrices(config, WHOLE)
    (qkv, _), (_, q), (gate_up, _), (_, inner) = shapes
    turned = qkv - (qkv - q) // 2  # queries and keys
    attention = size * (qkv + qkv // 8 + turned + q) + 4 * config.heads
    if config.has_qk_norms:
        attention += size * turned  # normed, before they are turned
    gated = size * (gate_up + 2 * inner)
    # The product, the next x and n, and on the way y normed.
    projected = size * (max(q, inner) + (4 if config.has_output_norms else 3) * hidden)
    pooled = (8 - size) * hidden  # n as fp32, twice; x is freed
    most = max(attention, gated, projected, pooled)
    each = 24 + 4 * config.rotary + 2 * size * hidden + most
    wide = 0 if weights == "full" else max(n * k * size for n, k in shapes)  # linear.widen
    return tokens * each + wide


def _peaks(
    config: DecoderConfig, tokens: int, rows: int, size: int, shard: Shard, weights: str
) -> Iterator[int]:
    """
    Yield the size of the live tensors at each peak of a step, in the order of `Decoder.forward`.

    Args:
        rows: Number of rows that are sampled.
    """
    shapes = _matrices(config, shard)
    (qkv, hidden), (_, q), (gate_up, _), (_, inner) = shapes

    def plain(columns: int, tokens: int = tokens) -> int:
        return tokens * columns * size

    def with_slack(columns: int) -> int:  # fused._linear_with_slack
        return plain(columns, tokens + tokens // 8 + 8)

    # The tensor that is summed over shards comes from `ops.linear`, not from `ops.project`.
    summed = plain(hidden) if shard.size == 1 else with_slack(hidden)
    # Tokens, slots, positions, cosines and sines; the prompts' tiles, at most one per token.
    flat = tokens * (12 + 4 * config.rotary + 16)
    base = flat + 2 * plain(hidden)  # x and n
    wide = [0 if weights == "full" else n * k * size for n, k in shapes]  # linear.widen
    attention = plain(q)
    if tokens >= LONG_TOKENS:  # chunked.attend_lone: k and v, y and its log-sum-exp, rounded up
        padded = tokens + tokens // 8 + 1
        attention = plain(qkv, padded) + 4 * padded * shard.heads(config.heads)
    whole = 0 if shard.size == 1 else 2 * config.vocabulary  # gathered, then joined
    yield base + wide[0] + with_slack(qkv)
    yield base + with_slack(qkv) + attention
    new = 2 * plain(hidden)  # the next x and n
    yield base + plain(q) + summed + max(wide[1], new)
    yield base + plain(gate_up) + max(wide[2], plain(inner))
    yield base + plain(inner) + summed + max(wide[3], new)
    yield flat + rows * (4 * (config.vocabulary // shard.size + whole) + 3 * hidden * size)


def _matrices(config: DecoderConfig, shard: Shard) -> tuple[tuple[int, int], ...]:
    """
    Return the shapes of a layer's qkv, out, gate_up and down.
    """
    hidden, inner = config.hidden, config.intermediate // shard.size
    q, kv = (
        count * config.head_dim
        for count in (shard.heads(config.heads), shard.kv_heads(config.kv_heads))
    )
    return (q + 2 * kv, hidden), (hidden, q), (2 * inner, hidden), (hidden, inner)


def _matrix(rows: int, columns: int, weights: str, size: int) -> int:
    if weights == "full":
        return rows * columns * size
    if weights == "int8":
        return rows * (columns + 4)
    if columns % GROUP:
        raise ModelError(
            f"weights: int4: a weight has rows of {columns} values",
            why=f"{GROUP} values share a scale, and {columns} is not a multiple of {GROUP}",
            fix="set weights: int8, or another number of gpus",
        )
    return rows * (columns // 2 + columns // GROUP * size)
