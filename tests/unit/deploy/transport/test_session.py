"""
Calls that share a session, against a server on this machine.
"""

import json
import os
import shlex
import sys
import threading
from pathlib import Path

import pytest

from deploy.bundle.host_program import build_host_program
from deploy.errors import DeployError, PreconditionError, TransportError
from deploy.host import layout
from deploy.host.protocol import LeaseRelease
from deploy.host.session import GREETING
from deploy.transport.client import HostClient
from deploy.transport.session import SessionTransport

# The program that the tests call, with verbs that need no host.
PROGRAM = """
import os, sys, time
sys.path.insert(0, {root!r})
from deploy.host.session import Session

def run(verb, text):
    if verb == "echo":
        print(text, end="")
    elif verb == "gate":
        print(open(text).read(), end="")
    elif verb == "drop":  # the session dies, with what it runs
        os.kill(os.getppid(), 9)
        time.sleep(60)
    return 0

source, sink = os.dup(0), os.dup(1)
os.write(sink, {before!r})
program = {program!r}
sys.exit(Session(source, sink, program=program, run=run, prepare=lambda verb: None).serve())
"""
HOSTILE = {
    "no JSON": b"hello\n",
    "no object": b"[1]\n",
    "no call": b'{"id": 7, "status": 0, "stdout": 0, "stderr": 0}\n',
    "a number that is none": b'{"id": [1], "status": 0, "stdout": 0, "stderr": 0}\n',
    "true": b'{"id": true, "status": 0, "stdout": 0, "stderr": 0}\n',
    "no sizes": b'{"id": 1, "status": 0}\n',
    "no status": b'{"id": 1, "stdout": 0, "stderr": 0}\n',
    "a negative size": b'{"id": 1, "status": 0, "stdout": -5, "stderr": 0}\n',
    "too long": b'{"id": 1, "status": 0, "stdout": 99999999999, "stderr": 0}\n',
    "too long errors": b'{"id": 1, "status": 0, "stdout": 0, "stderr": 99999999999}\n',
    "a deep line": b"[" * 4000 + b"\n",
    "no end": b"x" * 50_000,
    "half an answer": b'{"id": 1, "status": 0, "stdout": 50, "stderr": 0}\nhalf',
}


@pytest.fixture
def connect(sshd, tmp_path):
    """
    Return transports to the server whose sessions run PROGRAM; closed at the end.
    """
    opened = []

    def make(before=b"", command=None):
        transport = SessionTransport(sshd.host(), sudo=False)
        program = tmp_path / "program"
        program.touch()
        code = PROGRAM.format(root=str(Path.cwd()), before=before, program=str(program))
        transport._command = command or shlex.join([sys.executable, "-I", "-c", code])
        opened.append(transport)
        return transport

    yield make
    for transport in opened:
        transport.close()


def call(transport, verb, text="", *, timeout_s=20.0, output_max=2**20):
    argv = [*layout.HOST_COMMAND, verb]
    return transport.run(
        argv, timeout_s=timeout_s, stdin=text.encode(), check=False, output_max=output_max
    )


def says(lines, times=1):
    """
    Return a command that prints *lines* so many times and reads what it gets.
    """
    code = (
        f"import sys; sys.stdout.buffer.write({lines!r} * {times}); sys.stdout.flush(); "
        "sys.stdin.read()"
    )
    return shlex.join([sys.executable, "-I", "-c", code])


def test_calls_share_one_command(sshd, connect):
    transport = connect()
    for text in ("one", "two", "grüße"):
        done = call(transport, "echo", text)
        assert (done.returncode, done.stdout, done.stderr) == (0, text, "")
    assert (sshd.logins, len(sshd.commands), transport.commands) == (1, 1, 1)


def test_other_commands_are_commands(sshd, connect):
    """
    Only calls of the host program go through the session, and those that want a status back.
    """
    transport = connect()
    assert transport.run(["echo", "hi"], timeout_s=20).stdout == "hi\n"
    with pytest.raises(DeployError):
        transport.run([*layout.HOST_COMMAND, "echo"], timeout_s=20)
    assert len(sshd.commands) == 2


