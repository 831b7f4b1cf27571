from pathlib import Path

import pytest

from deploy.lab.cgroups import CgroupV1, CgroupV2, detect, process_ids, remove
from deploy.lab.config import LabConfig

CONFIG = LabConfig(Path("/lab"), Path("/bases"))


def make_v1(root, names=("systemd", "memory", "pids", "freezer", "cpuacct")):
    for name in names:
        (root / name).mkdir()
        (root / name / "cgroup.procs").touch()
    if "cpuacct" in names:
        (root / "cpu").symlink_to(root / "cpuacct")


def test_v1_is_detected_by_its_hierarchies(tmp_path):
    """
    A hierarchy with two names counts once.
    """
    make_v1(tmp_path)

    layout = detect(tmp_path)

    assert isinstance(layout, CgroupV1)
    assert len(layout.hierarchies) == 5


@pytest.mark.parametrize("missing", ["memory", "pids", "freezer"])
def test_v1_without_a_controller_is_not_enough(tmp_path, missing):
    """
    Without it, limits of units would have no effect, and nothing would report that.
    """
    names = {"systemd", "memory", "pids", "freezer"} - {missing}
    make_v1(tmp_path, tuple(names))

    assert detect(tmp_path) is None


def test_v2_needs_its_controllers(tmp_path):
    """
    A v2 tree without memory is not enough.
    """
    (tmp_path / "cgroup.controllers").write_text("cpu io pids\n")

    assert detect(tmp_path) is None


@pytest.mark.parametrize(("systemd", "is_v2"), [(0, False), (257, False), (258, True), (259, True)])
def test_a_systemd_without_v1_gets_v2_on_a_machine_with_v1(tmp_path, systemd, is_v2):
    """
    It would refuse to boot.
    """
    make_v1(tmp_path)

    variables = detect(tmp_path).nspawn_variables(systemd)

    assert variables == ({"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"} if is_v2 else {})
    assert CgroupV2(tmp_path).nspawn_variables(systemd) == {}


def make_host_v1(root):
    make_v1(root)
    for name in ("freezer", "memory"):
        (root / name / CONFIG.tag / "n1").mkdir(parents=True)
    (root / "freezer" / CONFIG.tag / "n1/freezer.state").write_text("THAWED\n")
    folder = root / "memory" / CONFIG.tag / "n1"
    (folder / "memory.usage_in_bytes").write_text("1000\n")
    (folder / "memory.stat").write_text("cache 900\ntotal_inactive_file 300\n")
    return detect(root)


def test_v1_freezes_thaws_and_measures_memory(tmp_path):
    """
    FREEZING counts as frozen; reclaimable page cache does not count as memory.
    """
    layout = make_host_v1(tmp_path)
    state = tmp_path / "freezer" / CONFIG.tag / "n1/freezer.state"

    assert not layout.is_frozen(CONFIG, "n1")
    layout.set_frozen(CONFIG, "n1", frozen=True)
    assert state.read_text() == "FROZEN"
    state.write_text("FREEZING\n")
    assert layout.is_frozen(CONFIG, "n1")
    layout.set_frozen(CONFIG, "n1", frozen=False)
    assert state.read_text() == "THAWED"
    assert layout.memory_bytes(CONFIG, "n1") == 700


def test_v2_freezes_thaws_and_measures_memory(tmp_path):
    """
    In the host's unit of the machine's systemd.
    """
    layout = CgroupV2(tmp_path)
    folder = tmp_path / "system.slice" / CONFIG.unit("n1")
    folder.mkdir(parents=True)
    (folder / "cgroup.freeze").write_text("0\n")
    (folder / "memory.current").write_text("1000\n")
    (folder / "memory.stat").write_text("anon 500\ninactive_file 300\n")

    layout.set_frozen(CONFIG, "n1", frozen=True)

    assert layout.is_frozen(CONFIG, "n1")
    assert layout.memory_bytes(CONFIG, "n1") == 700
    assert layout.folders(CONFIG) == (folder,)


@pytest.mark.parametrize("make_layout", [lambda root: CgroupV2(root), make_host_v1])
def test_a_host_without_a_cgroup_is_not_frozen(tmp_path, make_layout):
    """
    Reading its state and thawing it are no errors: `down` does both.
    """
    layout = make_layout(tmp_path)

    layout.set_frozen(CONFIG, "n7", frozen=False)

    assert not layout.is_frozen(CONFIG, "n7")
    assert layout.memory_bytes(CONFIG, "n7") == 0


def test_processes_are_listed_at_every_depth(tmp_path):
    """
    Units inside a host have cgroups below the host's.
    """
    (tmp_path / "n1/payload").mkdir(parents=True)
    (tmp_path / "n1/cgroup.procs").write_text("7\n")
    (tmp_path / "n1/payload/cgroup.procs").write_text("8\n9\n")

    assert process_ids((tmp_path,)) == {7, 8, 9}


def test_inner_cgroups_are_removed_first(tmp_path):
    """
    The kernel refuses to remove a cgroup that contains another one.
    """
    make_v1(tmp_path)
    layout = detect(tmp_path)
    for hierarchy in layout.hierarchies:
        (hierarchy / CONFIG.tag / "n1/payload/init.scope").mkdir(parents=True)

    remove(CONFIG, layout)

    assert layout.folders(CONFIG) == ()
    assert all(hierarchy.exists() for hierarchy in layout.hierarchies)
