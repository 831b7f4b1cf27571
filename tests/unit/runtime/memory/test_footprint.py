"""
Computed sizes compared with allocations: real modules and the kernels' callers, on "meta".
"""

import pytest
import torch

from runtime.contract.errors import ModelError
from runtime.engines.base.sampling import SamplingParams
from runtime.engines.paged.embedding import embed_with_decoder
from runtime.engines.paged.runner import GRAPH_SIZES, PagedRunner
from runtime.engines.paged.step import Chunk, Join, Step
from runtime.kernels.attention import chunked as prefill
from runtime.kernels.attention.chunked import Prefill, Span
from runtime.kernels.attention.dispatch import PagedAttend
from runtime.kernels.cache import KV_DTYPES, make_cache
from runtime.kernels.quantize import GROUP, Quantized
from runtime.memory import footprint
from runtime.memory.footprint import (
    activation_bytes,
    embedding_bytes,
    page_bytes,
    weight_bytes,
)
from runtime.models.config import DecoderConfig
from runtime.models.decoder import Decoder
from runtime.models.families import FAMILIES
from runtime.models.loader import PRECISIONS
from runtime.models.pooling import Pooling
from runtime.models.shard import WHOLE, Shard
from tests.unit.runtime.builders import make_config_document, make_model
from tests.unit.runtime.memory.meter import Meter

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "head_dim": 64,
    "vocab_size": 304,
    "num_hidden_layers": 3,
}
GLM_4_9B = {
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_attention_heads": 32,
    "head_dim": 128,
    "vocab_size": 151552,
    "num_hidden_layers": 3,  # of 40: the others reuse their memory
    "max_position_embeddings": 131072,
}


def make_config(**changes):
    return DecoderConfig.from_json(make_config_document(**changes), "config.json")


def make_decoder(config, *, precision="bf16", weights="full", shard=WHOLE):
    with torch.device("meta"):
        model = Decoder(config, shard).to(PRECISIONS[precision])
    if weights != "full":
        model.quantize(int(weights.removeprefix("int")), "meta")
    return model.requires_grad_(False)


def allocated(target):
    if isinstance(target, Quantized):
        return allocated(target.weight) + allocated(target.scale)
    return target.numel() * target.element_size()


@pytest.mark.parametrize("weights", ["full", "int8", "int4"])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_size_of_weights_is_exact(name, size, weights):
    """
    In every family, precision and shard, tied or not, quantised or not.
    """
    shard = Shard(size - 1, size)
    changes = {"attention_bias": "Glm" in name, "architectures": [name]}
    if "Glm4v" in name:
        changes["rope_scaling"] = {"mrope_section": [8, 12, 12]}
    for precision in PRECISIONS:
        for tied in (False, True):
            config = make_config(**SMALL | changes, tie_word_embeddings=tied)
            model = make_decoder(config, precision=precision, weights=weights, shard=shard)
            computed = weight_bytes(config, precision=precision, weights=weights, shard=shard)
            assert computed == sum(map(allocated, model.targets.values()))


def test_a_weight_more_would_be_noticed():
    """
    Negative control: one norm, one bias, or one row of the vocabulary more.
    """

    def size_of(**changes):
        config = make_config(**SMALL | changes)
        return weight_bytes(config, precision="bf16", weights="full", shard=WHOLE)

    glm4 = size_of()
    assert glm4 - size_of(architectures=["GlmForCausalLM"]) == 3 * 2 * 256 * 2
    assert glm4 - size_of(attention_bias=False) == 3 * (8 + 2 * 2) * 64 * 2
    assert size_of(vocab_size=305) - glm4 == 2 * 256 * 2


def test_four_bits_need_whole_groups():
    """
    The error is that of `kernels.quantize`, but before anything is loaded, and names the key to
    change.
    """
    config = make_config(**SMALL | {"intermediate_size": 1040})
    assert weight_bytes(config, precision="bf16", weights="int8", shard=WHOLE)  # negative control
    with pytest.raises(ModelError, match="rows of 1040 values"):
        weight_bytes(config, precision="bf16", weights="int4", shard=WHOLE)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kv", ["same", "fp8", "int8"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_size_of_pages_is_exact(precision, kv, size):
    """
    Keys, values and scales of all layers; 4 shards hold each of 2 KV heads twice.
    """
    config, pages = make_config(**SMALL), 7
    cache = make_cache(
        layers=config.layers,
        pages=pages,
        kv_heads=Shard(0, size).kv_heads(config.kv_heads),
        page_tokens=32,
        head_dim=config.head_dim,
        slots=1,
        row_pages=1,
        dtype=KV_DTYPES.get(kv, PRECISIONS[precision]),
        device="meta",
    )
    held = (cache.keys, cache.values, cache.key_scales, cache.value_scales)
    allocated_bytes = sum(allocated(tensor) for tensor in held if tensor is not None)
    assert pages * page_bytes(config, kv, precision, 32, Shard(0, size)) == allocated_bytes


