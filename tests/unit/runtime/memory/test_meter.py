import torch

from tests.unit.runtime.memory.meter import Meter


def test_freed_memory_is_not_counted_and_the_peak_stays():
    """
    Views take no memory, and earlier tensors are not counted.
    """
    before = torch.empty(1000, device="meta")
    with Meter() as meter:
        one = before * 2
        half = one[:500]
        assert (meter.live, meter.peak) == (4000, 4000)
        two = half.clone()
        assert (meter.live, meter.peak) == (6000, 6000)
        del one, half
        assert (meter.live, meter.peak) == (2000, 6000)
        before.add_(1)
        del two
    assert (meter.live, meter.peak) == (0, 6000)
