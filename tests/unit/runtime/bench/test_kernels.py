import pytest

from runtime.bench import kernels
from runtime.kernels import linear


@pytest.mark.parametrize("product", kernels.PRODUCTS, ids=lambda product: product.name)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_every_shape_is_one_and_none_is_tried_twice(product, bits):
    """
    What is timed can stand in the table of `runtime.kernels.linear`.
    """
    found = [linear.TileShape(**shape) for shape in kernels.shapes(product, bits)]
    assert len(found) == len(set(found)) > 10
    assert {shape.splits for shape in found} == ({1, 2, 4} if product.may_split else {1})


def test_what_stands_in_the_table_is_among_what_is_tried():
    """
    But for what is read ahead, which only a chain of kernels can tell.
    """
    tried = {linear.TileShape(**s) for p in kernels.PRODUCTS for s in kernels.shapes(p, 16)}
    for row in linear._FULL:
        for shape in (row.wide, row.split, row.gated, row.head):
            if shape is not None:
                assert linear.replace(shape, prefetch_bytes=0) in tried


def test_without_a_gpu_it_says_so(capsys):
    """
    Rather than time what no user would wait for.
    """
    with pytest.raises(SystemExit) as ended:
        kernels.main(["--tokens", "1"])
    assert ended.value.code == 2
    assert "torch sees no GPU" in capsys.readouterr().err
