"""
The program that ./inv starts, in this process: words in, exit code and output out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli import program
from deploy.cli.program import SlipwayProgram
from deploy.transport import sudo
from deploy.transport.sudo import PASSWORD_VARIABLE, kept_password

ROOT = Path(__file__).parents[4]


USAGE = [
    ("status", "--nosuch"),
    ("nosuch",),
    ("release", "--canary"),
    ("lab.ssh",),
    ("bundle", "--model", "x"),
    ("--help", "nosuch"),
    ("--list", "nosuch"),
    ("--list-depth", "x", "--list"),
    ("--list", "--list-format", "x"),
    ("--command-timeout", "soon", "matrix"),
    ("plan", "--canary", "99"),
    ("plan", "--canary", "ten"),
    ("lab.up", "--hosts", "many"),
    ("provision",),
]


@pytest.mark.parametrize("words", USAGE, ids=" ".join)
def test_a_usage_error_has_the_code_of_the_page(inv, words):
    code, out, err = inv(*words)
    assert (code, out) == (19, "")
    assert "fix: " in err
    assert "Traceback" not in err


EMPTY = [
    ("rollback", "--to", "", "--yes"),
    ("rollback", "--to= ", "--yes"),
    ("release", "--plan", "", "--yes"),
    ("release", "--version", ""),
    ("provision", "--hosts", ""),
    ("provision", "--waves", "1", "--window", "", "--yes"),
    ("keys.add", "web", "--expires", ""),
    ("keys.add", ""),
    ("bundle", "--model", "", "--version", "v1"),
    ("verify", "--junit", ""),
    ("matrix", "--torch", ""),
    ("matrix", "--torch", "2.3", "--gpu", "\t"),
]


@pytest.mark.parametrize("words", EMPTY, ids=" ".join)
def test_an_empty_flag_is_refused_and_never_taken_as_absent(inv, words):
    """
    `--to "$VERSION"` without VERSION would go back to another release than was meant.
    """
    code, out, err = inv(*words)
    assert (code, out) == (19, "")
    assert ": is empty" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "flags",
    [("--plan", "3f9c21"), ("--version", "v1"), ("--canary", "10"), ("--allow-older",)],
    ids=" ".join,
)
def test_a_release_that_goes_on_takes_no_flags_of_a_new_one(inv, flags):
    """
    The digest of an approved plan would be left out without a word.
    """
    code, out, err = inv("release", "--resume", *flags, "--yes")
    assert (code, out) == (19, "")
    assert f"{flags[0]}: not with --resume" in err


@pytest.mark.parametrize("words", [("status", "--nosuch"), ("nosuch",), ("plan", "--canary", "99")])
def test_with_json_a_usage_error_is_one_document(inv, words):
    code, out, err = inv(*words, "--json")
    error = json.loads(out)["error"]
    assert (code, err) == (19, "")
    assert (error["kind"], error["exit_code"]) == ("UsageError", 19)


def test_watch_tells_an_error_in_one_line(inv):
    code, out, _ = inv("status", "--hosts", "nosuch", "--watch", "--json")
    assert code == 2
    assert len(out.splitlines()) == 1
    assert json.loads(out)["error"]["kind"] == "InventoryError"


def test_help_and_lists_are_no_errors(inv):
    """
    Negative control.
    """
    for words in (("--list",), ("--help",), ("--help", "release"), ("--version",), ()):
        code, out, err = inv(*words)
        assert (code, err) == (0, "")
        assert out


def test_an_empty_variable_is_an_absent_one(inv, monkeypatch):
    """
    INVOKE_FLEET= takes the default fleet; a name that is no fleet is still refused.
    """
    monkeypatch.setenv("INVOKE_FLEET", "")
    assert inv("status", "--limit", "nosuch")[0] == 12  # asked of inventories/lab.yml
    monkeypatch.setenv("INVOKE_FLEET", "nosuch")
    assert inv("status", "--limit", "nosuch")[0] == 2


def test_no_program_has_the_password_for_sudo(inv, monkeypatch, tmp_path):
    """
    Not even those that run before it is known whether a host needs it: `Match exec` of `ssh -G`.
    """
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(f"#!/bin/sh\nenv >{tmp_path}/seen\nexit 1\n")
    (programs / "ssh").chmod(0o755)
    text = (ROOT / "inventories" / "lab.yml").read_text()
    (tmp_path / "x.yml").write_text(text.replace("ssh:\n", "ssh:\n  client_config: true\n", 1))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SLIPWAY_CWD", str(tmp_path))
    monkeypatch.setenv(PASSWORD_VARIABLE, "Horse-7")
    monkeypatch.setattr(sudo, "_kept", None)
    code, _, err = inv("status", "--hosts", "./x.yml")
    assert (code, "ssh" in err) == (2, True)
    assert f"PATH={programs}:" in (tmp_path / "seen").read_text()
    assert "Horse-7" not in (tmp_path / "seen").read_text()
    assert kept_password() == "Horse-7"


def test_a_fleet_file_is_read_from_the_callers_directory(inv, monkeypatch, tmp_path):
    (tmp_path / "x.yml").write_text((ROOT / "inventories" / "lab.yml").read_text())
    monkeypatch.setenv("SLIPWAY_CWD", str(tmp_path))
    assert inv("status", "--hosts", "./x.yml", "--limit", "nosuch")[0] == 12
    code, _, err = inv("status", "--hosts", "y.yml")
    assert code == 2
    assert str(tmp_path / "y.yml") in err


def test_a_configuration_file_is_read_from_the_callers_directory(inv, monkeypatch, tmp_path):
    (tmp_path / "mine.yaml").write_text("fleet: nosuch-either\n")
    monkeypatch.setenv("SLIPWAY_CWD", str(tmp_path))
    _, _, err = inv("--config", "mine.yaml", "status")
    assert "nosuch-either" in err


def test_a_junit_that_is_a_folder_is_refused_before_anything_runs(inv, monkeypatch, tmp_path):
    monkeypatch.setenv("SLIPWAY_CWD", str(tmp_path))
    (tmp_path / "reports").mkdir()
    code, out, err = inv("verify", "--junit", "reports")
    assert (code, out) == (19, "")
    assert "is a folder" in err


def test_a_user_without_a_name_is_told_so(inv, monkeypatch):
    """
    A CI user without a passwd entry.
    """

    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    code, _, err = inv("status")
    assert code == 19
    assert "has no name on this machine" in err


def test_a_configuration_that_is_no_yaml_is_a_usage_error(inv, monkeypatch, tmp_path):
    (tmp_path / "bad.yaml").write_text("fleet: [\n")
    monkeypatch.setenv("SLIPWAY_CWD", str(tmp_path))
    code, _, err = inv("--config", "bad.yaml", "status")
    assert code == 19
    assert str(tmp_path / "bad.yaml") in err


def test_debug_also_stands_after_the_task():
    program = SlipwayProgram(name="Invoke", binary="inv[oke]")
    assert any(a.name == "debug" and "traceback" in a.help for a in program.core_args())


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("flete: lab", "did you mean fleet?"),
        ("fleet: [lab]", "not the name of a fleet"),
        ("fleet: 5", "not the name of a fleet"),
        ("1: 2", "unknown key 1"),
        ('"\\e[2J": 2', "unknown key \\x1b[2J"),
        ("fleet: !!python/object/apply:os.system [true]", "not YAML"),
        ("[fleet]", "fix: "),
        ("fleet", "fix: "),
    ],
)
def test_a_configuration_file_of_invoke_is_checked(inv, tmp_path, text, word):
    """
    A mistyped key would leave the default fleet in place, in silence.
    """
    path = tmp_path / "invoke.yaml"
    path.write_text(text)
    code, out, err = inv("--config", str(path), "matrix")
    assert (code, out) == (19, "")
    assert word in err


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.json", "{bad", ["x.json: not JSON"]),
        ("x.json", "5", ["not a table of keys"]),
        ("x.toml", "x = 1", ["another format", ".yaml, .yml, .json, .py"]),
        ("x", "fleet: lab", ["another format"]),
        ("x.py", "1/0", ["x.py: it cannot be run", "ZeroDivisionError"]),
        ("x.py", "raise SystemExit(3)", ["x.py: it cannot be run"]),
        ("x.py", "import os", ["x.py: it cannot be run", "is a module"]),
        ("x.yaml", b"\xff", ["x.yaml: not YAML"]),
        ("x.yaml", "fleet: {a: 1}", ["x.yaml: fleet is not a value"]),
        ("x.yaml", "run:", ["run has NoneType where keys belong"]),
        ("x.yaml", "run: {echo: {a: 1}}", ["run.echo is not a value"]),
        ("x.yaml", None, ["does not exist, or is no regular file"]),
        ("x.yaml", "pipe", ["does not exist, or is no regular file"]),
        ("x.yaml", "folder", ["does not exist, or is no regular file"]),
    ],
)
@pytest.mark.parametrize("given", ["flag", "variable"])
def test_a_configuration_file_that_cannot_be_used_is_named(
    inv, monkeypatch, tmp_path, name, text, words, given
):
    """
    A name that is mistyped would leave the default fleet in place; a pipe would be waited for.
    """
    path = tmp_path / name
    if text == "pipe":
        os.mkfifo(path)
    elif text == "folder":
        path.mkdir()
    elif text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv("SLIPWAY_CWD", str(tmp_path))
    if given == "variable":
        monkeypatch.setenv("INVOKE_RUNTIME_CONFIG", name)
    flag = ("--config", name) if given == "flag" else ()
    code, out, err = inv(*flag, "matrix")
    assert (code, out) == (19, "")
    assert str(path) in err
    for word in words:
        assert word in err


@pytest.mark.parametrize("text", ["{bad", "pipe"])
def test_a_configuration_file_of_the_user_that_cannot_be_used_is_named(
    inv, monkeypatch, tmp_path, text
):
    path = tmp_path / ".invoke.json"
    if text == "pipe":
        os.mkfifo(path)
    else:
        path.write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, err = inv("matrix")
    assert (code, out) == (19, "")
    assert str(path) in err


def test_the_configuration_of_the_repository_is_valid(inv, tmp_path):
    """
    Negative control: its own keys, and those of invoke.
    """
    path = tmp_path / "invoke.yaml"
    path.write_text((ROOT / "invoke.yaml").read_text() + "run: {echo: false}\n")
    assert inv("--config", str(path), "status", "--limit", "nosuch")[0] == 12


@pytest.mark.parametrize("words", [("matrix",), ("status",), ("lab.status",)])
def test_a_folder_that_is_a_link_stops_every_task(inv, monkeypatch, tmp_path, words):
    """
    Before the task begins, with the usual document under --json.
    """
    link = tmp_path / ".slipway"
    link.symlink_to(tmp_path)
    monkeypatch.setattr(program, "_PRIVATE", (link,))
    code, out, err = inv(*words, "--json")
    assert (code, err) == (1, "")
    error = json.loads(out)["error"]
    assert str(link) in error["what"]
    assert "symbolic link" in error["why"]
    assert error["fix"]


def test_help_needs_no_private_folder(inv, monkeypatch, tmp_path):
    """
    Negative control: what writes nothing is not stopped.
    """
    (tmp_path / ".slipway").symlink_to(tmp_path)
    monkeypatch.setattr(program, "_PRIVATE", (tmp_path / ".slipway",))
    assert inv("--list")[0] == 0
    assert inv("--help", "release")[0] == 0


def test_what_the_process_writes_is_private():
    """
    The program itself starts with umask 077, so that children inherit it.
    """
    script = (
        "import os, deploy.cli.program as p\n"
        "p.SlipwayProgram.run = lambda *a: print(oct(os.umask(0)))\n"
        "p.main()"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, umask=0
    )
    assert shown.stdout.strip() == "0o77", shown.stderr
