r"""
Hostile text at every place where the command line shows something (sinks.py).

The bytes that are written are what is asserted.  That nothing else in deploy/ prints is asserted by
test_one_door.py.
"""

import inspect
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given

from deploy.cli import boundary, streams, terminal
from deploy.cli.tables import status_table
from deploy.cli.terminal import print_text
from deploy.foreign_text import visible
from tests.builders import make_settled
from tests.hostile_text import CORPUS, complaints
from tests.unit.deploy.cli.sinks import OF_OTHERS, SINKS, in_boundary, make_error
from tests.unit.runtime.contract.test_visible_text import ANY_TEXT

COLOURED = {"redraw"}  # has our own cursor movements
CURSOR = (b"\x1b[H", b"\x1b[K", b"\x1b[J")


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
    shown = terminal.json_text({"a": [text], f"b{text}": 1}, as_line=True)
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
