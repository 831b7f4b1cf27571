import re
from datetime import UTC, datetime

import pytest

from deploy.cli.events import ProvisionProgress, ReleaseProgress
from deploy.cli.progress import Progress
from deploy.provision.report import HERE, EventKind, Failure, ProvisionEvent, ProvisionReport
from deploy.release.events import ReleaseEvent
from deploy.release.plan import Step
from tests.unit.deploy.inventory.builders import make_fleet

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class Output:
    """
    A progress, and everything that was written, on either stream.
    """

    def __init__(self):
        self.clock, self.err = Clock(), []
        self.progress = Progress(self.err.append, clock=self.clock)

    def awaited(self):
        self.clock.now_s += 10
        before = len(self.err)
        self.progress.beat()
        return "\n".join(self.err[before:])


def change(kind, **fields):
    fields = {"resource": "venv", "change": "build", "done": 1, "of": 2} | fields
    return ProvisionEvent("n1", kind, **fields)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_change_is_printed_once(capsys, as_json):
    """
    On standard output as the result; beside a JSON document on standard error.
    """
    output = Output()
    say = ProvisionProgress(output.progress, ["n1"], as_json=as_json)
    say(change(EventKind.CHANGING))
    say(change(EventKind.CHANGED, took_s=19.0))
    out = capsys.readouterr().out
    assert (out + "\n".join(output.err)).count("venv") == 1
    assert ("venv" in out) is not as_json


def test_what_changes_is_awaited_until_it_has_changed(capsys):
    output = Output()
    say = ProvisionProgress(output.progress, ["n1"], as_json=False)
    assert output.awaited() == "n1: waiting for the connection: 10 s so far"
    say(change(EventKind.CHANGING))
    assert output.awaited() == "n1: waiting for venv: build [1/2]: 10 s so far"
    say(change(EventKind.CHANGED))
    assert "venv" not in output.awaited()
    say(ProvisionEvent("n1", EventKind.OK))
    assert output.awaited() == ""


def test_what_a_change_waits_for_is_shown(capsys):
    """
    A lock of apt may be held for minutes.
    """
    output = Output()
    say = ProvisionProgress(output.progress, ["n1"], as_json=False)
    say(change(EventKind.WAITING, resource="packages", change='n1 says: "waiting, because x"'))
    assert 'n1: packages: n1 says: "waiting, because x"' in output.err
    assert "waiting, because x" in output.awaited()


def test_a_warning_is_told_with_its_remedy_and_is_no_result(capsys):
    """
    It stops nothing.
    """
    output = Output()
    say = ProvisionProgress(output.progress, ["n1"], as_json=False)
    say(ProvisionEvent("n1", EventKind.WARNING, resource="source x", why="unsigned", fix="do y"))
    assert "n1: warning: source x: unsigned\n  fix: do y" in "\n".join(output.err)
    assert capsys.readouterr().out == ""


def test_wheels_are_awaited_on_this_machine_until_hosts_are_connected():
    output = Output()
    say = ProvisionProgress(output.progress, [], as_json=False)
    say(ProvisionEvent(HERE, EventKind.FETCHING, change="fetching 35 wheels"))
    assert output.awaited() == "here: waiting for the wheels: 10 s so far"
    say(ProvisionEvent("n1", EventKind.CONNECTING))
    assert "wheels" not in output.awaited()


def test_a_failure_is_told_once():
    """
    By its event; those that no event output, by the report.
    """
    output = Output()
    say = ProvisionProgress(output.progress, ["n1", "n2"], as_json=False)
    say(ProvisionEvent("n1", EventKind.FAILED, why="disk full", fix="free space"))
    failed = (Failure("n1", "disk full", "free space", "DiskTooSmall"),
              Failure("n2", "the deadline passed", "look", "TransportError"))  # fmt: skip
    say.print_remaining_failures(ProvisionReport(check=False, ok=(), changes=(), failed=failed))
    text = "\n".join(output.err)
    assert (text.count("disk full"), text.count("the deadline passed")) == (1, 1)
    assert "n1" not in output.awaited()


def make_release(tmp_path, *, as_json=False):
    output = Output()
    return output, ReleaseProgress(
        output.progress, make_fleet(tmp_path), ["n1", "n2"], as_json=as_json
    )


def event(name, host=None, text="text", **data):
    return ReleaseEvent(AT, name, text, host, data)


def started(step, host=None, deadline_s=None):
    return event("action.started", host, step=step, deadline_s=deadline_s)


def ended(step, host=None):
    return event("action.ended", host, step=step)


@pytest.mark.parametrize("step", Step)
def test_every_step_says_what_is_awaited(tmp_path, step):
    """
    As long as it runs, and at most as long as it may take; the step itself is no line.
    """
    output, say = make_release(tmp_path)
    assert "the leases" in output.awaited()
    say(event("lease.acquired"))
    is_of_fleet = step in (Step.JUDGE, Step.BAKE)
    host = None if is_of_fleet else "n1"
    lines = len(output.err)
    say(started(step, host, None if is_of_fleet else 65.0))
    assert len(output.err) == lines
    assert re.search(
        "^n1, n2: waiting for .* 10m00s left" if is_of_fleet else "n1: waiting for .* 55 s left",
        output.awaited(),
    )
    say(ended(step, host))
    assert "n1" not in output.awaited()


def test_a_step_of_one_host_says_nothing_of_another(tmp_path):
    """
    A host whose slot is warm and that waits for a later wave is not said to drain, or to be sent
    a bundle.
    """
    output, say = make_release(tmp_path)
    say(event("lease.acquired"))
    say(started("start", "n1", 60.0))
    awaited = "n1: waiting for the start of the slot: 10 s so far, at most 50 s left"
    assert output.awaited() == awaited
    say(ended("start", "n1"))
    assert output.awaited() == "waiting for the state of the hosts: 10 s so far"
    say(event("release.promoted"))
    assert output.awaited() == ""


def test_a_reason_is_in_the_timeline_once(tmp_path):
    """
    The verdict has it; the stop that follows and the end do not repeat it.
    """
    reason = "6 of 11 canary requests failed"
    names = ("canary.rejected", "release.stopped", "release.reverted")
    output, say = make_release(tmp_path)
    for name in names:
        say(event(name, text=reason))
    assert "\n".join(output.err).count(reason) == 1
    assert "release.stopped" in output.err[1]

    output, say = make_release(tmp_path, as_json=True)
    for name in names:
        say(event(name, text=reason))
    assert len(output.err) == 3  # standard output has no timeline


def test_a_stop_for_another_reason_says_it(tmp_path):
    """
    Negative control.
    """
    output, say = make_release(tmp_path)
    say(event("canary.measured", text="0 of 20 requests"))
    say(event("release.stopped", text="interrupted"))
    assert "interrupted" in output.err[-1]
