"""
The kernels of penalties and masks against their reference.
"""

import pytest
import torch

from runtime.kernels import processors
from runtime.kernels.processors import IN_PROMPT
from tests.unit.runtime.kernels.truth import DEVICE, make


@pytest.mark.parametrize("size", [5, 97, 4096, 9000])
def test_penalties_match_the_reference(size):
    """
    Up to the last bit; a row without penalties is unchanged, whatever its slot's numbers are.
    """
    kernel = pytest.importorskip("runtime.kernels.adjust")
    logits = make(4, size, scale=4.0)
    rng = torch.Generator().manual_seed(size)
    history = torch.randint(0, 3, (5, size), generator=rng, dtype=torch.int32)
    history += torch.randint(0, 2, (5, size), generator=rng, dtype=torch.int32) * IN_PROMPT
    history[0] = 0
    numbers = torch.tensor(
        [[1.3, 0.5, -0.25, 9.0], [7.0, 7.0, 7.0, 9.0], [0.5, -2.0, 2.0, 9.0], [1.0, 0.0, 0.0, 9.0]]
    )
    rows, slots = torch.tensor([3, 0, 1, 4]), torch.tensor([2, 1, 0, 3])

    ours = logits.clone()
    on = [part.to(DEVICE) for part in (history, rows.int(), numbers, slots.int())]
    kernel.penalize(ours, *on)

    theirs = logits.cpu().clone()
    processors.penalize(theirs, history[rows], *numbers[slots].T[:3])
    torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours[1], logits[1])
    assert torch.equal(ours[3], logits[3])
    assert not torch.equal(ours[0], logits[0])


@pytest.mark.parametrize("size", [5, 97, 4096, 9000])
def test_masks_match_the_reference(size):
    """
    In the rows that have one.
    """
    kernel = pytest.importorskip("runtime.kernels.adjust")
    logits = make(3, size)
    rng = torch.Generator().manual_seed(size)
    words = torch.randint(-(2**31), 2**31, (2, -(-size // 32)), generator=rng).int()
    ours, theirs = logits.clone(), logits.cpu().clone()
    rows = torch.tensor([2, 0])
    kernel.apply_masks(ours, rows.int().to(DEVICE), words.to(DEVICE))
    processors.apply_masks(theirs, rows, words)
    assert torch.equal(ours.cpu(), theirs)
    assert torch.equal(ours[1], logits[1])
    assert (ours[0] != logits[0]).any()
