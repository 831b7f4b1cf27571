"""
The kernels' tests on a GPU: `pytest tests/gpu` on a machine with one.
"""

import pytest
import torch

from runtime.kernels import reference
from runtime.kernels.attention.chunked import LONG_TOKENS, attend_lone
from tests.unit.runtime.kernels.test_adjust import *  # noqa: F403
from tests.unit.runtime.kernels.test_kernels import *  # noqa: F403
from tests.unit.runtime.kernels.test_top_k import *  # noqa: F403

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("tokens", [LONG_TOKENS, LONG_TOKENS + 77])
def test_a_lone_chunk_matches_the_reference(tokens):
    """
    Also for lengths that are rounded up, with NaN after the end.
    """
    room = torch.full(
        (tokens + tokens // 8 + 8, 20, 128), float("nan"), device="cuda", dtype=torch.bfloat16
    )
    room[:tokens].normal_()
    q, k, v = room[:tokens].split((16, 2, 2), dim=1)

    actual = attend_lone(q, k, v)

    expected = reference.attend(*(part.float().contiguous() for part in (q, k, v)))
    assert ((actual - expected).norm() / expected.norm()).item() < 0.01
