import pytest

from deploy.versions.matrix import load_matrix


def test_the_loaded_driver_is_one_that_the_row_allows(root, expected):
    """
    The loaded NVIDIA module is new enough for the row, whatever package is installed.
    """
    row = load_matrix().row(expected["row"])
    if not row.needs_gpu:
        pytest.skip("the row needs no driver")
    shown = root.run("cat /sys/module/nvidia/version")
    assert shown.rc == 0, f"no NVIDIA driver is loaded; {row.name} needs {row.driver_min} or later"
    loaded = shown.stdout.strip()
    assert row.allows_driver(loaded), f"{loaded}; {row.name} needs {row.driver_min} or later"


def test_the_loaded_driver_is_that_of_the_fleet_file(root, expected):
    """
    Exactly `driver.version`, where the fleet file pins it.
    """
    pinned = expected["driver_version"]
    if pinned is None:
        pytest.skip("the fleet file pins no driver")
    shown = root.run("cat /sys/module/nvidia/version")
    assert shown.rc == 0, f"no NVIDIA driver is loaded; driver.version is {pinned}"
    assert shown.stdout.strip() == pinned, f"{shown.stdout.strip()}; driver.version is {pinned}"
