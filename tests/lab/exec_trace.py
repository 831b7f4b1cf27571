"""
Traces which programs start on a lab host, and as which user.
"""

import re
import signal
import subprocess
import time
from pathlib import Path

from deploy.lab import lab

CALLS = "execve,execveat,setuid,setreuid,setresuid,clone,clone3,fork,vfork"
_LINE = re.compile(r"^(\d+) +(.*)$")
_PROGRAM = re.compile(r'^execve(?:at)?\((?:AT_FDCWD, |\d+(?:<[^>]*>)?, )?"([^"]*)", (\[.*?\])')
_BECOMES = re.compile(r"^set(?:re|res)?uid\((?:-1, )*(\d+)")
_CHILD = re.compile(r"^(?:clone3?|v?fork)\(.* = (\d+)(?: /\* (\d+) in strace's PID NS \*/)?")


class ExecTrace:
    """
    strace on every process of a host, and on those that they start.

    Attributes:
        starts: (user id, program, arguments as strace prints them) of each program that was
            started, once the trace has ended.
    """

    def __init__(self, host, config, directory):
        self._output = directory / "trace"
        pids = [arg for pid in _processes(host, config) for arg in ("-p", str(pid))]
        self._strace = subprocess.Popen(
            ["strace", "-f", "-qq", "--pidns-translation", "-s", "300", "-e", f"trace={CALLS}",
             "-o", str(self._output), *pids],
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self.starts = []

    def __enter__(self):
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            traced = Path(f"/proc/{self._strace.pid}/status")
            assert self._strace.poll() is None, self._strace.stderr.read()
            if traced.exists() and self._output.exists():
                break
            time.sleep(0.1)
        time.sleep(1)  # until it has attached to all
        return self

    def __exit__(self, *_):
        self._strace.send_signal(signal.SIGINT)
        self._strace.wait(30)
        self._strace.stderr.close()
        self.starts = list(_starts(self._output.read_text(errors="replace").splitlines()))


def _processes(host, config):
    leader = next(h.leader for h in lab.status(config=config).hosts if h.name == host)
    namespace = Path(f"/proc/{leader}/ns/pid").readlink()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns" / "pid").readlink() == namespace:
                yield int(entry.name)
        except OSError:
            continue


def _starts(lines):
    """
    Yield the starts in *lines*: a process has the user of the one that made it, until it changes.

    A process that existed before the trace is root's, which errs on the side of an alarm.
    """
    calls = list(_whole_calls(lines))
    # First, because a child of vfork runs before the call of its parent returns.
    parents = {
        child[2] or child[1]: pid
        for pid, text in calls
        if (child := _CHILD.match(text)) is not None
    }
    users = {}

    def user(pid):
        while pid is not None and pid not in users:
            pid = parents.get(pid)
        return users.get(pid, 0)

    for pid, text in calls:
        if (program := _PROGRAM.match(text)) and " = -1 " not in text:
            yield user(pid), program[1], program[2]
        elif (becomes := _BECOMES.match(text)) and text.endswith("= 0"):
            users[pid] = int(becomes[1])
        elif child := _CHILD.match(text):
            users.setdefault(child[2] or child[1], user(pid))


def _whole_calls(lines):
    """
    Yield (pid, call) with the parts of an interrupted line joined; a program starts where its call
    begins, other calls count when they end.
    """
    unfinished = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        pid, text = match.groups()
        if text.endswith("<unfinished ...>"):
            unfinished[pid] = text.removesuffix("<unfinished ...>")
            if text.startswith("execve"):
                yield pid, f"{unfinished[pid]}) = 0"
        elif text.startswith("<... "):
            whole = unfinished.pop(pid, "") + text.partition("resumed>")[2]
            if not whole.startswith("execve"):
                yield pid, whole
        else:
            yield pid, text
