"""
slipway's directories on another disk, by bind mounts.
"""

import subprocess
from dataclasses import replace

import pytest

from deploy.host import layout
from deploy.host.protocol import UnitFacts
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


def with_mount(active="active", listing=(), unit_file=None):
    unit = UnitFacts(load="loaded", active=active, enabled="enabled", stale=False)
    return replace(
        GOOD,
        units=GOOD.units | {UNIT: unit},
        listings=GOOD.listings | {layout.OPT: dict.fromkeys(listing, 1)},
        paths=GOOD.paths | {UNIT_FILE: unit_file},
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


@pytest.mark.parametrize(
    "facts",
    [
        with_mount("inactive"),
        with_mount(unit_file=path_like(None, text="# other\nWhat=/data/slipway/opt\n")),
    ],
)
def test_an_empty_directory_and_an_edited_unit_are_no_data(facts):
    """
    Negative control.
    """
    assert refusal_of(RESOURCES, facts) is None


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
