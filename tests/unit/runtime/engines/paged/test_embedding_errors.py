"""
Errors of the device while texts are embedded.
"""

import pytest
import torch

from runtime.engines.paged.embedding import embed_with_encoder
from runtime.engines.paged.step import DeviceLost
from runtime.models.pooling import Pooling


class Broken:
    device = torch.device("cpu")

    def __init__(self, error):
        self._error = error

    def __call__(self, tokens, mask):
        raise self._error


def test_a_lost_device_ends_the_engine():
    """
    It is no fault of a text: every text after it would fail too.
    """
    lost = embed_with_encoder(Broken(torch.AcceleratorError("illegal address")), Pooling("mean"))
    with pytest.raises(DeviceLost, match="illegal address"):
        lost([[1]])


def test_another_error_is_that_of_the_text():
    """
    The control.
    """
    failing = embed_with_encoder(Broken(ValueError("bad")), Pooling("mean"))
    with pytest.raises(ValueError, match="bad"):
        failing([[1]])
