import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli import boundary, terminal
from deploy.cli.boundary import error_boundary
from deploy.cli.report import status_json
from deploy.cli.tables import status_table
from deploy.cli.terminal import finish, print_error, print_progress, rendered
from deploy.errors import CanaryRejected, TransportError
from tests.builders import make_observed, make_settled

ROOT = Path(__file__).parents[4]
LONG = "gpu-rack-07-position-12-" + "x" * 23  # 47 characters
assert len(LONG) == 47


class Broken(io.StringIO):
    """
    A stream on a full disk.
    """

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_names_are_whole_at_any_width(monkeypatch, columns):
    """
    Without a terminal rich assumes 80 columns; two names of 47 characters were cut until alike.
    """
    monkeypatch.setenv("COLUMNS", columns)
    hosts = [f"{LONG[:-1]}{end}" for end in "ab"]
    states = {name: make_settled(name, good=[("b1", "v" + "1" * 50)]) for name in hosts}
    states["n3"] = TransportError("n3", why="w" * 150, fix="look", host="n3")

    text = rendered(status_table("lab", states))

    for whole in (*hosts, "v" + "1" * 50, "w" * 150, "unreachable"):
        assert whole in text


def test_a_version_on_a_host_is_no_markup():
    """
    It is read from a file on the host; a closing tag of rich ended the task with a MarkupError.
    """
    states = {"n1": make_settled("n1", good=[("b1", "v1[/red]")])}

    assert "v1[/red]" in rendered(status_table("lab", states))


@pytest.mark.parametrize(
    "env", [{}, {"FORCE_COLOR": "1"}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str
)
def test_progress_does_not_depend_on_colour(monkeypatch, capsys, env):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    print_progress("n1: [bold]looking[/bold] [y/N]")
    assert capsys.readouterr().err == "n1: [bold]looking[/bold] [y/N]\n"


@pytest.mark.parametrize("stream", [Broken(), None], ids=["full disk", "closed"])
def test_progress_that_can_not_be_written_ends_nothing(monkeypatch, stream):
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("sys.stdout", stream)
    print_progress("going on")
    terminal.print_change("going on")


def test_a_result_that_can_not_be_written_is_an_error_with_a_name(monkeypatch):
    """
    Negative control of the test above.
    """
    monkeypatch.setattr("sys.stdout", Broken())
    with pytest.raises(OSError) as caught:
        terminal.print_text("result")
    assert caught.value.filename == "standard output"


def test_one_failure_is_told_once(capsys):
    """
    A reason that stands in the timeline is not repeated; what and fix are.
    """
    why = "6 of 11 canary requests failed (54.5%)"
    error = CanaryRejected("r-v2: refused", why=why, fix="look at the release")
    print_error(error, printed=[f"12:00:00  canary.rejected  {why}"])
    text = capsys.readouterr().err
    assert why not in text
    assert "r-v2: refused" in text
    assert "fix: look at the release" in text

    print_error(error, printed=["12:00:00  canary.measured  something else"])
    assert why in capsys.readouterr().err


def test_a_failed_result_is_one_json_document(capsys):
    """
    With its error in it, and nothing else on standard output.
    """
    error = TransportError("n1: lost", why="timeout", fix="ping it")
    with pytest.raises(SystemExit) as caught:
        finish({"ok": False}, "text", error, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"ok": False, "error": error.as_json()}
    assert (caught.value.code, err) == (5, "")


def test_an_error_that_progress_told_leaves_only_its_code(capsys):
    error = TransportError("n1: lost", why="timeout", fix="ping it")
    with pytest.raises(SystemExit) as caught:
        finish({}, "0 hosts as pinned", error, as_json=False, is_printed=True)
    assert caught.value.code == 5
    assert capsys.readouterr() == ("0 hosts as pinned\n", "")


def run_inv(words, **streams):
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        **streams,
    )


@pytest.mark.parametrize("words", [("matrix",), ("matrix", "--json")], ids=" ".join)
def test_a_full_disk_under_the_output_is_one_error(words):
    with Path("/dev/full").open("w") as full:
        done = run_inv(words, stdout=full)
    assert done.returncode == 1
    assert done.stderr.count("standard output") == 2  # what, and in the remedy
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_leaves_ends_it_quietly():
    """
    As `inv matrix | head -0` does.
    """
    reading, writing = os.pipe()
    os.close(reading)
    done = run_inv(["matrix"], stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_status_names_a_host_whose_reserve_was_used():
    """
    In the table and in the document; control: no other host is named.
    """
    states = {
        name: make_observed(name, is_reserve_whole=whole)
        for name, whole in (("n1", True), ("n2", False))
    }

    text = rendered(status_table("lab", states))
    hosts = status_json("lab", states)["hosts"]

    assert "n2: the reserve for a full disk was used" in text
    assert text.count("reserve") == 1
    assert [host.get("reserve") for host in hosts] == [None, "used"]


class Gone(io.StringIO):
    """
    A pipe whose reader has left.
    """

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("stream", [Broken, Gone])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_refused_release_keeps_its_code_where_stdout_takes_nothing(
    monkeypatch, capsys, stream, as_json
):
    """
    A script must not read "standard output is full" where the canary was refused.
    """
    monkeypatch.setattr("sys.stdout", stream())
    error = CanaryRejected("r-v2: refused", why="6 of 11 failed", fix="look")
    with pytest.raises(SystemExit) as ended:
        finish({"ok": False}, "r-v2: reverted", error, as_json=as_json)
    assert ended.value.code == CanaryRejected.exit_code
    assert capsys.readouterr().err.count("6 of 11 failed") == 1


def test_a_result_whose_reader_left_ends_quietly(monkeypatch):
    """
    Negative control: without an error it is the end of a pipe.
    """
    monkeypatch.setattr("sys.stdout", Gone())
    with pytest.raises(SystemExit) as ended:
        finish({"ok": True}, "", None, as_json=True)
    assert ended.value.code == 141


def test_an_exception_that_cannot_be_explained_is_one_error(capsys, monkeypatch, tmp_path):
    """
    Its own text raises.
    """

    class Nasty(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    monkeypatch.setattr(boundary, "_TRACEBACK", tmp_path / "traceback.txt")
    with pytest.raises(SystemExit) as ended, error_boundary(as_json=True):
        raise Nasty
    assert ended.value.code == 1
    assert "Nasty" in json.loads(capsys.readouterr().out)["error"]["what"]
