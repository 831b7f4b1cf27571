import pytest

from runtime.bench import kernels
from runtime.kernels import linear


@pytest.mark.parametrize("product", kernels.PRODUCTS, ids=lambda product: product.name)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_every_shape_is_valid_and_is_tried_once(product, bits):
    """
    Each timed shape is a `TileShape`, so it can go into the table of `runtime.kernels.linear`.
    """
    tried = [linear.TileShape(**shape) for shape in kernels.shapes(product, bits)]
    assert len(tried) == len(set(tried)) > 10
    assert {shape.splits for shape in tried} == ({1, 2, 4} if product.may_split else {1})


def test_every_shape_of_the_table_is_tried():
    """
    Prefetch is left out: only a chain of kernels can measure it.
    """
    tried = {linear.TileShape(**s) for p in kernels.PRODUCTS for s in kernels.shapes(p, 16)}
    for row in linear._FULL:
        for shape in (row.wide, row.split, row.gated, row.head):
            if shape is not None:
                assert linear.replace(shape, prefetch_bytes=0) in tried


def test_without_a_gpu_it_is_refused(capsys):
    """
    The error says that torch sees no GPU.
    """
    with pytest.raises(SystemExit) as ended:
        kernels.main(["--tokens", "1"])
    assert ended.value.code == 2
    assert "torch sees no GPU" in capsys.readouterr().err
