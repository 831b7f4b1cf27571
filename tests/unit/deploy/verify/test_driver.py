"""
The assertion about the driver, with fake hosts: the lab has no GPU.
"""

from types import SimpleNamespace

import pytest

from deploy.verify.assertions import SUITE
from deploy.verify.run import expectations
from tests.testinfra import test_driver
from tests.unit.deploy.inventory.builders import make_fleet


def make_host(version):
    shown = SimpleNamespace(rc=int(version is None), stdout=f"{version}\n")
    return SimpleNamespace(run={"cat /sys/module/nvidia/version": shown}.__getitem__)


def assert_driver(row, version):
    """
    Run the assertion on a host of *row*; without *version* no driver is loaded.
    """
    host = make_host(version)
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


@pytest.mark.parametrize("version", [None, "580.159.04", "580.178.041", "580.178"])
def test_another_driver_than_the_fleet_file_pins_would_be_noticed(version):
    """
    Also one that the row allows, such as that of a host that was not rebooted.
    """
    check = test_driver.test_the_loaded_driver_is_that_of_the_fleet_file
    pinned = {"driver_version": "580.178.04"}
    with pytest.raises(AssertionError, match=r"driver\.version is 580\.178\.04"):
        check(make_host(version), pinned)
    check(make_host("580.178.04"), pinned)
    with pytest.raises(pytest.skip.Exception, match="pins no driver"):
        check(make_host(version), {"driver_version": None})


@pytest.mark.parametrize(
    ("row", "driver", "pinned"),
    [
        ("torch-2.13-cu130", {"driver.version": "580.178.04"}, "580.178.04"),
        ("torch-2.13-cu130", {}, None),
        ("torch-2.13-cpu", {"service.device": "cpu"}, None),
    ],
)
def test_a_pinned_driver_implies_its_assertion(tmp_path, row, driver, pinned):
    """
    A host of a row without GPUs gets none.
    """
    fleet = make_fleet(tmp_path, {"row": row, **driver})
    names = {
        "test_the_loaded_driver_is_that_of_the_fleet_file",
        "test_the_packages_of_the_driver_are_complete_and_on_hold",
    }
    for expected in expectations(fleet).values():
        assert expected["driver_version"] == pinned
        assert names & set(SUITE.implied(expected)) == (names if pinned is not None else set())


PACKAGES = """\
nvidia-graphics-drivers\thi \tlibcuda1\t535.309.01-0+deb12u1
nvidia-graphics-drivers\thi \tnvidia-kernel-dkms\t535.309.01-0+deb12u1
nvidia-graphics-drivers\trc \tnvidia-kernel-support\t525.147.05-4~deb12u1
linux-signed-amd64\thi \tlinux-image-amd64\t6.1.192-2
linux-signed-amd64\tii \tlinux-image-6.1.0-56-amd64\t6.1.192-2
coreutils\tii \tcoreutils\t9.1-1
"""


def assert_packages(shown):
    host = SimpleNamespace(check_output=lambda command: shown)
    expected = {"driver_version": "535.309.01"}
    test_driver.test_the_packages_of_the_driver_are_complete_and_on_hold(host, expected)


def test_a_pinned_driver_on_hold_passes():
    """
    A removed package counts for nothing, and neither does an image that no metapackage replaces.
    """
    assert_packages(PACKAGES)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("hi \tlibcuda1", "ii \tlibcuda1", "not on hold"),
        ("hi \tlinux-image-amd64", "ii \tlinux-image-amd64", "not on hold"),
        ("hi \tnvidia-kernel-dkms", "hF \tnvidia-kernel-dkms", "not complete"),
        ("nvidia-graphics-drivers\thi", "other\thi", "no package of a driver is installed"),
    ],
)
def test_a_package_that_an_upgrade_changes_would_be_noticed(old, new, why):
    """
    Negative control: a lost hold, of the kernel too, and an interrupted dpkg.
    """
    with pytest.raises(AssertionError, match=why):
        assert_packages(PACKAGES.replace(old, new))


def test_packages_of_a_driver_that_is_not_pinned_are_not_compared():
    check = test_driver.test_the_packages_of_the_driver_are_complete_and_on_hold
    with pytest.raises(pytest.skip.Exception, match="pins no driver"):
        check(SimpleNamespace(), {"driver_version": None})


@pytest.mark.parametrize("shown", ["disabled\nactive\n", "enabled\nfailed\n", "masked\ninactive\n"])
def test_a_unit_of_the_gpus_that_does_not_run_would_be_noticed(shown):
    """
    It has run since the boot, and runs at the next one.
    """
    check = test_driver.test_the_state_of_the_gpus_is_set_at_boot
    host = SimpleNamespace(run=lambda command: SimpleNamespace(rc=3, stdout=shown))
    with pytest.raises(AssertionError, match=r"slipway-gpu\.service"):
        check(host, {"row": "torch-2.3-cu121"})
    good = SimpleNamespace(run=lambda command: SimpleNamespace(rc=0, stdout="enabled\nactive\n"))
    check(good, {"row": "torch-2.3-cu121"})
    with pytest.raises(pytest.skip.Exception, match="needs no driver"):
        check(host, {"row": "torch-2.13-cpu"})


@pytest.mark.parametrize(
    ("rc", "mark", "why"),
    [
        (0, "", "not compared on the GPUs: .*; inv provision compares it"),
        (
            0,
            "7a9f-boot 0 2\n",
            "on GPUs 0, 2, which had no free memory: .*stop 'slipway-runtime@.*truncate -s 0",
        ),
        (0, "7a9f-boot differed\n", "differed from the CPU's .*: journalctl -u slipway-torch"),
        (1, "", None),  # no mark, or no driver is loaded
    ],
)
def test_a_torch_that_was_not_compared_would_be_noticed(rc, mark, why):
    """
    Only provisioning reads the mark otherwise.
    """
    check = test_driver.test_torch_was_compared_on_all_gpus
    commands = []

    def run(command):
        commands.append(command)
        return SimpleNamespace(rc=rc, stdout=mark)

    expected = {"row": "torch-2.3-cu121", "lock": "d" * 64}
    if why is None:
        check(SimpleNamespace(run=run), expected)
    else:
        with pytest.raises(AssertionError, match=why):
            check(SimpleNamespace(run=run), expected)
    path = f"/opt/slipway/venvs/{'d' * 64}/.uncompared"
    assert commands == [f"[ -e /sys/module/nvidia/version ] && cat {path}"]
    with pytest.raises(pytest.skip.Exception, match="needs no driver"):
        check(SimpleNamespace(run=run), {"row": "torch-2.13-cpu"})
