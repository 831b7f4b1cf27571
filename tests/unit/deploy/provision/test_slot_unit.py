"""
A slot that should run and does not is started; no other one is touched.
"""

import subprocess
from dataclasses import replace

import pytest

from deploy.host import layout
from deploy.host.protocol import PathFacts, UnitFacts
from deploy.host.slots import systemd
from deploy.provision import operations
from deploy.provision.differences import next_steps, refusal_of
from tests.unit.deploy.provision.builders import find, make_facts, make_resources

RESOURCES = make_resources()
UNIT, SOCKET = layout.unit("blue"), layout.runtime_socket("blue")
LINK = PathFacts(type="link", mode="0777", owner="root", group="root", size=9)


def facts_with(socket=LINK, **changes):
    fields = {"load": "loaded", "active": "active", "enabled": "enabled", "stale": False}
    good = make_facts(RESOURCES)
    units = good.units | {UNIT: UnitFacts(**fields | changes)}
    return replace(good, units=units, paths=good.paths | {SOCKET: socket})


def changes_of(facts):
    return [(step.resource.name, step.difference.change) for step in next_steps(RESOURCES, facts)]


def test_a_serving_slot_that_systemd_has_given_up_on_is_started():
    given_up = facts_with(active="failed", socket=None)
    assert changes_of(given_up) == [(UNIT, "start: systemd has given up on it")]


def test_a_serving_slot_that_was_stopped_by_hand_is_started():
    """
    A release disables what it stops.
    """
    stopped = facts_with(active="inactive", socket=None)
    assert changes_of(stopped) == [(UNIT, "start: it is enabled and does not run")]


def test_a_slot_whose_socket_was_removed_is_restarted():
    """
    HAProxy could never reach it again.
    """
    assert changes_of(facts_with(socket=None)) == [(UNIT, "restart: its socket was removed")]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"active": "activating", "socket": None},
        {"active": "failed", "enabled": "disabled", "socket": None},
        {"active": "inactive", "enabled": "disabled", "socket": None},
    ],
)
def test_no_other_slot_is_touched(changes):
    """
    One that runs, starts, or that a release has stopped: provisioning never changes which release
    serves.
    """
    assert changes_of(facts_with(**changes)) == []


def test_a_masked_unit_is_named_with_its_remedy():
    refusal = refusal_of(RESOURCES, facts_with(load="masked", active="failed"))
    assert refusal.error == "PreconditionError"
    assert refusal.fix == f"on the host: {systemd.unmask_command(UNIT)}"


@pytest.mark.parametrize("status", [0, 1])
def test_a_start_that_fails_shows_the_log(tmp_path, status):
    """
    The words of the runtime, where systemd does not start it; nothing where it does.
    """
    for program, text in (
        ("systemctl", f'[ "$1" != restart ] || exit {status}'),
        ("journalctl", "echo no such tensor"),
    ):
        path = tmp_path / program
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    command = operations.slot_command(find(RESOURCES, UNIT))
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == status
    assert ("no such tensor" in done.stderr) is bool(status)
    assert (UNIT in done.stderr) is bool(status)
