"""
The kernels' tests again, where they run on a GPU: `pytest tests/gpu` on a machine that has one.
"""

import pytest
import torch

from tests.unit.runtime.kernels.test_kernels import *  # noqa: F403

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
