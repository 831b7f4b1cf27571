"""
The host program reads a host's facts, fed over standard input.
"""

import json
import subprocess
from pathlib import Path

import pytest

from deploy.errors import CommandFailed, PreconditionError
from deploy.host import layout
from deploy.host.protocol import SCHEMA, Call, ErrorKind, FactQuery, HostError
from deploy.host.rpc import encode_error
from deploy.provision.probe import PROBE_COMMAND, fed_input, pack_program, parse_probe
from deploy.transport.base import Completed

PROGRAM = pack_program()


def probe(query, *, command=PROBE_COMMAND, env=None):
    """
    Run the probe in the shell of this machine; return its outcome.
    """
    process = subprocess.run(
        ["/bin/sh", "-c", command],
        input=fed_input(PROGRAM, query, Call()),
        env=env,
        capture_output=True,
        check=False,
    )
    return completed(process.stdout.decode(), process.returncode, process.stderr.decode())


def completed(stdout="", returncode=0, stderr=""):
    return Completed((), returncode, stdout, stderr, 0.1)


def test_the_program_needs_nothing_on_the_host_but_python(tmp_path):
    """
    It works with an empty directory and environment, and writes no file.
    """
    there = tmp_path / "there"
    there.write_text("text")
    query = FactQuery(paths={str(there): "0" * 64, "/nowhere": ""}, room=("/",))
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    facts = parse_probe("n1", query, probe(query, env=env))
    assert facts.paths["/nowhere"] is None
    assert facts.paths[str(there)].text == "text"
    assert facts.has_apt is Path("/usr/bin/apt-get").exists()
    assert facts.room["/"] > 0
    assert list(tmp_path.iterdir()) == [there]


def test_a_host_without_python_has_no_facts():
    """
    This is an outcome of its own, not an error.
    """
    query = FactQuery()
    command = PROBE_COMMAND.replace(layout.PYTHON, "/nowhere/python3")
    assert parse_probe("n1", query, probe(query, command=command)) is None


def test_another_python_in_the_path_does_not_run(tmp_path):
    """
    The host's own does: the first of the PATH may be older, or of another user.
    """
    other = tmp_path / "python3"
    other.write_text("#!/bin/sh\necho 'SyntaxError: invalid syntax' >&2\nexit 1\n")
    other.chmod(0o755)
    query = FactQuery()
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert subprocess.run(["python3"], env=env, capture_output=True, check=False).returncode == 1
    assert parse_probe("n1", query, probe(query, env=env)).machine


def test_what_a_login_shell_prints_is_ignored():
    """
    Before and after the answer.
    """
    query = FactQuery()
    noisy = probe(query, command=f"echo 'Welcome {{to}} n1'; ({PROBE_COMMAND}); echo bye")
    assert noisy.stdout.startswith("Welcome")
    assert parse_probe("n1", query, noisy).machine


def test_an_error_of_the_host_program_keeps_its_kind():
    """
    The controller raises the class of the kind, with the host's name.
    """
    line = encode_error(HostError(ErrorKind.PRECONDITION, "no dpkg", "it is gone", "evil | sh"))
    with pytest.raises(PreconditionError) as caught:
        parse_probe("n1", FactQuery(), completed(line))
    assert caught.value.why == 'n1 says: "no dpkg: it is gone"'
    assert "evil" not in str(caught.value)


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (
            completed(returncode=1, stderr="sudo: a password is required\n"),
            "a password is required",
        ),
        (completed(returncode=1), "exit status 1; n1 says nothing"),
        (completed("Welcome\n"), "Welcome"),
        (completed(json.dumps({"ok": True, "schema": SCHEMA, "result": {}})), "missing"),
    ],
)
def test_an_answer_that_cannot_be_read_is_a_failed_command(outcome, why):
    """
    The error has the host's output.
    """
    with pytest.raises(CommandFailed) as caught:
        parse_probe("n1", FactQuery(), outcome)
    assert why in caught.value.why
    assert caught.value.host == "n1"


def test_the_command_line_holds_no_part_of_the_query():
    """
    Paths and hashes travel on standard input: users of the host see command lines.
    """
    content = fed_input(PROGRAM, FactQuery(paths={"/etc/slipway/environment": "ab" * 32}), Call())
    assert b"ab" * 32 in content
    assert "environment" not in PROBE_COMMAND
