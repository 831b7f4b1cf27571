import pytest

from deploy.host import layout
from deploy.host.deadman.self_test import PATHS, mark_of_hashes


def test_the_timer_runs_and_starts_at_boot(root):
    """
    The check of the host's own way back comes every 5 seconds.
    """
    shown = root.run(
        f"systemctl is-enabled {layout.DEADMAN_TIMER}; systemctl is-active {layout.DEADMAN_TIMER}"
    ).stdout.split()
    assert shown == ["enabled", "active"]


def test_a_reboot_is_met_before_haproxy_and_the_slots(root):
    """
    The unit of the boot is enabled, and ordered before all that serves.
    """
    shown = root.check_output(
        f"systemctl show -p UnitFileState,Before --value {layout.DEADMAN_BOOT}"
    )
    words = shown.split()
    assert "enabled" in words
    served_by = {layout.HAPROXY_UNIT, *(layout.unit(slot) for slot in layout.SLOTS)}
    assert served_by <= set(words)


def test_it_was_tested_with_the_present_program_and_units(root):
    """
    The mark of the test has their hash.
    """
    # Hashed on the host: the program is not text, which is what a command's output is read as.
    hashes = {path: root.file(path).sha256sum for path in PATHS}
    assert root.file(layout.DEADMAN_TESTED).content == mark_of_hashes(hashes)


@pytest.mark.parametrize("path", [layout.DEADMAN_TEST, layout.DEADMAN_FIRED])
def test_no_test_was_left_half_done(root, path):
    """
    A test that waits for its answer is not a passed one.
    """
    assert not root.file(path).exists
