import pytest
import torch

from runtime.bench.roofline import Cost, Rates, cost_model, least_s
from runtime.bench.shapes import SHAPES
from runtime.engines.paged.step import Chunk, Decode, Step
from runtime.models.config import DecoderConfig
from runtime.models.decoder import Decoder
from tests.unit.runtime.builders import make_config_document

TINY = cost_model(SHAPES["tiny"].config, value_bytes=4)


def decode(*positions):
    return Step((), tuple(Decode(slot, at) for slot, at in enumerate(positions)), ())


def chunk(start, size, is_last):
    return Step((), (), (Chunk(9, start, [0] * size, is_last),))


def test_the_sizes_of_a_shape_match_a_count_by_hand():
    """
    Two layers: q, k and v 128 x 64; out 64 x 64; the MLP 3 x 64 x 96; vocabulary 512.
    """
    assert TINY.qkv == 8192
    assert TINY.rest == 4096 + 18432
    assert TINY.matrices == 61440
    assert TINY.small == 2 * (64 + 64 + 128) + 64
    assert TINY.head == TINY.embedding == 32768
    assert TINY.kv_bytes == 512  # keys and values, 2 layers, 2 heads of 16, 4 bytes


def test_a_decode_reads_all_weights_and_the_cache_before_it():
    """
    Its own key and value are new and not read.
    """
    assert TINY.cost(decode(10)) == Cost(
        read_bytes=4 * (61440 + 576 + 32768) + 10 * 512,
        flops=2 * (61440 + 32768) + 11 * 512,
    )


def test_decodes_share_the_weights_but_not_the_cache():
    """
    A second decode adds only its cache reads and its operations.
    """
    one, both = TINY.cost(decode(10)), TINY.cost(decode(10, 20))
    assert both.read_bytes - one.read_bytes == 20 * 512
    assert both.flops - one.flops == 2 * (61440 + 32768) + 21 * 512


def test_a_chunk_in_the_middle_of_a_prompt_needs_no_head():
    """
    Nor the end of the last layer; each token attends to itself and all before it.
    """
    assert TINY.cost(chunk(4, 3, is_last=False)) == Cost(
        read_bytes=4 * (61440 + 576) + 4 * 512,
        flops=2 * 3 * (61440 - 22528) + (5 + 6 + 7) * 512,
    )


def test_the_last_chunk_of_a_prompt_needs_the_head_for_one_token():
    """
    The end of the last layer too.
    """
    more = TINY.cost(chunk(4, 3, is_last=True)).flops - TINY.cost(chunk(4, 3, False)).flops
    assert more == 2 * (22528 + 32768)


def test_a_step_takes_as_long_as_the_slower_of_reading_and_computing():
    """
    The times of several steps are added.
    """
    cost = Cost(read_bytes=100, flops=1000)
    assert cost.least_s(Rates(bytes_per_s=10, flops_per_s=1000)) == 10
    assert cost.least_s(Rates(bytes_per_s=100, flops_per_s=500)) == 2

    slow = Rates(bytes_per_s=1e9, flops_per_s=1e30)
    steps = [decode(10), decode(11)]
    assert least_s(TINY, steps, slow) == pytest.approx((384256 + 384768) / 1e9)


def test_a_lone_prompt_is_counted_by_products_and_by_parameters():
    """
    The recorded figure of vLLM, 617 TFLOP/s, counts all parameters.
    """
    assert TINY.prefill_flops(100) == 2 * (61440 * 100 + 32768)
    assert TINY.counted_flops(100) == 2 * 127552 * 100

    glm = cost_model(SHAPES["glm-4-9b"].config, value_bytes=2)
    assert glm.counted_flops(8000) / 0.244 / 1e12 == pytest.approx(617, abs=1)


def test_the_large_shape_has_the_documented_size():
    """
    9.40 G parameters, and 40 KiB of keys and values for each token.
    """
    glm = cost_model(SHAPES["glm-4-9b"].config, value_bytes=2)
    assert glm.parameters == pytest.approx(9.40e9, rel=1e-3)
    assert glm.kv_bytes == 40 << 10


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["GlmForCausalLM"], "attention_bias": False},
        {"architectures": ["Glm4ForCausalLM"]},
        {"architectures": ["LlamaForCausalLM"], "attention_bias": False},
        {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False},
        {"architectures": ["Qwen2ForCausalLM"], "attention_bias": False},
        {"tie_word_embeddings": True},
    ],
)
def test_every_parameter_of_every_family_is_counted(changes):
    """
    The cost model and the decoder agree on the number of parameters.
    """
    config = DecoderConfig.from_json(make_config_document(**changes), "config.json")
    with torch.device("meta"):
        decoder = Decoder(config)
    expected = sum(parameter.numel() for parameter in decoder.parameters())
    assert cost_model(config, 2).parameters == expected
