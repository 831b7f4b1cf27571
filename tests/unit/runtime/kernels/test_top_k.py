"""
The top_k kernel against its reference.
"""

import pytest
import torch

from runtime.kernels import processors
from tests.unit.runtime.kernels.truth import DEVICE, make

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


def both(logits, top_k):
    """
    Return the logits by the kernel and by the reference.
    """
    kernel = pytest.importorskip("runtime.kernels.top_k")
    ours, theirs = logits.clone(), logits.clone()
    k = torch.tensor(top_k, dtype=torch.int32, device=logits.device)
    kernel.keep_top_k(ours, k)
    processors.keep_top_k(theirs, k.long(), max(top_k))
    return ours, theirs


@pytest.mark.parametrize("size", [16, 97, 2048, 5000])
@pytest.mark.parametrize("is_rounded", [False, True])
def test_top_k_matches_the_reference(size, is_rounded):
    """
    Bit for bit, for any k of each row, with ties and without; a row without top_k is unchanged.
    """
    top_k = [1, 2, size - 1, 0, 7]
    logits = make(len(top_k), size, scale=4.0)
    logits = logits.round() if is_rounded else logits
    ours, theirs = both(logits, top_k)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[3], logits[3])
    assert (ours[0] > processors.DROPPED).sum() >= 1


def test_the_order_is_that_of_numbers():
    """
    Of both signs, both zeros, tiny and huge ones, and of dropped tokens.
    """
    row = [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1.0, -1.0, processors.DROPPED, 2.0, -2.0, 1e-3]
    logits = torch.tensor([row] * len(row), device=DEVICE)
    ours, theirs = both(logits, list(range(1, len(row) + 1)))
    assert torch.equal(ours, theirs)
