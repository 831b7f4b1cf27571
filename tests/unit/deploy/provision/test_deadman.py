"""
The host's own way back as provisioning sees it: units, timer, and the test that has passed.
"""

from dataclasses import replace

import pytest

from deploy.errors import CommandFailed
from deploy.host import layout
from deploy.host.protocol import DeadmanTested, ErrorKind, HostError
from deploy.host.rpc import encode_error, encode_result
from deploy.host.slots import systemd
from deploy.provision import deadman, operations
from deploy.provision.concerns import plan_resources
from deploy.provision.differences import next_steps, steps_to
from deploy.transport.client import HostClient
from tests.unit.deploy.provision.builders import (
    bare,
    find,
    make_facts,
    make_resources,
    make_spec,
    path_like,
)
from tests.unit.deploy.provision.test_operations import RecordingTransport

RESOURCES = make_resources()
GOOD = make_facts(RESOURCES)
UNITS = find(RESOURCES, layout.DEADMAN_TIMER)
MARK = find(RESOURCES, layout.DEADMAN_TESTED)


def test_a_tested_host_needs_nothing():
    """
    Its mark is part of the one look.
    """
    assert steps_to(RESOURCES, GOOD) == ()


def test_a_bare_host_is_tested_last():
    """
    After its units run, in the round of what runs.
    """
    placed = make_facts(RESOURCES, units=bare(RESOURCES).units)
    placed = replace(placed, paths=placed.paths | {layout.DEADMAN_TESTED: None})

    names = [step.resource.name for step in next_steps(RESOURCES, placed)]

    assert names[-2:] == [layout.DEADMAN_TIMER, layout.DEADMAN_TESTED]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"enabled": "disabled"}, "enable slipway-deadman.timer, slipway-deadman-boot.service"),
        ({"active": "inactive"}, "start"),
        ({"stale": True}, "reload"),
        ({"load": "not-found"}, "reload"),
    ],
)
def test_units_that_are_off_are_switched_on(changes, said):
    units = {name: replace(GOOD.units[name], **changes) for name in layout.DEADMAN_UNITS}

    assert said in UNITS.difference(replace(GOOD, units=GOOD.units | units)).change
    assert UNITS.difference(GOOD) is None


def test_the_service_and_the_boot_unit_need_not_run():
    """
    Both end at once, so they are inactive on every host; the service is started by its timer.
    """
    idle = {"active": "inactive", "enabled": "static"}
    units = {
        layout.DEADMAN_SERVICE: replace(GOOD.units[layout.DEADMAN_SERVICE], **idle),
        layout.DEADMAN_BOOT: replace(GOOD.units[layout.DEADMAN_BOOT], active="inactive"),
    }
    assert UNITS.difference(replace(GOOD, units=GOOD.units | units)) is None


def test_a_masked_timer_is_refused_with_its_remedy():
    masked = replace(GOOD.units[layout.DEADMAN_TIMER], load="masked")
    facts = replace(GOOD, units=GOOD.units | {layout.DEADMAN_TIMER: masked})

    command = systemd.unmask_command(layout.DEADMAN_TIMER)
    assert UNITS.refusal(facts).fix == f"on the host: {command}"
    assert UNITS.refusal(GOOD) is None


@pytest.mark.parametrize(
    "found",
    [None, {"sha256": "0" * 64}, {"owner": "slipway"}, {"mode": "0666"}, {"type": "link"}],
)
def test_a_mark_of_another_program_or_of_somebody_else_asks_for_the_test(found):
    path = found and path_like(MARK, **found)
    facts = replace(GOOD, paths=GOOD.paths | {MARK.path: path})

    assert "test the host's own way back" in MARK.difference(facts).change


def test_the_mark_is_of_the_program_and_the_units():
    """
    Another host program asks for another test.
    """
    spec = make_spec()
    other = plan_resources(replace(spec, host_program=b"#!another"))

    assert find(other, layout.DEADMAN_TESTED).mark != MARK.mark
    assert find(plan_resources(spec), layout.DEADMAN_TESTED).mark == MARK.mark


def test_the_units_run_the_host_program_as_the_controller_does():
    """
    Isolated, and by its full path.
    """
    texts = deadman.units()
    command = " ".join(layout.HOST_COMMAND)
    for name, verb in ((layout.DEADMAN_SERVICE, "check"), (layout.DEADMAN_BOOT, "boot")):
        lines = texts[f"{layout.UNITS}/{name}"].splitlines()
        assert f"ExecStart={command} deadman.{verb}" in lines


def apply(resource, answer):
    transport = RecordingTransport(answer)
    operations.apply(
        resource, GOOD, HostClient(transport, actor="provision", sudo=False), notes=None
    )
    return transport.sent


def test_the_test_is_one_call_of_the_host_program():
    [(argv, _)] = apply(MARK, encode_result(DeadmanTested(4.2)))
    assert argv == [*layout.HOST_COMMAND, "deadman.test"]


def test_a_test_that_fails_is_an_error_of_the_host():
    error = HostError(ErrorKind.COMMAND_FAILED, "it does not work", "the timer", "fix")
    with pytest.raises(CommandFailed, match="it does not work"):
        apply(MARK, encode_error(error))


def test_units_are_loaded_enabled_and_their_timer_runs_by_its_present_file():
    assert operations.enabling_command(UNITS) == (
        "systemctl enable --quiet slipway-deadman.timer "
        "slipway-deadman-boot.service && systemctl restart slipway-deadman.timer"
    )
