import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.contract.errors import ModelError
from runtime.kernels.quantize import dequantize, empty_quantized, quantize

KINDS = [(8, torch.float32), (4, torch.float16), (4, torch.bfloat16), (4, torch.float32)]


def make_weight(seed, spread, rows=6, columns=256):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * spread
    weight[:, 3] *= 20  # an outlier, as trained weights have
    weight[1] = 0
    weight[2, 128:] = 0
    return weight


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([1e-9, 1e-4, 0.02, 1.0, 300.0]),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_no_value_moves_by_more_than_half_of_its_scale(seed, spread, kind, dtype):
    """
    For any weights, and any type of the scales.
    """
    bits, scale_dtype = kind
    weight = make_weight(seed, spread).to(dtype)
    quantized = quantize(weight, bits, scale_dtype)
    scale = quantized.scale.float()
    scale = scale[:, None] if bits == 8 else scale.repeat_interleave(128, dim=1)
    error = (dequantize(quantized, torch.float32) - weight.float()).abs()
    assert (error <= scale * 0.5001).all()
    assert (scale > 0).all()


@pytest.mark.parametrize(("bits", "scale"), KINDS)
def test_multiples_of_the_scale_are_unchanged(bits, scale):
    """
    Rounding is idempotent, and zeros stay zeros.
    """
    once = dequantize(quantize(make_weight(1, 0.02), bits, scale), torch.float32)
    twice = dequantize(quantize(once, bits, scale), torch.float32)
    torch.testing.assert_close(twice, once, rtol=0.01, atol=0)
    assert (once[1] == 0).all()


@pytest.mark.parametrize(("bits", "scale"), KINDS)
def test_empty_weights_have_the_shapes_of_quantised_ones(bits, scale):
    """
    `empty_quantized` and `quantize` agree on shapes and types.
    """
    empty = empty_quantized(6, 256, bits, scale=scale, device="cpu")
    quantized = quantize(make_weight(1, 1.0), bits, scale)
    assert empty.shape == quantized.shape == (6, 256)
    assert (empty.weight.shape, empty.weight.dtype) == (
        quantized.weight.shape,
        quantized.weight.dtype,
    )
    assert (empty.scale.shape, empty.scale.dtype) == (quantized.scale.shape, quantized.scale.dtype)


def test_even_columns_are_in_the_low_half_of_a_byte():
    """
    Each stored value is 8 above its meaning.
    """
    weight = torch.zeros(1, 128)
    weight[0, :4] = torch.tensor([7.0, -7.0, 1.0, 0.0])
    quantized = quantize(weight, 4, torch.float32)
    assert quantized.scale.tolist() == [[1.0]]
    assert quantized.weight[0, :3].tolist() == [15 | 1 << 4, 9 | 8 << 4, 8 | 8 << 4]


@pytest.mark.parametrize(("bits", "scale"), KINDS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_non_finite_weights_stay_non_finite(bits, scale, broken):
    """
    A broken weight is not hidden, and the rows beside it are unchanged.
    """
    weight = make_weight(1, 1.0)
    weight[0, 5] = broken
    restored = dequantize(quantize(weight, bits, scale), torch.float32)
    assert not restored[0, 5].isfinite()
    assert restored[1:].isfinite().all()


def test_a_partial_group_is_refused_in_4_bits():
    """
    8 bits accept any row.
    """
    weight = torch.ones(2, 192)
    quantize(weight, 8, torch.float32)
    for refused in (
        lambda: quantize(weight, 4, torch.float16),
        lambda: empty_quantized(2, 192, 4, scale=torch.float16, device="cpu"),
    ):
        with pytest.raises(ModelError, match="rows of 192 values"):
            refused()