def test_a_token_of_glm_takes_40_kib():
    """
    As measured on the real model.
    """
    config = make_config(**GLM_4_9B | {"num_hidden_layers": 40})
    assert page_bytes(config, "same", "bf16", 64, WHOLE) == 64 * 40 * 1024


def test_numbers_that_stand_twice_are_the_same():
    """
    The plan imports no torch, so it can't ask.
    """
    attention = pytest.importorskip("runtime.kernels.attention.decode")
    assert footprint.GROUP == GROUP
    assert footprint.BLOCK_TOKENS == prefill.BLOCK_TOKENS
    assert footprint.LONG_TOKENS == prefill.LONG_TOKENS
    assert GRAPH_SIZES[-1] == footprint.GRAPH_TOKENS
    assert footprint.ATTENTION_PROGRAMS == 2 * attention.SHARED_PAIRS


@pytest.fixture
def gpu(monkeypatch):
    """
    Have "meta" taken for a GPU whose kernels compute nothing; return its operations.
    """
    pytest.importorskip("triton")
    # Not at the top: they define kernels, and how is only said when all tests are collected.
    from triton.runtime.jit import KernelInterface

    from runtime.kernels.fused import FusedOps

    monkeypatch.setattr(KernelInterface, "__getitem__", lambda kernel, grid: lambda *a, **k: None)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    ops = FusedOps.__new__(FusedOps)
    ops.pdl, ops._multiprocessors = False, 132
    return ops


SLOTS, ROW_PAGES = 32, 2048

# (tokens before, tokens) of each prompt, behind as many decodes.
STEPS = {
    "one long prompt": (0, [(0, 8192)]),
    "short prompts": (0, [(0, 256)] * 32),
    "decodes and prompts": (32, [(60_000, 4_000), (0, 4_160)]),
    "the end of a long prompt": (0, [(131_072 - 8192, 8192)]),
}


def measure(ops, config, decodes, prompts, *, weights="full", kv="same", shard=WHOLE):
    """
    Return the peak of a step, without weights and cache, and the size of the workspace.
    """
    from runtime.kernels.attention.decode import Workspace

    model = make_decoder(config, weights=weights, shard=shard)
    model.ops = ops
    if shard.size > 1:
        parts = range(shard.size)
        model.gather = lambda x: torch.cat([torch.empty_like(x) for _ in parts], dim=-1)
    layer, meta = model.layers[0], torch.device("meta")
    cache = make_cache(
        layers=config.layers,
        pages=9,
        kv_heads=layer.kv_heads,
        page_tokens=64,
        head_dim=config.head_dim,
        slots=SLOTS + 1,
        row_pages=ROW_PAGES,
        dtype=KV_DTYPES.get(kv, torch.bfloat16),
        device=meta,
    )
    group = layer.heads // layer.kv_heads
    workspace = Workspace(GRAPH_SIZES[-1], layer.kv_heads, group, config.head_dim, meta)
    spans, first = [], decodes
    for slot, (start, tokens) in enumerate(prompts):
        spans.append(Span(slot, first, start, tokens))
        first += tokens
    with torch.inference_mode(), Meter() as meter:
        tokens, slots, positions = torch.zeros((3, first), dtype=torch.int32, device=meta)
        prefill = Prefill(spans, cache, group=group, is_fused=True) if spans else None
        attend = PagedAttend(cache, slots, positions, decodes, prefill, workspace)
        rows = torch.zeros(min(SLOTS, first), dtype=torch.int32, device=meta)
        model(tokens, positions, attend, rows)
    kept = [workspace.partial, workspace.weights, workspace.counters]
    return meter.peak, sum(map(allocated, kept))


@pytest.mark.parametrize("kv", ["same", "fp8", "int8"])
@pytest.mark.parametrize("weights", ["full", "int8", "int4"])
@pytest.mark.parametrize("step", STEPS)
def test_no_step_of_glm_takes_more_than_computed(gpu, step, weights, kv):
    """
    The estimate is at most a tenth above the largest step, its graphs and attention's workspace.
    """
    config = make_config(**GLM_4_9B)
    largest, kept = measure(gpu, config, *STEPS[step], weights=weights, kv=kv)
    graph, _ = measure(gpu, config, GRAPH_SIZES[-1], [], weights=weights, kv=kv)

    computed = activation_bytes(config, 8192, "bf16", SLOTS, WHOLE, weights)
    assert largest + graph + kept <= computed <= 1.1 * (largest + graph + kept)


