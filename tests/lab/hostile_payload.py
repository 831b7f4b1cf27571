"""
What a hostile wheel runs wherever a Python starts that has it: tries to get out, and notes how far.

The text of this module becomes a module of a wheel; it may import the standard library only.
"""

# ruff: noqa: PTH101, PTH116, PTH123, PTH208, SIM115
import ctypes
import json
import os
import socket
import subprocess
import sys
import time


def attempt(work):
    try:
        return f"done: {work()!r}"[:100]
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:100]


def read(path):
    with open(path, "rb") as file:
        return len(file.read())


def write(path):
    with open(path, "ab") as file:
        file.write(b"%d\n" % os.geteuid())
    return path


def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        client.connect(address)


def daemon(path):
    """
    Leave a process that outlives its parent, in a session of its own.
    """
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for _ in range(600):
                write(path)
                time.sleep(0.1)
        os._exit(0)


def io_uring():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(425, 1, ctypes.create_string_buffer(256)) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")


def set_uid_copy(path):
    with open(path, "wb") as file:
        file.write(b"#!/bin/sh\n")
    os.chmod(path, 0o4755)
    return oct(os.stat(path).st_mode)


def note():
    status = dict(
        line.split(":", 1) for line in open("/proc/self/status").read().splitlines() if ":" in line
    )
    return {
        "argv": sys.orig_argv,
        "uid": status["Uid"].split(),
        "groups": status["Groups"].split(),
        "capabilities": status["CapBnd"].strip(),
        "no_new_privileges": status["NoNewPrivs"].strip(),
        "interfaces": sorted(
            line.split(":")[0].strip() for line in open("/proc/self/net/dev") if ":" in line
        ),
        "processes": attempt(lambda: sorted(p for p in os.listdir("/proc") if p.isdigit())[:3]),
        "secrets": attempt(lambda: read("/etc/slipway/environment")),
        "signers": attempt(lambda: read("/etc/slipway/allowed_signers")),
        "shadow": attempt(lambda: read("/etc/shadow")),
        "journal": attempt(lambda: read("/var/lib/slipway/journal.jsonl")),
        "releases": attempt(lambda: os.listdir("/opt/slipway/releases")),
        "models": attempt(lambda: os.listdir("/var/lib/slipway/models")),
        "tcp": attempt(lambda: connect(socket.AF_INET, ("127.0.0.1", 22))),
        "bus": attempt(lambda: connect(socket.AF_UNIX, "/run/dbus/system_bus_socket")),
        "systemd": attempt(lambda: connect(socket.AF_UNIX, "/run/systemd/private")),
        "haproxy": attempt(lambda: connect(socket.AF_UNIX, "/run/slipway/haproxy.sock")),
        "io_uring": attempt(io_uring),
        "wheelhouse": attempt(lambda: write("/opt/slipway/wheelhouse/hostile-mark")),
        "programs": attempt(lambda: write("/opt/slipway/bin/hostile-mark")),
        "root": attempt(lambda: write("/root/hostile-mark")),
        "cron": attempt(lambda: write("/etc/cron.d/hostile-mark")),
        "var": attempt(lambda: write("/var/tmp/hostile-mark")),
        "tmp": attempt(lambda: write("/tmp/hostile-mark")),
        "memory": attempt(lambda: write("/dev/shm/hostile-mark")),
        "set_uid": attempt(lambda: set_uid_copy(f"{sys.prefix}/set-uid")),
        "device": attempt(lambda: os.mknod(f"{sys.prefix}/device", 0o20666, os.makedev(1, 1))),
        "hard_link": attempt(lambda: os.link("/etc/passwd", f"{sys.prefix}/passwd")),
        "sudo": attempt(lambda: subprocess.run(["su", "-c", "id"], stdin=0, timeout=5).returncode),
        "daemon": attempt(lambda: daemon(f"{sys.prefix}/alive")),
    }


# Every start of a Python that has the wheel is noted, whoever starts it.
attempt(lambda: write("/var/tmp/hostile-started"))
attempt(lambda: write("/root/hostile-started"))
if os.access(sys.prefix, os.W_OK):
    with open(f"{sys.prefix}/report.jsonl", "a") as report:
        report.write(json.dumps(note()) + "\n")
