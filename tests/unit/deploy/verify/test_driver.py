"""
The assertion about the driver, with fake hosts: the lab has no GPU.
"""

from types import SimpleNamespace

import pytest

from tests.testinfra import test_driver


def assert_driver(row, version):
    """
    Run the assertion on a host of *row*; without *version* no driver is loaded.
    """
    shown = SimpleNamespace(rc=int(version is None), stdout=f"{version}\n")
    host = SimpleNamespace(run={"cat /sys/module/nvidia/version": shown}.__getitem__)
    test_driver.test_the_loaded_driver_is_one_that_the_row_allows(host, {"row": row})


@pytest.mark.parametrize("version", ["535", "535.309.01", "580.159.04"])
def test_a_driver_that_the_row_allows_passes(version):
    """
    The oldest one of the row, and any later one.
    """
    assert_driver("torch-2.3-cu121", version)


@pytest.mark.parametrize("version", [None, "530.30.02", "99"])
def test_any_other_driver_would_be_noticed(version):
    """
    Negative control: no driver, or an older one, fails with the row's requirement.
    """
    with pytest.raises(AssertionError, match="needs 535 or later"):
        assert_driver("torch-2.3-cu121", version)


def test_a_cpu_row_skips_the_driver_assertion():
    """
    With a reason.
    """
    with pytest.raises(pytest.skip.Exception, match="needs no driver"):
        assert_driver("torch-2.13-cpu", None)
