"""
slipway's directories on another disk, by bind mounts.
"""

import os
import subprocess
from dataclasses import replace

import pytest

from deploy.host import layout
from deploy.host.journal import Journal
from deploy.host.journaled import intent_of
from deploy.host.layout import Layout
from deploy.host.lease import Leases
from deploy.host.protocol import Call, UnitFacts
from deploy.host.system import System
from deploy.provision import data_disk
from deploy.provision.bind_mount import BindMount
from deploy.provision.differences import refusal_of, steps_to
from deploy.provision.requirements import DiskSpace
from deploy.provision.resources import Directory, Venv
from tests.unit.deploy.provision.builders import bare, make_facts, make_resources, path_like

ROOT = "/data/slipway"
RESOURCES = make_resources(storage_root=ROOT)
GOOD = make_facts(RESOURCES)
UNIT = "opt-slipway.mount"
UNIT_FILE = f"{layout.UNITS}/{UNIT}"


def test_the_mounts_come_before_the_directories_below_them():
    """
    What is placed first would lie on the small disk, and be hidden.
    """
    placed = [resource.name for resource in RESOURCES.placed]
    mounts = [placed.index(unit) for _, unit in data_disk.MOUNTS.values()]
    below = [placed.index(r.path) for r in RESOURCES.placed if isinstance(r, Directory)
             and r.path.startswith((layout.OPT, layout.STATE))]  # fmt: skip
    assert placed.index(ROOT) < min(mounts)
    assert max(mounts) < min(below)
    assert placed.index("packages") < min(mounts)


def test_a_fleet_without_it_mounts_nothing():
    """
    Negative control: nothing differs from the fleet that it was.
    """
    plain = make_resources()
    assert not any(isinstance(resource, BindMount) for resource in plain.placed)
    assert len(plain.requirements) == len(RESOURCES.requirements) - 1  # one disk for two


def test_room_is_asked_of_the_data_disk():
    """
    A small disk under /opt refuses nothing.
    """
    room = {r.path for r in RESOURCES.requirements if isinstance(r, DiskSpace)}
    room |= {resource.disk for resource in RESOURCES.placed if isinstance(resource, Venv)}
    assert room == {ROOT}


def test_a_bare_host_gets_them_and_one_that_has_them_nothing():
    changes = {
        step.resource.name: step.difference.change for step in steps_to(RESOURCES, bare(RESOURCES))
    }
    assert changes[UNIT] == "reload, enable, mount /opt/slipway"
    assert refusal_of(RESOURCES, bare(RESOURCES)) is None
    assert steps_to(RESOURCES, GOOD) == ()
    assert refusal_of(RESOURCES, GOOD) is None


@pytest.mark.parametrize(
    ("state", "change"),
    [
        ({"active": "inactive"}, "mount /opt/slipway"),
        ({"active": "failed"}, "mount /opt/slipway"),
        ({"enabled": "disabled"}, "enable"),
        ({"stale": True}, "reload"),
    ],
)
def test_a_mount_that_is_gone_is_made_again(state, change):
    """
    Also one that a boot would not make.
    """
    unit = replace(
        UnitFacts(load="loaded", active="active", enabled="enabled", stale=False), **state
    )
    facts = replace(GOOD, units=GOOD.units | {UNIT: unit})
    assert [s.difference.change for s in steps_to(RESOURCES, facts)] == [change]


def with_mount(active="active", listing=(), unit_file=None, **paths):
    unit = UnitFacts(load="loaded", active=active, enabled="enabled", stale=False)
    return replace(
        GOOD,
        units=GOOD.units | {UNIT: unit},
        listings=GOOD.listings | {layout.OPT: dict.fromkeys(listing, 1)},
        paths=GOOD.paths | {UNIT_FILE: unit_file} | paths,
    )


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (with_mount("inactive", ["venvs"]), "/opt/slipway has files already"),
        (with_mount(), "/opt/slipway is a mount already, and not one of slipway's"),
        (
            with_mount(unit_file=path_like(None, text="[Mount]\nWhat=/old/opt\n", mode="0644")),
            "/opt/slipway is bound to another directory than /data/slipway/opt",
        ),
    ],
)
def test_data_is_neither_hidden_nor_moved(facts, why):
    """
    The host is refused before it is changed; the page has the commands.
    """
    refusal = refusal_of(RESOURCES, facts)
    assert why in refusal.why
    assert "docs/reference/provision.md" in refusal.fix


OWN_UNIT = path_like(None, text="# other\nWhat=/data/slipway/opt\n", mode="0644")


@pytest.mark.parametrize("unit", [OWN_UNIT, path_like(None, sha256="1", mode="0644")])
def test_a_data_disk_that_is_away_is_not_replaced_by_the_root_disk(unit):
    """
    Its directory was there when the unit was placed.
    """
    refusal = refusal_of(RESOURCES, with_mount("inactive", [], unit, **{f"{ROOT}/opt": None}))
    assert f"bound to {ROOT}/opt, which is not there" in refusal.why
    assert "mount the data disk first" in refusal.fix