@pytest.mark.parametrize("before", [b"Welcome!\n\nquota: 3%\n", b"\x1b]0;title\a", b"{}\n"])
def test_what_a_login_shell_prints_is_skipped(connect, before):
    """
    Also without an end of line: what hid the greeting would let a call run unseen.
    """
    assert call(connect(before=before), "echo", "hi").stdout == "hi"


def test_a_command_that_may_have_run_calls_is_not_taken_for_none(connect, sshd):
    """
    It ended well, or answered, without a greeting: the call is not run again as a command.
    """
    answer = json.dumps({"id": 1, "status": 0, "stdout": 0, "stderr": 0})
    for end in ("exit 0", f"echo {shlex.quote(answer)}; exit 1"):
        with pytest.raises(TransportError) as caught:
            call(connect(command=f"head -n 1 > /dev/null; {end}"), "echo")
        assert "it may have run" in caught.value.fix
    assert not any(command.startswith("timeout") for command in sshd.commands)


def test_what_a_host_prints_beside_its_answers_is_not_kept(connect):
    """
    paramiko keeps all of an output that nobody reads: it would grow with what a host sends.
    """
    code = "import sys, time; sys.stderr.write('x' * 4_000_000); time.sleep(60)"
    transport = connect(command=shlex.join([sys.executable, "-I", "-c", code]))
    with pytest.raises(TransportError) as caught:
        call(transport, "echo")
    assert "the host sent" in caught.value.why


def test_a_session_that_answers_no_more_is_replaced(connect, tmp_path, sshd):
    """
    While another command keeps the connection, too.
    """
    transport = connect(command=says(GREETING))
    os.mkfifo(tmp_path / "gate")
    other = threading.Thread(
        target=lambda: transport.run(["cat", str(tmp_path / "gate")], timeout_s=20)
    )
    other.start()
    while not sshd.commands:
        pass
    for _ in range(3):  # it greets in the first one
        with pytest.raises(TransportError):
            call(transport, "echo", timeout_s=2.0)
    (tmp_path / "gate").write_text("")
    other.join(60)
    assert (sshd.logins, len(sshd.commands)) == (1, 3)


def test_a_call_after_the_end_of_a_session_has_a_new_one(connect, tmp_path):
    """
    The end waits for a call that runs; what comes meanwhile is sent elsewhere.
    """
    transport, found = connect(), []
    os.mkfifo(tmp_path / "gate")
    slow = threading.Thread(
        target=lambda: found.append(call(transport, "gate", str(tmp_path / "gate")))
    )
    slow.start()
    while not (transport._current and transport._current[1]._pending):
        pass
    transport._current[1].leave()
    assert call(transport, "echo", "new").stdout == "new"
    (tmp_path / "gate").write_text("through")
    slow.join(60)
    assert found[0].stdout == "through"


def test_a_slow_call_keeps_no_other_waiting(connect, tmp_path):
    transport, found = connect(), []
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    slow = threading.Thread(target=lambda: found.append(call(transport, "gate", str(gate))))
    slow.start()
    assert call(transport, "echo", "quick").stdout == "quick"
    gate.write_text("through")
    slow.join(60)
    assert found[0].stdout == "through"


def test_a_call_without_an_answer_ends_at_its_deadline(sshd, connect, tmp_path):
    """
    Alone it gives the connection up; the next call has a new one.
    """
    transport = connect()
    assert call(transport, "echo", "first").stdout == "first"
    os.mkfifo(tmp_path / "gate")
    with pytest.raises(TransportError) as caught:
        call(transport, "gate", str(tmp_path / "gate"), timeout_s=0.5)
    assert "no answer within" in caught.value.why
    assert call(transport, "echo", "again").stdout == "again"
    assert sshd.logins == 2


def test_a_call_that_is_given_up_takes_no_other_along(sshd, connect, tmp_path):
    transport, found = connect(), []
    for name in ("one", "two"):
        os.mkfifo(tmp_path / name)
    call(transport, "echo")
    other = threading.Thread(
        target=lambda: found.append(call(transport, "gate", str(tmp_path / "one")))
    )
    other.start()
    while not transport._current[0].users:
        pass
    with pytest.raises(TransportError, match="no answer"):
        call(transport, "gate", str(tmp_path / "two"), timeout_s=0.5)
    (tmp_path / "one").write_text("kept")
    other.join(60)
    assert found[0].stdout == "kept"
    (tmp_path / "two").write_text("late")  # the late answer is nobody's
    assert call(transport, "echo", "next").stdout == "next"
    assert sshd.logins == 1


