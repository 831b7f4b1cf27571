from pathlib import Path

import pytest

from deploy.host.layout import unit
from deploy.host.protocol import LeaseRenew, SlotStart, SlotStop
from deploy.host.slots import systemd
from deploy.host.slots.systemd import parse_show
from tests.unit.deploy.host.fakes import BUNDLE, OTHER, TemporaryHost, short_directory


class Killed(BaseException):
    """
    Stands for SIGKILL: no code of ours runs after it.
    """


@pytest.fixture
def staged(leased):
    leased.stage(BUNDLE)
    leased.stage(OTHER, "v2")
    return leased


def start(host, bundle=BUNDLE, timeout_s=60):
    return host.call(SlotStart("green", bundle, timeout_s))


def refused_start(host, bundle=BUNDLE, timeout_s=60):
    return host.refusal(SlotStart("green", bundle, timeout_s))


def give_traffic(host, weight):
    server = host.system.proxy.servers["green"]
    server.admin, server.own_weight = "ready", weight


# -- start


def test_a_start_links_enables_and_returns_when_ready(staged):
    """
    The slot's link leads to the release, the unit starts at boot, and the runtime is READY.
    """
    staged.units["green"].starts = "slow"

    result = start(staged)

    assert (result.unit, result.started, result.bundle) == ("active", True, BUNDLE)
    assert staged.layout.slot_link("green").readlink() == staged.layout.release(BUNDLE)
    assert staged.units["green"].enabled


def test_a_starting_slot_yields_the_processor(staged):
    """
    Loading a model does not slow down the serving slot.
    """
    start(staged)

    assert staged.units["green"].cpu_weight == 20


def test_starting_a_running_bundle_changes_nothing(staged):
    """
    The unit is not restarted.
    """
    start(staged)
    staged.system.calls.clear()

    assert start(staged).started is False
    assert not [c for c in staged.system.calls if c[:2] == ["systemctl", "start"]]


def test_a_slot_that_runs_another_bundle_is_refused(staged):
    """
    A running release is never replaced while it serves.
    """
    start(staged)

    error = refused_start(staged, OTHER)

    assert error.kind == "PreconditionError"
    assert "aaaaaaaaaaaa" in error.why
    assert staged.layout.slot_link("green").readlink() == staged.layout.release(BUNDLE)


def test_a_bundle_that_is_not_staged_is_refused(leased):
    """
    A slot never links to an incomplete release.
    """
    error = refused_start(leased)

    assert (error.kind, "not staged" in error.what) == ("PreconditionError", True)
    assert not leased.layout.slot_link("green").is_symlink()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exit", "status 78"),
        ("crash", "status 78"),
        ("hang", "not READY in time"),
        ("skip", "condition"),
    ],
)
def test_a_failed_start_is_stopped_and_shows_its_last_log_lines(staged, how, said):
    """
    The unit is neither enabled nor running, and the error has the reason.
    """
    staged.units["green"].starts = how

    error = refused_start(staged, timeout_s=10)

    assert error.kind == "CommandFailed"
    assert said in error.why
    assert "no such tensor" in error.why
    assert staged.units["green"].active in ("inactive", "failed")
    assert not staged.units["green"].enabled


def test_a_failed_start_without_logs_shows_systemds_result(staged):
    """
    The process died without output.
    """
    staged.units["green"].starts = "exit"
    staged.system.log = []

    error = refused_start(staged)

    assert "Failed to start it." in error.why


def test_a_flooded_log_is_cut(staged):
    """
    Lines of a slot may have any length; the error has their end.
    """
    staged.units["green"].starts = "exit"
    staged.system.log = ["x" * 100_000, "the cause"]

    error = refused_start(staged)

    assert len(error.why) < 5000
    assert error.why.endswith("the cause")


def test_a_failed_slot_can_be_started_with_another_bundle(staged):
    """
    A failure is reset before the next start.
    """
    staged.units["green"].starts = "exit"
    refused_start(staged)
    staged.units["green"].starts = "ready"

    assert start(staged, OTHER).unit == "active"


def test_the_lock_is_free_while_a_slot_starts(staged):
    """
    The lease can be renewed during a start that takes minutes.
    """
    staged.units["green"].starts = "slow"
    renewed = []
    staged.clock.on_sleep = lambda: renewed.append(staged.call(LeaseRenew(30)))

    start(staged)

    assert renewed


def test_a_start_that_lost_its_lease_stops_nothing(staged):
    """
    The new owner may have started the slot.
    """
    staged.units["green"].starts = "hang"
    staged.call(LeaseRenew(5))

    error = refused_start(staged, timeout_s=10)

    assert error.kind == "LeaseLost"
    stops = [c for c in staged.system.calls if c[:2] == ["systemctl", "stop"]]
    assert stops == [["systemctl", "stop", "run-slipway-private-green.mount"]]


def test_a_start_that_is_killed_anywhere_is_finished_by_the_next():
    """
    Killed before each command that it runs: status reports it, and a second start completes it.
    """
    kills = 0
    while True:
        with short_directory() as root:
            host = TemporaryHost(root)
            host.lease(ttl_s=3600)
            host.stage(BUNDLE)
            if not killed_at(host, kills, lambda host=host: start(host)):
                break
            assert host.status().unfinished.step == "slot.start"

            assert start(host).unit == "active"

            assert host.units["green"].enabled
            assert host.layout.slot_link("green").readlink() == host.layout.release(BUNDLE)
            assert host.status().unfinished is None
        kills += 1
    assert kills >= 5