@pytest.mark.parametrize(
    "facts",
    [
        with_mount("inactive"),
        with_mount("inactive", [], OWN_UNIT),
        with_mount("inactive", [], None, **{f"{ROOT}/opt": None}),
        with_mount(unit_file=path_like(None, text="# other\nWhat=/data/slipway/opt\n")),
    ],
)
def test_an_empty_directory_and_an_edited_unit_are_no_data(facts):
    """
    Negative control.
    """
    assert refusal_of(RESOURCES, facts) is None


LEFT_BY_A_LEASE = ["lock", "lease.json", "lease.json.new", ".spare-lease.json", "journal.jsonl"]
LIB_UNIT = "var-lib-slipway.mount"


@pytest.mark.parametrize(
    ("names", "is_refused"),
    [(LEFT_BY_A_LEASE, False), ([*LEFT_BY_A_LEASE, "models"], True), (["journal.d"], True)],
)
def test_the_lease_of_a_run_is_no_data(names, is_refused):
    """
    Or a host that was refused once could never be provisioned.
    """
    facts = bare(RESOURCES)
    facts = replace(
        facts, listings=facts.listings | {layout.STATE: dict.fromkeys(names, 1), layout.OPT: {}}
    )
    assert (refusal_of(RESOURCES, facts) is not None) == is_refused


def test_under_opt_the_same_names_are_data():
    """
    Negative control: no lease is there.
    """
    assert refusal_of(RESOURCES, with_mount("inactive", ["lock"])) is not None


class Disk:
    """
    A host whose systemd mounts by a symlink, and says whether the lock was held meanwhile.
    """

    def __init__(self, root):
        self.root, self.what = root, root / "data/slipway/lib"
        self.state = root / layout.STATE.lstrip("/")
        self.what.mkdir(parents=True)
        self.state.mkdir(parents=True)
        boot_id = root / layout.BOOT_ID.lstrip("/")
        boot_id.parent.mkdir(parents=True)
        boot_id.write_text("boot")
        self.system = System(Layout(str(root)))
        self.leases = Leases(self.system)

    def take(self):
        fence = self.leases.take("ann@desk:1", "provision", 30.0).fence
        Journal(self.system).append(intent_of(Call(fence, "provision", "ann"), "lease.acquire", {}))
        (self.state / "lock").touch()
        return fence

    def mount(self):
        systemctl = self.root / "bin/systemctl"
        systemctl.parent.mkdir(exist_ok=True)
        systemctl.write_text(
            f"#!/bin/sh\n[ $1 = enable ] || exit 0\n[ -L {self.state} ] && exit 0\n"
            f"! flock -n {self.state}/lock true || exit 9\n"
            f"mv {self.state} {self.state}.hidden && ln -s {self.what} {self.state}\n"
        )
        systemctl.chmod(0o755)
        [resource] = [r for r in RESOURCES.placed if isinstance(r, BindMount)
                      and r.unit == LIB_UNIT]  # fmt: skip
        command = resource.command.replace(layout.STATE, str(self.state))
        env = os.environ | {"PATH": f"{systemctl.parent}:{os.environ['PATH']}"}
        command = command.replace("/data/slipway/lib", str(self.what))
        return subprocess.run(["sh", "-c", command], env=env, check=False).returncode


def test_the_lease_goes_on_under_the_mount(tmp_path):
    """
    Also where the mount is there already.
    """
    disk = Disk(tmp_path)
    fence = disk.take()
    for _ in range(2):
        assert disk.mount() == 0
        assert disk.state.is_symlink()
        assert disk.leases.renew(disk.leases.check(fence), 30.0).fence == fence
    assert [record.fence for record in Journal(disk.system).read()[0]] == [fence]
    disk.leases.release(fence)
    assert disk.leases.take("bob@desk:2", "provision", 30.0).fence == fence + 1


def test_a_journal_on_the_disk_stays(tmp_path):
    """
    Of a host whose mount was gone: only the lease of this run is new there.
    """
    disk = Disk(tmp_path)
    (disk.what / "journal.jsonl").write_text("kept")
    (disk.what / "lease.json").write_text("old")
    fence = disk.take()
    assert disk.mount() == 0
    assert (disk.state / "journal.jsonl").read_text() == "kept"
    assert disk.leases.in_force().fence == fence


def test_without_a_lease_it_is_mounted_too(tmp_path):
    """
    Nothing is copied.
    """
    disk = Disk(tmp_path)
    assert disk.mount() == 0
    assert list(disk.what.iterdir()) == []


def test_units_are_named_as_systemd_requires():
    """
    By the path that they mount.
    """
    for where, (_, unit) in data_disk.MOUNTS.items():
        shown = subprocess.run(
            ["systemd-escape", "--path", "--suffix=mount", where],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert shown.stdout.strip() == unit