@pytest.mark.parametrize("kv", ["same", "fp8", "int8"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"num_key_value_heads": 32}, id="no-groups"),
        pytest.param({"architectures": ["GlmForCausalLM"]}, id="no-post-norms"),
        pytest.param({"intermediate_size": 512}, id="small-mlp"),
        pytest.param({"hidden_size": 512, "intermediate_size": 512}, id="large-vocabulary"),
    ],
)
@pytest.mark.parametrize("size", [1, 2])
def test_no_step_of_other_shapes_takes_more_than_computed(gpu, changes, step, kv, size):
    """
    The peak may be in attention, the MLP or the logits, of a whole model or of a half.
    """
    config, shard = make_config(**GLM_4_9B | changes), Shard(0, size)
    largest, kept = measure(gpu, config, *STEPS[step], kv=kv, shard=shard)
    graph, _ = measure(gpu, config, GRAPH_SIZES[-1], [], kv=kv, shard=shard)

    computed = activation_bytes(config, 8192, "bf16", SLOTS, shard)
    assert largest + graph + kept <= computed


@pytest.mark.parametrize("size", [2, 8])
def test_a_shard_takes_no_more_than_computed(gpu, size):
    """
    For long prompts, with the logits gathered from all shards.
    """
    config, shard = make_config(**GLM_4_9B), Shard(0, size)
    largest, kept = measure(gpu, config, *STEPS["one long prompt"], shard=shard)
    graph, _ = measure(gpu, config, GRAPH_SIZES[-1], [], shard=shard)

    computed = activation_bytes(config, 8192, "bf16", SLOTS, shard)
    assert largest + graph + kept <= computed <= 1.1 * (largest + graph + kept)


def test_a_tensor_more_would_be_noticed(gpu):
    """
    Negative control: gate and up allocated twice exceed the estimate.
    """
    config, gated = make_config(**GLM_4_9B), gpu.gated
    gpu.gated = lambda x, weight: (gpu.linear(x, weight), gated(x, weight))[1]
    largest, kept = measure(gpu, config, *STEPS["one long prompt"])
    graph, _ = measure(gpu, config, GRAPH_SIZES[-1], [])
    assert largest + graph + kept > activation_bytes(config, 8192, "bf16", SLOTS, WHOLE)


def test_prompts_in_fp32_take_the_memory_of_the_reference():
    """
    Its masks have an entry for each token of a block, each token that it attends to, and each query
    head of a group.
    """
    config = make_config(**GLM_4_9B)
    whole, half, more = (
        activation_bytes(config, tokens, precision, SLOTS, WHOLE)
        for tokens, precision in ((8192, "fp32"), (4096, "fp32"), (8192, "bf16"))
    )
    masks = prefill.BLOCK_TOKENS * 131_072 * 16
    assert more + masks < half < whole
    shorter = make_config(**GLM_4_9B | {"max_position_embeddings": 65_536})
    keys = 2 * 2 * 128 * 4 * 3  # of a token: read, put in order, and what both are read from
    difference = whole - activation_bytes(shorter, 8192, "fp32", SLOTS, WHOLE)
    assert difference >= 65_536 * (keys + prefill.BLOCK_TOKENS * (1 + 16 * 9))


@pytest.mark.parametrize("vocabulary", [300, 20_000])
def test_no_step_of_a_cpu_takes_more_than_computed(vocabulary):
    """
    A chunk behind a long prefix, and rows that all draw a token.
    """
    slots, tokens, page = 4, 128, 64
    model = make_model(vocab_size=vocabulary, max_position_embeddings=512)
    runner = PagedRunner(model, slots=slots, pages=40, page_tokens=page, row_pages=8)
    params = SamplingParams(max_tokens=4, temperature=1.0, seed=1)
    whole = Join(0, range(1, 9), params)
    last = Chunk(0, 512 - tokens, [1] * tokens, is_last=True)
    short = [Join(slot, [1 + slot], params) for slot in range(slots)]
    drawn = tuple(Chunk(slot, 0, [1] * 8, is_last=True) for slot in range(slots))
    peaks = []
    for step in (Step((whole,), (), (last,)), Step(tuple(short), (), drawn)):
        with Meter() as meter:
            runner.launch(step).collect()
        peaks.append(meter.peak)

    computed = activation_bytes(model.config, tokens, "fp32", slots, WHOLE, is_gpu=False)
    assert max(peaks) <= computed
    if vocabulary > 300:  # sampling has the peak: no room to hide in
        assert peaks[1] > 0.6 * computed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_attention_heads": 8},
        {"intermediate_size": 16},
        {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "intermediate_size": 16},
        {"hidden_size": 512, "intermediate_size": 16},
    ],
    ids=["mlp", "heads", "attention", "qk-norms", "pooling"],
)
def test_no_text_that_a_decoder_embeds_takes_more_than_computed(changes, precision):
    """
    It is computed at once, however long; the peak is in the MLP, in attention, or in the pooling.
    """
    model = make_model(vocab_size=300, max_position_embeddings=4096, **changes)
    model = model.to(PRECISIONS[precision])
    for mode in ("mean", "last"):
        with Meter() as meter:
            embed_with_decoder(model, Pooling(mode))([[1] * 2000])
        computed = embedding_bytes(model.config, 2000, precision, "full")
        assert 0.7 * computed < meter.peak <= computed
