import re

import pytest

from deploy.host import layout

EXPOSURE_MAX = 2.0


def test_the_unit_is_loaded_as_it_is_on_the_disk(root, expected):
    """
    systemd has read the unit, and its limits are those of the fleet file.
    """
    keys = "LoadState,NeedDaemonReload,MemoryMax,TasksMax,User,Type"
    names = " ".join(layout.unit(slot) for slot in layout.SLOTS)
    blocks = root.check_output(f"systemctl show -p {keys} {names}").strip().split("\n\n")
    assert len(blocks) == len(layout.SLOTS)
    for slot, block in zip(layout.SLOTS, blocks, strict=True):
        assert dict(line.split("=", 1) for line in block.splitlines()) == {
            "LoadState": "loaded",
            "NeedDaemonReload": "no",
            "MemoryMax": str(expected["memory_max"]),
            "TasksMax": str(expected["tasks_max"]),
            "User": layout.slot_user(slot),
            "Type": "notify",
        }


@pytest.mark.parametrize("slot", layout.SLOTS[:1])
def test_the_sandbox_is_tight(root, slot):
    """
    `systemd-analyze security` rates the exposure of the runtime at 2.0 or less.
    """
    shown = root.run(f"systemd-analyze security --no-pager {layout.unit(slot)}").stdout
    rated = re.search(r"Overall exposure level for \S+: ([0-9.]+)", shown)
    assert rated is not None, shown[-200:]
    assert float(rated[1]) <= EXPOSURE_MAX