def test_a_session_that_dies_leaves_its_calls_unknown(connect):
    """
    They may have run: they are not run again.  The next call has a new session.
    """
    transport = connect()
    with pytest.raises(TransportError) as caught:
        call(transport, "drop")
    assert "it may have run" in caught.value.fix
    assert call(transport, "echo", "next").stdout == "next"


def test_a_lost_connection_leaves_its_call_unknown(sshd, connect, tmp_path):
    transport, found = connect(), []
    os.mkfifo(tmp_path / "gate")

    def wait():
        try:
            call(transport, "gate", str(tmp_path / "gate"))
        except DeployError as error:
            found.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not (sshd.commands and transport._current and transport._current[1]._pending):
        pass
    sshd.drop()
    waiting.join(60)
    assert isinstance(found[0], TransportError)
    assert call(transport, "echo", "next").stdout == "next"


def test_a_replaced_program_gets_a_new_session(sshd, connect, tmp_path):
    transport = connect()
    call(transport, "echo")
    (tmp_path / "other").write_text("other")
    (tmp_path / "other").replace(tmp_path / "program")
    assert call(transport, "echo", "again").stdout == "again"
    assert (sshd.logins, len(sshd.commands)) == (1, 2)


def test_a_host_without_sessions_gets_commands(sshd, connect):
    """
    An older program, none, or a sudo that lets only the program itself pass.
    """
    transport = connect(command="echo 'no module named deploy.host.session' >&2; exit 1")
    client = HostClient(transport, actor="me", sudo=False)
    for _ in range(2):
        with pytest.raises(PreconditionError, match="not provisioned"):
            client.call(LeaseRelease())
    assert [c.startswith("timeout") for c in sshd.commands] == [False, True, True]


def test_a_session_that_ends_before_its_greeting_is_not_tried_twice(sshd, connect):
    """
    Only a command that ended by itself has run nothing: a lost connection says nothing.
    """
    transport, found = connect(command="sleep 60"), []

    def wait():
        try:
            call(transport, "echo")
        except DeployError as error:
            found.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not (transport._current and transport._current[1]._pending):
        pass
    sshd.drop()
    waiting.join(60)
    assert isinstance(found[0], TransportError)
    assert len(sshd.commands) == 1


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_answer_that_is_none_ends_the_session(connect, kind):
    """
    One clear error, in time, and nothing of it is taken for an answer.
    """
    transport = connect(command=says(GREETING + HOSTILE[kind]))
    timeout_s = 1.0 if kind == "half an answer" else 20.0
    with pytest.raises(TransportError) as caught:
        call(transport, "echo", "hi", timeout_s=timeout_s)
    assert caught.value.host == "n1"
    assert ("no answer within" in caught.value.why) is (kind == "half an answer")


def test_a_host_that_never_greets_is_given_up(connect):
    with pytest.raises(TransportError):
        call(connect(command=says(b"welcome\n", 20_000)), "echo")


def test_an_output_longer_than_the_call_allows_is_refused(connect):
    with pytest.raises(TransportError) as caught:
        call(connect(), "echo", "x" * 5000, output_max=1000)
    assert "channel was closed" in caught.value.why


def test_the_real_program_answers(sshd, tmp_path, monkeypatch):
    """
    The installed file serves sessions: its answers, and its errors, are those of a command.
    """
    program = tmp_path / "slipway-host.pyz"
    program.write_bytes(build_host_program())
    command = (sys.executable, "-I", str(program))
    monkeypatch.setattr(layout, "HOST_PROGRAM", str(program))
    monkeypatch.setattr(layout, "HOST_COMMAND", command)
    transport = SessionTransport(sshd.host(), sudo=False)
    try:
        answers = [call(transport, "status", text) for text in ('{"schema": 1, "args": {}}', "[")]
        alone = [
            transport.run([*command, "status"], timeout_s=20, stdin=text.encode())
            for text in ('{"schema": 1, "args": {}}', "[")
        ]
    finally:
        transport.close()
    assert [a.stdout for a in answers] == [a.stdout for a in alone]
    assert [json.loads(a.stdout)["ok"] for a in answers] == [False, False]
    assert len(sshd.commands) == 3
