r"""
Every place where text of hosts, files and the command line is shown, each fed with hostile text.

`SINKS` lists them all; the bytes that are written are what is asserted.  That nothing else in
deploy/ prints is asserted by test_one_door.py.
"""

import inspect
import io
import json
import logging
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given

from deploy.cli import boundary, report, streams, terminal
from deploy.cli.boundary import error_boundary
from deploy.cli.confirm import confirm
from deploy.cli.events import ProvisionProgress, ReleaseProgress
from deploy.cli.grid import Cell, Grid
from deploy.cli.progress import Progress, describe
from deploy.cli.tables import lab_table, status_table
from deploy.cli.terminal import finish, print_text
from deploy.cli.watch import watch
from deploy.demo.report import DemoReport, DemoStep
from deploy.errors import CanaryRejected, TransportError
from deploy.foreign_text import visible
from deploy.host.protocol import Unfinished
from deploy.lab.config import HostState, LabHost, LabStatus
from deploy.provision.report import EventKind, Failure, ProvisionEvent, ProvisionReport
from deploy.release.events import Ending, ReleaseEvent, ReleaseOutcome
from deploy.verify.report import Finding, VerifyReport
from tests.builders import make_good, make_observed, make_settled, make_slot
from tests.hostile_text import CORPUS, complaints
from tests.unit.deploy.demo.test_report import make_report
from tests.unit.runtime.contract.test_visible_text import ANY_TEXT

POLICY = SimpleNamespace(drain_timeout=5.0, canary=SimpleNamespace(give_up_after=5.0))
FLEET = SimpleNamespace(service=SimpleNamespace(start_timeout=5.0), release=POLICY)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
OF_OTHERS = "other code"  # whose ends of lines are not ours to judge
COLOURED = {"redraw"}  # has our own cursor movements
CURSOR = (b"\x1b[H", b"\x1b[K", b"\x1b[J")


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


@pytest.fixture
def feed(monkeypatch, capsysbinary, tmp_path):
    """
    Return a function that feeds a sink and returns what it wrote to stdout and stderr.
    """
    monkeypatch.setattr(boundary, "_TRACEBACK", tmp_path / "traceback.txt")

    def run(name, text):
        streams.guard_streams()  # capsys takes them out again, as it ends
        SINKS[name](text)
        out, err = capsysbinary.readouterr()
        if name in COLOURED:
            for sequence in CURSOR:
                out = out.replace(sequence, b"")
        return out, err

    return run


def wrong(raw):
    """
    Return what is wrong with *raw*: hidden characters, CI commands, a line of another host.
    """
    forged = [line for line in raw.splitlines() if line.startswith(b"n2: ok")]
    return complaints(raw) + [f"forged: {line!r}" for line in forged]


@pytest.mark.parametrize("name", SINKS)
def test_hostile_text_is_only_shown(feed, name):
    """
    Every text of the corpus; all bytes of both streams.
    """
    for text in CORPUS:
        for raw in feed(name, text):
            found = complaints(raw) if name == OF_OTHERS else wrong(raw)
            assert found == [], (name, text[:80], raw[:300])
            assert len(raw) < 4 << 20


@pytest.mark.parametrize("name", ["print_json", "json reports", "error_boundary"])
def test_every_document_stays_json(feed, name):
    """
    Parsed strictly, and encodable: no lone surrogate is left in any text.
    """

    def refuse(constant):
        raise AssertionError(constant)

    for text in CORPUS:
        out, _ = feed(name, text)
        rest = out.decode("ascii").strip()
        decoder = json.JSONDecoder(parse_constant=refuse)
        while rest:
            document, end = decoder.raw_decode(rest)
            json.dumps(document, ensure_ascii=False).encode()
            rest = rest[end:].strip()


def test_numbers_that_json_does_not_have_are_null(capsys):
    """
    NaN and the infinities, which Python would write as words that no other parser takes.
    """
    terminal.print_json({"a": float("nan"), "b": [float("inf")], "c": {"d": float("-inf")}, "e": 1})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None], "c": {"d": None}, "e": 1}


def test_a_value_in_json_is_the_value(capsys):
    """
    Escapes are JSON's own: a reader gets the text as the host sent it.
    """
    for text in ("##[error]x", "\x7f", "\u202e", "\\##", "größer"):
        terminal.print_json({"a": text})
        assert json.loads(capsys.readouterr().out) == {"a": text}


