r"""
Every place of the command line where text of hosts, files and arguments is shown.

`SINKS` has a function for each, which feeds it with one text.
"""

import logging
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.api_keys.spread import HeldLists
from deploy.cli import report, terminal
from deploy.cli.boundary import error_boundary
from deploy.cli.confirm import confirm
from deploy.cli.events import ProvisionProgress, ReleaseProgress
from deploy.cli.grid import Cell, Grid
from deploy.cli.key_report import keys_json, keys_table, lists_error
from deploy.cli.progress import Progress, describe
from deploy.cli.tables import lab_table, status_table
from deploy.cli.terminal import finish, print_text
from deploy.cli.watch import watch
from deploy.demo.report import DemoReport, DemoStep
from deploy.errors import CanaryRejected, TransportError
from deploy.host.protocol import ApiKey, KeySecret, KeysHeld, KeysStamp, Unfinished
from deploy.lab.config import HostState, LabHost, LabStatus
from deploy.provision.report import EventKind, Failure, ProvisionEvent, ProvisionReport
from deploy.release.events import Ending, ReleaseEvent, ReleaseOutcome
from deploy.verify.report import Finding, VerifyReport
from tests.builders import make_good, make_observed, make_slot
from tests.unit.deploy.demo.test_report import make_report

POLICY = SimpleNamespace(drain_timeout=5.0, canary=SimpleNamespace(give_up_after=5.0))
FLEET = SimpleNamespace(service=SimpleNamespace(start_timeout=5.0), release=POLICY)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
OF_OTHERS = "other code"  # whose ends of lines are not ours to judge


def make_error(text, kind=TransportError):
    return kind(text, why=text, fix=text, host=text)


def ends(action, *args, **kwargs):
    with pytest.raises(SystemExit):
        action(*args, **kwargs)


def in_boundary(error, **flags):
    with pytest.raises(SystemExit), error_boundary(**{"as_json": False} | flags):
        raise error


def heartbeat(text):
    progress = Progress()
    progress.wait_for(text, [text], 5.0)
    terminal.print_progress(describe(progress._waits, progress._clock()))
    progress(text)
    progress.write(text)
    terminal.print_progress(describe(progress._waits, progress._clock()))


def provisioning(text):
    for as_json in (False, True):
        say = ProvisionProgress(Progress(), [text], as_json=as_json)
        for kind in EventKind:
            say(ProvisionEvent(text, kind, resource=text, change=text, why=text, fix=text))
        failed = (Failure(text + " 2", text, text, "TransportError"),)
        say.print_remaining_failures(ProvisionReport(False, (), (), failed))


def releasing(text):
    say = ReleaseProgress(Progress(), FLEET, [text], as_json=True)
    for name in ("host.staged", "release.stopped", text):
        say(ReleaseEvent(NOW, name, text, text))


def hostile_observed(text):
    slot = make_slot("blue", version=text, unit=text, haproxy=text)
    return make_observed(
        text, slot, make_slot(text), [make_good(text, text, text)], lease_owner=text
    )


def status(text):
    others = [
        make_observed("n2", paused=text),
        make_observed("n3", unfinished=Unfinished(text, text)),
    ]
    states = {text: hostile_observed(text), text + "2": make_error(text)}
    states |= {host.host: host for host in others}
    print_text(status_table(text, states))


def lab(text):
    host = LabHost(text, text, HostState.RUNNING, 7, 12, 8)
    print_text(lab_table(LabStatus(Path("/lab"), text, text, (host,))))


def reports(text):
    plan = SimpleNamespace(
        version=text, fleet=text, bundle=text, digest="d", steps=lambda: [text, text]
    )
    print_text(report.plan_text(plan))
    print_text(report.failure_text(text, text, text))
    print_text(report.outcome_text(ReleaseOutcome(text, Ending.PAUSED, text, {})))
    print_text(report.event_line(ReleaseEvent(NOW, text, text, text)))
    print_text(report.verify_text(VerifyReport((), 0, 0, (), Path(text), 0.0)))


