"""
What should run and does not is brought back; nothing else is touched.
"""

import shutil

import pytest

from deploy.host import layout
from deploy.host.layout import HAPROXY_UNIT, SLOTS
from deploy.host.protocol import Revive, SlotStart, TrafficSet
from tests.local_host import serve
from tests.unit.deploy.host.fakes import BUNDLE, OTHER


@pytest.fixture
def serving(leased):
    serve(leased.system, BUNDLE)
    # As every change of weights does: HAProxy reads it at its start.
    leased.call(TrafficSet({"blue": 100}))
    leased.system.calls.clear()
    return leased


def changes(host):
    """
    Return the command lines that change something, without options.
    """
    calls = [[word for word in argv if not word.startswith("--")] for argv in host.system.calls]
    return [argv for argv in calls if argv[:2] != ["systemctl", "show"]]


def test_a_healthy_host_is_not_touched(serving):
    """
    Neither HAProxy nor a slot is restarted.
    """
    assert serving.call(Revive()).done == ()
    assert changes(serving) == []


def test_a_host_without_any_release_is_no_error(leased):
    assert leased.call(Revive()).done == ()


def test_a_stopped_haproxy_is_started_with_the_weights_of_before(serving):
    serving.system.proxy.is_running = False
    serving.system.units[HAPROXY_UNIT].stop()

    assert serving.call(Revive()).done == ("HAProxy started",)

    assert serving.status().slots["blue"].weight == 100
    assert serving.call(Revive()).done == ()


def test_removed_directories_are_made_and_what_lost_its_socket_is_restarted(serving):
    """
    HAProxy runs without its socket: a reload would not bind it again.  So does the slot.
    """
    serving.system.remove_run()
    assert serving.status().slots["blue"].weight is None

    done = serving.call(Revive()).done

    assert done == ("/run/slipway made again", "HAProxy restarted", "slot blue started")
    assert changes(serving)[0] == ["systemd-tmpfiles", layout.TMPFILES]
    assert ["systemctl", "restart", HAPROXY_UNIT] in changes(serving)
    blue = serving.status().slots["blue"]
    assert (blue.weight, blue.unit, blue.ready) == (100, "active", True)


def test_the_directory_of_a_slot_alone_restarts_that_slot_alone(serving):
    shutil.rmtree(serving.layout.runtime_socket("blue").parent)

    assert serving.call(Revive()).done == ("/run/slipway made again", "slot blue started")
    assert ["systemctl", "restart", HAPROXY_UNIT] not in changes(serving)
    assert serving.status().slots["blue"].ready


def test_a_serving_slot_that_systemd_has_given_up_on_is_started(serving):
    serving.system.unit_of("blue").fail()

    assert serving.call(Revive()).done == ("slot blue started",)

    assert serving.status().slots["blue"].ready
    assert serving.system.unit_of("blue").enabled


def test_a_slot_without_traffic_is_started_only_where_it_is_named(serving):
    serving.stage(OTHER, "v2")
    serving.layout.slot_link("green").symlink_to(serving.layout.release(OTHER))
    serving.system.unit_of("green").fail()

    assert serving.call(Revive()).done == ()
    assert serving.call(Revive(("green",))).done == ("slot green started",)
    assert serving.status().slots["green"].weight == 0


def test_a_slot_whose_release_has_gone_is_not_started(serving):
    """
    There is nothing to start: a rollback or a release has to bring something.
    """
    serving.system.unit_of("blue").fail()
    shutil.rmtree(serving.layout.release(BUNDLE))

    assert serving.call(Revive()).done == ()
    assert serving.system.unit_of("blue").active == "failed"


def test_a_masked_unit_is_named_with_its_remedy(serving):
    """
    After everything else is back; a start of a release in it says the same.
    """
    blue = serving.system.unit_of("blue")
    blue.fail()
    blue.is_masked = True
    serving.system.proxy.is_running = False

    assert serving.call(Revive()).done == ("HAProxy restarted",)  # the slot was not asked for
    error = serving.refusal(Revive(("blue",)))

    assert error.kind == "PreconditionError"
    # The first one leaves what `systemctl mask --runtime` made, and does not say so.
    assert error.fix == (
        "on the host: systemctl unmask slipway-runtime@blue.service; "
        "systemctl unmask --runtime slipway-runtime@blue.service"
    )
    status = serving.status().slots["blue"]
    assert (status.weight, status.is_masked) == (100, True)
    assert serving.refusal(SlotStart("blue", BUNDLE)).what == error.what


@pytest.mark.parametrize("how", ["exit", "crash", "hang"])
def test_a_slot_that_does_not_start_is_an_error_with_its_log(serving, how):
    blue = serving.system.unit_of("blue")
    blue.fail()
    blue.starts = how

    assert serving.call(Revive()).done == ("slot blue started",)  # control: not waited for
    error = serving.refusal(Revive(("blue",), timeout_s=5.0))

    assert error.kind == "CommandFailed"
    assert "no such tensor" in error.why


def test_a_haproxy_that_does_not_come_back_is_an_error(serving):
    serving.system.proxy.is_running = False
    serving.system.units[HAPROXY_UNIT].starts = "exit"
    serving.system.units[HAPROXY_UNIT].fail()

    error = serving.refusal(Revive())

    assert error.kind == "CommandFailed"
    assert "haproxy.service is failed" in error.why


def test_it_can_be_killed_at_any_command_and_run_again(leased):
    """
    Whatever was done, the next call does the rest.
    """
    for number in range(1, 12):
        for slot in SLOTS:
            leased.layout.slot_link(slot).unlink(missing_ok=True)
        serve(leased.system, BUNDLE)
        leased.call(TrafficSet({"blue": 100, "green": 0}))
        leased.system.remove_run()
        seen = []

        def die(argv, seen=seen, number=number):
            seen.append(argv)
            if len(seen) == number:
                raise KeyboardInterrupt

        leased.system.before = die
        try:
            leased.call(Revive())
        except KeyboardInterrupt:
            leased.system.before = lambda argv: None
            leased.call(Revive())
        leased.system.before = lambda argv: None
        blue = leased.status().slots["blue"]
        assert (blue.weight, blue.unit, blue.ready) == (100, "active", True)
    assert len(seen) < 11  # the last rounds were not killed: all commands were tried
