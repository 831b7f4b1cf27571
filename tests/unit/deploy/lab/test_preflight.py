from dataclasses import replace
from pathlib import Path

import pytest

from deploy.lab.cgroups import V2
from deploy.lab.config import LabConfig
from deploy.lab.preflight import MIN_FREE_BYTES, Machine, first_objection

CONFIG = LabConfig(Path("/lab"), Path("/bases"))
GOOD = Machine(
    system="Linux",
    is_root=True,
    has_apt=True,
    namespaces_refusal=None,
    has_overlayfs=True,
    cgroup_layout=V2(Path("/sys/fs/cgroup")),
    filesystem="ext2/ext3",
    free_bytes=MIN_FREE_BYTES,
    lacking=(),
)


def test_a_good_machine_has_no_objection():
    assert first_objection(GOOD, CONFIG) is None


def test_missing_packages_are_no_objection():
    """
    They are installed.
    """
    assert first_objection(replace(GOOD, lacking=("debootstrap",)), CONFIG) is None


@pytest.mark.parametrize(
    ("change", "named", "why"),
    [
        ({"system": "Darwin"}, "needs Linux", "Darwin"),
        ({"is_root": False}, "needs root", "kernel's to give"),
        ({"has_apt": False}, "needs a Debian-like machine", "apt-get and dpkg"),
        ({"namespaces_refusal": "unshare: EPERM"}, "needs namespaces", "unshare: EPERM"),
        ({"has_overlayfs": False}, "needs overlayfs", "/proc/filesystems"),
        ({"cgroup_layout": None}, "needs cgroups", "/sys/fs/cgroup"),
        ({"filesystem": "overlayfs"}, "can't lie in /lab", "overlayfs"),
        ({"free_bytes": 2**30}, "disk is too full: /lab", "1.0GiB are free; it needs 3.0GiB"),
    ],
)
def test_the_condition_that_is_missing_is_named(change, named, why):
    """
    One each, with what was seen and what to do.
    """
    objection = first_objection(replace(GOOD, **change), CONFIG)

    assert objection is not None
    assert named in objection.what
    assert why in objection.why
    assert objection.fix


def test_the_system_is_named_before_what_follows_from_it():
    """
    A Mac has no root question and no overlayfs.
    """
    mac = replace(GOOD, system="Darwin", is_root=False, has_overlayfs=False, cgroup_layout=None)

    objection = first_objection(mac, CONFIG)

    assert objection is not None
    assert "Linux" in objection.what