def test_the_list_has_every_function_that_writes():
    """
    Every public function of terminal.py, except those that return text or only end the program.
    """
    writes_nothing = {"rendered", "json_text", "traceback_text", "end_quietly", "close_output"}
    public = {
        name
        for name, value in inspect.getmembers(terminal, inspect.isfunction)
        if value.__module__ == terminal.__name__ and not name.startswith("_")
    }
    assert public - writes_nothing <= set(SINKS)


@pytest.mark.parametrize("name", SINKS)
def test_each_sink_would_be_caught_without_the_door(feed, monkeypatch, name):
    """
    Negative control: with `visible` switched off, hostile text comes out of the sink.
    """

    def switched_off(text, **_):
        return text.encode(errors="backslashreplace").decode()

    for module in [m for m in sys.modules.values() if hasattr(m, "visible")]:
        monkeypatch.setattr(module, "visible", switched_off)
    if name in ("print_json", "json reports"):
        monkeypatch.setattr(terminal, "json_text", lambda d, as_line=False: repr_raw(d))
    texts = ["a\x1b[31mb", "a ##[error]b", "\u202eab"]
    assert any(wrong(raw) for text in texts for raw in feed(name, text))


def repr_raw(document):
    return json.dumps(document, ensure_ascii=False, default=str) + "\n"


def test_a_traceback_file_takes_any_text(feed, tmp_path):
    """
    It is read in a terminal later, too.
    """
    for text in CORPUS:
        in_boundary(ValueError(text))
        assert complaints((tmp_path / "traceback.txt").read_bytes()) == []


def test_a_line_end_within_a_line_never_begins_one_of_ours(feed):
    _, err = feed("print_progress", "n1: quiet\nn2: ok\n  fix: trust me")
    assert err == b"n1: quiet\n  n2: ok\n  fix: trust me\n"
    _, err = feed("print_error", "n1\n  fix: trust me")
    assert err.count(b"\n  fix: ") == 2  # one of them ours, one below the first line


def test_without_the_indent_a_line_is_forged(feed, monkeypatch):
    """
    Negative control: with every character escaped and ends of lines kept as they are.
    """
    monkeypatch.setattr(terminal, "indented", lambda text, **_: visible(text, keep_lines=True))
    for name in ("print_progress", "print_text", "print_error", "print_traceback", "heartbeat"):
        assert any(wrong(raw) for raw in feed(name, "quiet\nn2: ok"))


def test_the_log_of_pip_is_only_shown(tmp_path):
    """
    ./inv prints its last lines where an installation failed; an index wrote parts of them.
    """
    script = (Path(__file__).parents[4] / "inv").read_text()
    body = script.partition("\nbroken() {")[2].partition("\n}")[0]
    log = tmp_path / "venv.log"
    for text in CORPUS:
        log.write_bytes(text.encode(errors="surrogatepass"))
        shell = f"log={log}\nfail() {{ :; }}\n{body}"
        shown = subprocess.run(["sh", "-c", shell], capture_output=True, check=True)
        assert wrong(shown.stderr) == [], text[:80]


@given(ANY_TEXT)
def test_any_text_in_a_document_is_valid_json(text):
    """
    ASCII, strictly parsed, and the same text where it has no surrogate without a partner.
    """
    shown = terminal.json_text({"a": [text], text: 1}, as_line=True)
    assert shown.isascii()
    assert shown.count("\n") == 1
    assert "##" not in shown
    found = json.loads(shown)["a"][0]
    found.encode()
    if not any("\ud800" <= char <= "\udfff" for char in text):
        assert found == text


def test_our_own_colours_pass_the_door(monkeypatch):
    """
    On a terminal: states of slots and errors; and still nothing of a host's.
    """

    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    written = {name: io.BytesIO() for name in streams.STREAMS}
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, raw in written.items():
        monkeypatch.setattr(sys, name, Terminal(raw, encoding="utf-8"))
    streams.guard_streams()
    states = {"n1": make_settled("n1", good=[("b1", "v1\x1b[35m[blink]")])}
    print_text(status_table("lab", states))
    terminal.print_error(make_error("\x1b[35mn1"))
    out, err = (written[name].getvalue() for name in streams.STREAMS)
    assert b"\x1b[32mserving" in out
    assert err.startswith(b"\n\x1b[31m")
    for raw in (out, err):
        assert b"\x1b[35m" not in raw
        assert b"\\x1b[35m" in raw
        assert complaints(raw, colour=True) == []