def killed_at(host, number, work):
    """
    Run *work* and kill it before command *number*; return whether it got that far.
    """
    left = [number]

    def before(_):
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    host.system.before = before
    try:
        work()
    except Killed:
        return True
    finally:
        host.system.before = lambda _: None
    return False


def test_recorded_output_of_systemd_is_parsed():
    """
    From systemd 252: one running unit and one failed unit.
    """
    text = (Path(__file__).parent / "recorded" / "systemctl_show.txt").read_text()

    blue, green = parse_show(text).values()

    assert (blue.name, blue.active, blue.is_enabled, blue.has_job) == (
        unit("blue"), "active", True, False,
    )  # fmt: skip
    assert len(blue.invocation) == 32
    assert (green.active, green.result, green.exit_status, green.is_enabled) == (
        "failed", "exit-code", 78, False,
    )  # fmt: skip


# -- stop


def test_a_stop_disables_and_keeps_the_link(staged):
    """
    Stopped now and at the next boot; log and release stay available.
    """
    start(staged)

    result = staged.call(SlotStop("green"))

    assert (result.unit, result.stopped) == ("inactive", True)
    assert not staged.units["green"].enabled
    assert staged.layout.slot_link("green").is_symlink()


def test_stopping_a_stopped_slot_is_no_error(staged):
    """
    Also without HAProxy.
    """
    staged.system.proxy.is_running = False

    assert staged.call(SlotStop("green")).stopped is False


def test_a_slot_that_takes_requests_is_not_stopped(staged):
    """
    Its requests would be lost.
    """
    give_traffic(staged, 10)
    start(staged)

    error = staged.refusal(SlotStop("green"))

    assert (error.kind, "weight is 10" in error.why) == ("PreconditionError", True)
    assert staged.units["green"].active == "active"


def test_a_running_slot_of_a_silent_haproxy_is_not_stopped(staged):
    """
    Unknown traffic does not mean no traffic.
    """
    start(staged)
    staged.system.proxy.is_running = False

    assert staged.refusal(SlotStop("green")).kind == "PreconditionError"


@pytest.mark.parametrize("stops", ["hang", "forks"])
def test_a_slot_that_does_not_end_is_killed_at_the_deadline(staged, stops):
    """
    It keeps extending its stop, or leaves processes behind: at the deadline all are killed.
    """
    start(staged)
    staged.units["green"].stops = stops
    began_s = staged.clock.steady

    result = staged.call(SlotStop("green", timeout_s=5))

    assert (result.stopped, staged.units["green"].tasks) == (True, 0)
    assert 5 <= staged.clock.steady - began_s < 16
    assert not staged.units["green"].enabled


@pytest.mark.parametrize("stops", ["hang", "forks"])
def test_only_the_kill_ends_such_a_slot(staged, stops, monkeypatch):
    """
    Control: the same stop without the kill is an error.
    """
    start(staged)
    staged.units["green"].stops = stops
    monkeypatch.setattr(systemd, "kill", lambda *_: None)

    assert staged.refusal(SlotStop("green", timeout_s=5)).kind == "CommandFailed"


def test_a_slot_that_stops_in_time_is_not_killed(staged):
    """
    It finishes its requests.
    """
    start(staged)
    staged.units["green"].stops = "slow"
    staged.system.calls.clear()

    staged.call(SlotStop("green", timeout_s=5))

    assert not [c for c in staged.system.calls if c[:2] == ["systemctl", "kill"]]


def test_what_even_a_kill_does_not_end_is_an_error(staged):
    """
    A process that waits for a device for ever.
    """
    start(staged)
    staged.units["green"].stops = "immortal"

    error = staged.refusal(SlotStop("green", timeout_s=5))

    assert (error.kind, "nor when it was killed" in error.what) == ("CommandFailed", True)


@pytest.mark.parametrize("stops", ["hang", "forks"])
def test_a_failed_start_ends_though_the_slot_resists(staged, stops):
    """
    A slot that is never READY and ignores its stop is gone when the start returns.
    """
    staged.units["green"].starts, staged.units["green"].stops = "hang", stops

    error = refused_start(staged, timeout_s=10)

    assert "and was stopped" in error.why
    assert staged.units["green"].active in ("inactive", "failed")
    assert staged.units["green"].tasks == 0


def test_a_start_gives_the_slot_an_empty_file_system(staged):
    """
    What an earlier release wrote there neither fills nor poisons the next one.
    """
    start(staged)
    assert staged.system.unmounted == ["green"]

    start(staged)  # it runs already
    assert staged.system.unmounted == ["green"]


@pytest.mark.parametrize(("active", "tasks"), [("deactivating", 5), ("failed", 5)])
def test_a_start_ends_what_is_left_of_the_earlier_release(staged, active, tasks):
    """
    A slot that says STOPPING=1 and goes on, and one of which systemd left processes.
    """
    found = staged.units["green"]
    found.active, found.tasks, found.stops = active, tasks, "hang"

    assert start(staged).unit == "active"

    assert found.tasks == 0


def test_a_start_beside_an_immortal_process_is_refused(staged):
    """
    It holds memory and files of the slot.
    """
    found = staged.units["green"]
    found.active, found.tasks, found.stops = "failed", 1, "immortal"

    error = refused_start(staged)

    assert "do not end" in error.what
    assert not staged.layout.slot_link("green").is_symlink()