def json_reports(text):
    terminal.print_json(report.status_json(text, {text: hostile_observed(text)}))
    outcome = ReleaseOutcome(text, Ending.PAUSED, text, {text: [text]}, make_error(text))
    terminal.print_json(outcome.as_json())
    terminal.print_json({text: Path(text)}, as_line=True)
    ends(finish, {"x": text}, "", make_error(text), as_json=True)


def verified(text):
    failed = (Finding(text, text, text), Finding("n1", "t", text))
    terminal.print_error(VerifyReport((), 0, 0, failed, Path(text), 0.0).error)


def demo(text):
    step = DemoStep(text, 0.0, 1.0, text, "promoted", text)
    event = ReleaseEvent(NOW, "host.failed", text, text)
    load = make_report([]).load
    print_text(DemoReport((step,), (event,), load, {text: None}, NOW, 1.0).lines())


def watched(text):
    class Stop(Exception):
        pass

    moments = iter([({"n": text}, Grid((text,)))])

    def read():
        for moment in moments:
            return moment
        raise Stop

    with pytest.raises(Stop):
        watch(read, as_json=False, sleep=lambda _: None)


def asked(text):
    stdin, is_terminal = sys.stdin, SimpleNamespace(isatty=lambda: True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.cli.confirm._is_terminal", lambda _: True)
        patch.setattr("builtins.input", lambda: "y")
        confirm(text, yes=False)
    assert stdin is sys.stdin
    assert is_terminal.isatty()


def boundaries(text):
    for error in (
        OSError(5, text, text),
        KeyError(text),
        RuntimeError(text),
        subprocess.TimeoutExpired([text], 1.0),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, text),
        ExceptionGroup(text, [ValueError(text)]),
        make_error(text),
    ):
        in_boundary(error)
    in_boundary(KeyError(text), as_json=True)
    in_boundary(make_error(text), as_json=True, as_line=True)


def other_code(text):
    """
    What libraries print for themselves.
    """
    sys.stdout.write(text)
    print(text, file=sys.stderr)
    sys.stderr.writelines([text, text])
    handler = logging.StreamHandler(sys.stderr)
    handler.emit(logging.LogRecord("x", logging.ERROR, "x.py", 1, text, (), None))
    error = ValueError(text)
    threading.__excepthook__(threading.ExceptHookArgs((ValueError, error, None, None)))
    sys.__excepthook__(ValueError, error, None)


def keys(text):
    """
    A host sends its list of keys, with any text that the types allow, and why it is damaged.
    """
    key = ApiKey("web", 1, 1, (KeySecret("a" * 64, 1),), models=(text,))
    lists = HeldLists(
        {"n1": KeysHeld(KeysStamp(1, "a" * 64), (key,)), "n2": KeysHeld(None, (), text)},
        {"n3": make_error(text)},
    )
    for as_json in (False, True):
        error = lists_error(lists)
        ends(finish, keys_json(lists), keys_table(lists, 5), error, as_json=as_json)


SINKS = {
    "print_progress": terminal.print_progress,
    "print_change": terminal.print_change,
    "print_question": terminal.print_question,
    "print_json": lambda text: terminal.print_json({text: [text, {"a": (text,)}]}),
    "print_text": lambda text: [print_text(text), print_text([text, text])],
    "print_text of a table": lambda text: print_text(
        Grid((text,), [(text,), (Cell(text, "red"),)], [text])
    ),
    "redraw": lambda text: [terminal.redraw(Grid((text,), [(text,)])), terminal.redraw(text)],
    "print_error": lambda text: terminal.print_error(make_error(text)),
    "print_traceback": lambda text: terminal.print_traceback(ValueError(text)),
    "finish": lambda text: ends(finish, {}, text, make_error(text, CanaryRejected), as_json=False),
    "fail": lambda text: ends(terminal.fail, make_error(text), as_json=False),
    "heartbeat": heartbeat,
    "provisioning": provisioning,
    "releasing": releasing,
    "status": status,
    "keys": keys,
    "lab": lab,
    "reports": reports,
    "json reports": json_reports,
    "verify": verified,
    "demo": demo,
    "watch": watched,
    "confirm": asked,
    "error_boundary": boundaries,
    OF_OTHERS: other_code,
}
