import pytest

from deploy.host import layout
from deploy.host.gpu_facts import COLUMNS, parse_packages
from deploy.host.torch_mark import DIFFERED
from deploy.host.tree import UNCOMPARED
from deploy.provision.driver.gpu_state import UNIT
from deploy.provision.driver.plan import is_driver, is_ours
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


def test_the_packages_of_the_driver_are_complete_and_on_hold(root, expected):
    """
    No upgrade changes a driver that the fleet file pins, or the kernel that it was built for.
    """
    if expected["driver_version"] is None:
        pytest.skip("the fleet file pins no driver")
    shown = root.check_output(f"dpkg-query -W -f '{COLUMNS}'")
    packages = [one for one in parse_packages(shown) if is_ours(one)]
    assert any(map(is_driver, packages)), "no package of a driver is installed"
    assert [one.package for one in packages if not one.complete] == [], "not complete"
    assert [one.package for one in packages if not one.held] == [], "not on hold"


def test_torch_was_compared_on_all_gpus(root, expected):
    """
    Each GPU computed what the CPU computes, with the torch of the row, once the driver was loaded.
    """
    if not load_matrix().row(expected["row"]).needs_gpu:
        pytest.skip("the row needs no driver")
    mark = f"{layout.VENVS}/{expected['lock']}/{UNCOMPARED}"
    shown = root.run(f"[ -e /sys/module/nvidia/version ] && cat {mark}")
    if shown.rc != 0:
        return
    full = shown.stdout.split()[1:]
    assert full, f"torch was not compared on the GPUs: {mark} is there; inv provision compares it"
    assert full != [DIFFERED], (
        "a result of torch on a GPU differed from the CPU's before slots started: journalctl -u "
        f"{layout.TORCH_UNIT}; {mark} says so until inv provision has compared it again"
    )
    raise AssertionError(
        f"torch was not compared on GPUs {', '.join(full)}, which had no free memory: {mark} has "
        "them; while other hosts serve, on this one: systemctl stop 'slipway-runtime@*'; "
        f"truncate -s 0 {mark}; then inv provision compares it and starts the slots again"
    )


def test_the_state_of_the_gpus_is_set_at_boot(root, expected):
    """
    The unit that loads nvidia-uvm and applies the settings of the fleet file has run, and will.
    """
    if not load_matrix().row(expected["row"]).needs_gpu:
        pytest.skip("the row needs no driver")
    shown = root.run(f"systemctl is-enabled {UNIT}; systemctl is-active {UNIT}")
    assert shown.stdout.split() == ["enabled", "active"], f"{UNIT}: {shown.stdout.split()}"
