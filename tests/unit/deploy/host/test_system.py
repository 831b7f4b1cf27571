"""
Programs that the host program runs: bounded in time and output.
"""

import os
import subprocess
import sys
import threading

import pytest

from deploy.host import system as systems
from deploy.host.protocol import HostError
from deploy.host.system import System


def run(code, **more):
    return System().run([sys.executable, "-I", "-c", code], **{"timeout_s": 30, **more})


def test_output_status_and_input_are_those_of_the_program():
    """
    Input of any size, to a program that reads it and to one that does not.
    """
    echo = "import sys; print(len(sys.stdin.read())); print('e', file=sys.stderr); sys.exit(3)"
    assert run(echo, stdin=b"x" * 300_000) == (3, "300000\n", "e\n")
    assert run("pass", stdin=b"x" * 300_000) == (0, "", "")


def test_output_without_end_takes_no_memory(monkeypatch):
    """
    The first part is kept; the program may write all of it and end.
    """
    monkeypatch.setattr(systems, "OUTPUT_MAX", 1000)
    flood = "import sys; sys.stdout.write('a' * 2_000_000); print('b', file=sys.stderr)"

    result = run(flood)

    assert (result.returncode, result.stdout, result.stderr) == (0, "a" * 1000, "b\n")


def test_a_program_is_killed_at_its_deadline():
    """
    Its last words are in the error.
    """
    with pytest.raises(HostError, match="did not end within 1 s") as caught:
        System().run(["sh", "-c", "echo so far >&2; exec sleep 600"], timeout_s=1.0)

    assert caught.value.kind == "CommandFailed"


def test_a_child_that_keeps_the_output_open_delays_no_one(tmp_path):
    """
    The program has ended; what it left behind holds the pipe.
    """
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = (
        "import os\n"
        f"if os.fork() == 0:\n    open({str(pipe)!r}).read(); os._exit(0)\n"
        "print('parent', flush=True)"
    )
    done = threading.Event()
    results = []

    def work():
        results.append(run(code, timeout_s=5.0))
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert done.wait(60)
    finally:
        pipe.write_text("")  # the child ends
        thread.join()
    assert results[0].stdout == "parent\n"


def test_a_missing_program_is_named():
    with pytest.raises(HostError, match="/nowhere/x is not installed"):
        System().run(["/nowhere/x"], timeout_s=1)


def test_a_missing_user_is_named():
    """
    An older provisioning made no build user.
    """
    with pytest.raises(HostError, match="no user slipway-nobody") as caught:
        System().account("slipway-nobody")

    assert caught.value.fix == "inv provision"
    account = System().account("root")
    assert (account.uid, account.gid) == (0, 0)


def test_the_processes_of_a_user_are_found():
    """
    This one is of its user.
    """
    assert os.getpid() in System().processes_of(os.geteuid())
    assert System().processes_of(4_000_000_000) == []


@pytest.mark.parametrize("name", [b"\xff\xfe", b"x\x0bUid:\t9 9 9"], ids=["not UTF-8", "an id"])
def test_the_name_of_a_process_hides_none(name):
    """
    It is bytes of the process's own choice, in the file that has its user.
    """
    script = "import ctypes, sys; ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0)"
    wait = "print('named', flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", f"{script}; {wait}", name.hex()]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as named:
        assert named.stdout.readline() == b"named\n"

        assert named.pid in System().processes_of(os.geteuid())
        named.stdin.close()


def test_an_interpreter_is_the_hosts_own(tmp_path, monkeypatch):
    """
    Found below /usr, whatever PATH says.
    """
    fake = tmp_path / "python3.77"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert System().interpreter("3.77") is None
