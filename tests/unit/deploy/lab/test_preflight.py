from dataclasses import replace
from pathlib import Path

import pytest

from deploy.lab import preflight
from deploy.lab.cgroups import CgroupV2
from deploy.lab.config import LabConfig
from deploy.lab.preflight import MIN_FREE_BYTES, MachineFacts, read_machine, unmet_requirement
from deploy.lab.suites import SUITES, UBUNTU

CONFIG = LabConfig(Path("/lab"), Path("/bases"))
SUITABLE = MachineFacts(
    system="Linux",
    is_root=True,
    has_apt=True,
    namespaces_error=None,
    has_overlayfs=True,
    cgroup_layout=CgroupV2(Path("/sys/fs/cgroup")),
    filesystem="ext2/ext3",
    free_bytes=MIN_FREE_BYTES,
    missing_packages=(),
)


def test_a_suitable_machine_meets_all_requirements():
    assert unmet_requirement(SUITABLE, CONFIG) is None


def test_missing_packages_are_no_error():
    """
    `lab.up` installs them.
    """
    machine = replace(SUITABLE, missing_packages=("debootstrap",))

    assert unmet_requirement(machine, CONFIG) is None


def test_the_keys_of_the_suites_archive_are_required(monkeypatch, tmp_path):
    """
    A Debian machine has no keys of Ubuntu's archive.
    """
    monkeypatch.setattr(preflight.platform, "system", lambda: "Linux")
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 0)
    monkeypatch.setattr(preflight, "_namespaces_error", lambda: None)
    monkeypatch.setattr(preflight.shutil, "which", lambda *_, **__: "/bin/true")
    monkeypatch.setattr(preflight, "filesystem_of", lambda _: "ext2/ext3")
    keyless = replace(UBUNTU, keyring=tmp_path / "none.gpg")
    monkeypatch.setitem(SUITES, "noble", ("Ubuntu 24.04", keyless))

    machine = read_machine(LabConfig(tmp_path, tmp_path, suite="noble"))

    assert machine.missing_packages == ("ubuntu-keyring",)


@pytest.mark.parametrize(
    ("change", "what", "why"),
    [
        ({"system": "Darwin"}, "needs Linux", "Darwin"),
        ({"is_root": False}, "needs root", "not root"),
        ({"has_apt": False}, "needs Debian", "apt-get or dpkg"),
        ({"namespaces_error": "unshare: EPERM"}, "create namespaces", "unshare: EPERM"),
        ({"has_overlayfs": False}, "needs overlayfs", "/proc/filesystems"),
        ({"cgroup_layout": None}, "needs cgroups", "/sys/fs/cgroup"),
        ({"filesystem": "overlayfs"}, "keep its disks in /lab", "overlayfs"),
        ({"free_bytes": 2**30}, "disk space for the lab in /lab", "1.0GiB are free, 3.0GiB"),
    ],
)
def test_the_error_names_the_requirement_that_is_not_met(change, what, why):
    """
    Each requirement has its own error, with what was observed and what to do.
    """
    error = unmet_requirement(replace(SUITABLE, **change), CONFIG)

    assert error is not None
    assert what in error.what
    assert why in error.why
    assert error.fix


def test_the_operating_system_is_checked_first():
    """
    A Mac fails other requirements too; only the first matters to its user.
    """
    mac = replace(SUITABLE, system="Darwin", is_root=False, has_overlayfs=False, cgroup_layout=None)

    error = unmet_requirement(mac, CONFIG)

    assert error is not None
    assert "Linux" in error.what
