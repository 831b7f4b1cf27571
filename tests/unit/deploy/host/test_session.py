"""
A session with real processes: calls by number, outputs, deadlines, and the ends of a session.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.host.session import GREETING

# A program whose verbs need no host.
PROGRAM = """
import os, signal, subprocess, sys, time
sys.path.insert(0, {root!r})
from deploy.host.session import Session

seen = []

def run(verb, text):
    seen.append(verb)
    if verb == "echo":
        print(text, end="")
    elif verb == "count":
        print(len(seen), end="")
    elif verb == "gate":
        open(text).read()  # a named pipe: until the test writes
        print("through", end="")
    elif verb == "mark":
        path, gate = text.split()
        open(gate).read()
        open(path, "w").write("done")
    elif verb == "crash":
        print("before", end="")
        raise RuntimeError("no such luck")
    elif verb == "killed":
        sys.stdout.write("half"); sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "hang":
        signal.signal(signal.SIGTERM, lambda *_: None if text == "stubborn" else sys.exit(9))
        while True:
            signal.pause()
    elif verb == "leave":  # a process that outlives the call and keeps its outputs
        child = subprocess.Popen(["sleep", "60"])
        print(child.pid, end="")
    elif verb == "files":
        print(len(os.listdir("/proc/self/fd")), end="")
    return 3 if text == "three" else 0

def prepare(verb):
    if verb == "missing":
        raise ImportError("no module for it")

source, sink = os.dup(0), os.dup(1)
session = Session(source, sink, program={program!r}, run=run, prepare=prepare, idle_s={idle},
                  kill_after_s=0.1)
sys.exit(session.serve())
"""


class Caller:
    def __init__(self, folder, idle_s=60.0):
        self.program = folder / "program"
        self.program.write_text("1")
        root = str(Path.cwd())
        code = PROGRAM.format(root=root, program=str(self.program), idle=idle_s)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.number = 0

    def send(self, verb, text="", timeout_s=30.0):
        self.number += 1
        body = text.encode()
        head = {"id": self.number, "verb": verb, "timeout_s": timeout_s, "size": len(body)}
        self.process.stdin.write(json.dumps(head).encode() + b"\n" + body)
        self.process.stdin.flush()
        return self.number

    def greeting(self):
        return self.process.stdout.readline()

    def answer(self):
        """
        Return the next answer: number, status, stdout, stderr; or number and "again".
        """
        head = json.loads(self.process.stdout.readline())
        if head.get("again"):
            return head["id"], "again"
        out, err = (self.process.stdout.read(head[name]).decode() for name in ("stdout", "stderr"))
        return head["id"], head["status"], out, err

    def call(self, verb, text="", timeout_s=30.0):
        number = self.send(verb, text, timeout_s)
        found = self.answer()
        assert found[0] == number
        return found[1:]


@pytest.fixture
def make(tmp_path):
    callers = []

    def one(**options):
        callers.append(Caller(tmp_path, **options))
        assert callers[-1].greeting() == GREETING
        return callers[-1]

    yield one
    for caller in callers:
        caller.process.kill()
        caller.process.wait()
        caller.process.stdin.close()
        caller.process.stdout.close()


def test_a_call_has_its_own_outputs_and_status(make):
    caller = make()
    assert caller.call("echo", "grüße") == (0, "grüße", "")
    assert caller.call("echo", "three") == (3, "three", "")
    assert caller.call("echo", "x" * 300_000)[1] == "x" * 300_000


def test_a_call_sees_nothing_of_the_calls_before(make):
    """
    Each is a process of its own: what one sets, the next does not have.
    """
    caller = make()
    assert [caller.call("count")[1] for _ in range(3)] == ["1", "1", "1"]


def test_a_call_has_only_its_three_files(make):
    caller = make()
    os.mkfifo(caller.program.with_name("gate"))
    caller.send("gate", str(caller.program.with_name("gate")))  # one that runs meanwhile
    assert caller.call("files")[1] == "4"  # and the one that lists them
    caller.program.with_name("gate").write_text("")
    assert caller.answer()[2] == "through"


def test_a_slow_call_keeps_no_other_waiting(make, tmp_path):
    caller = make()
    os.mkfifo(tmp_path / "gate")
    slow = caller.send("gate", str(tmp_path / "gate"))
    assert caller.call("echo", "quick")[1] == "quick"
    (tmp_path / "gate").write_text("")
    assert caller.answer() == (slow, 0, "through", "")


def test_calls_may_come_before_the_greeting_and_in_pieces(make):
    caller = make()
    body = b'{"id": 1, "verb": "echo", "timeout_s": 9, "size": 2}\nhi'
    for at in range(len(body)):
        caller.process.stdin.write(body[at : at + 1])
        caller.process.stdin.flush()
    assert caller.answer() == (1, 0, "hi", "")


@pytest.mark.parametrize(("verb", "status", "out", "err"), [
    ("crash", 1, "before", "RuntimeError: no such luck"),
    ("killed", 128 + signal.SIGKILL, "half", ""),
    ("missing", 1, "", "ImportError: no module for it"),
])  # fmt: skip
def test_a_call_that_breaks_is_answered_and_the_next_runs(make, verb, status, out, err):
    caller = make()
    found = caller.call(verb)
    assert found[:2] == (status, out)
    assert err in found[2]
    assert caller.call("echo", "next") == (0, "next", "")


@pytest.mark.parametrize(("text", "status"), [("gentle", 9), ("stubborn", 128 + signal.SIGKILL)])
def test_a_call_is_ended_at_its_deadline(make, text, status):
    """
    With SIGTERM, and with SIGKILL where it does not go.
    """
    caller = make()
    assert caller.call("hang", text, timeout_s=0.1)[0] == status
    assert caller.call("echo", "next")[1] == "next"


def test_a_process_that_a_call_leaves_behind_delays_no_answer(make):
    status, pid, _ = make().call("leave")
    os.kill(int(pid), signal.SIGKILL)
    assert status == 0


def test_a_call_ends_though_its_caller_has_gone(make, tmp_path):
    """
    A lost connection stops no change half-way.
    """
    caller = make()
    os.mkfifo(tmp_path / "gate")
    caller.send("mark", f"{tmp_path}/marked {tmp_path}/gate")
    assert caller.call("echo", "it runs")[1] == "it runs"
    caller.process.stdin.close()
    (tmp_path / "gate").write_text("")
    assert caller.process.wait(60) == 0
    assert (tmp_path / "marked").read_text() == "done"


def test_a_session_ends_with_its_caller(make):
    caller = make()
    caller.process.stdin.close()
    assert caller.process.wait(60) == 0


def test_a_session_nobody_uses_ends(make):
    """
    The caller's machine may have gone without a word.
    """
    assert make(idle_s=0.1).process.wait(60) == 0


def test_a_replaced_program_runs_no_call(make):
    """
    Its modules are read from that file: the rest of them would be of another release.
    """
    caller = make()
    assert caller.call("echo", "before")[1] == "before"
    other = caller.program.with_name("other")
    other.write_text("2")
    other.replace(caller.program)
    assert caller.call("echo", "after") == ("again",)
    assert caller.call("echo", "after") == ("again",)


@pytest.mark.parametrize("line", [
    b"GET / HTTP/1.1\n", b"{}\n", b'{"id": true, "verb": "echo", "timeout_s": 1, "size": 0}\n',
    b'{"id": 1, "verb": "echo", "timeout_s": NaN, "size": 0}\n',
    b'{"id": 1, "verb": "echo", "timeout_s": 1, "size": 99999999999}\n',
    b'{"id": 1, "verb": "echo", "timeout_s": 1, "size": -1}\n', b"[" * 5000, b"[" * 3000 + b"\n",
])  # fmt: skip
def test_what_is_no_call_ends_the_session(make, line):
    caller = make()
    caller.process.stdin.write(line)
    caller.process.stdin.flush()
    assert caller.process.wait(60) == 2
