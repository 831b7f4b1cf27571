"""
A runtime with an intruder: takes the place of runtime/__main__.py in a bundle.

The honest one is beside it as runtime/honest.py.  MODE in the bundle's runtime/mode.py says when
the intruder takes over: "start" (it never serves), "link" (it plants links in place of its socket
and is READY) or "trigger" (honest until the file `go` appears in its home directory).

It uses the standard library only, has the rights of its slot, and reports in its log what it tried.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import stat
import sys
import threading
import time
from pathlib import Path

HOME = Path(os.environ["HOME"])
SOCKET = Path(os.environ["SLIPWAY_SOCKET"])
SLOT = os.environ["SLIPWAY_SLOT"]
OTHER = {"blue": "green", "green": "blue"}[SLOT]
TRIGGER = HOME / "go"
SHARED = Path("/dev/shm/from-the-other-slot")


def notify(*lines):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto("\n".join(lines).encode(), os.environ["NOTIFY_SOCKET"])


def outcome(work, *args):
    """
    Return "done", or the name of the error that the kernel answered.
    """
    try:
        work(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "done"


def connect(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.settimeout(5)
        one.connect(path)


def fill(folder):
    """
    Write into *folder* until it is full; return the bytes.
    """
    total = 0
    try:
        with (folder / "junk").open("wb", buffering=0) as file:
            while total < 1 << 33:
                total += file.write(b"x" * (1 << 20))
    except OSError:
        pass
    return total


def files(folder):
    """
    Make empty files in *folder* until none is left; return their number.
    """
    number = 0
    try:
        for number in range(1 << 20):
            os.close(os.open(folder / f"f{number}", os.O_CREAT | os.O_WRONLY))
    except OSError:
        pass
    return number


def signals():
    """
    Return the processes beside its own that accept a signal.
    """
    own = {os.getpid()}
    reached = []
    for pid in range(1, 70000):
        if pid in own:
            continue
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            if not is_own(pid):
                reached.append(pid)
    return reached


def is_own(pid):
    try:
        cgroups = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False
    return f"slipway-runtime@{SLOT}" in cgroups


def memories():
    """
    Return the processes of others whose memory it can open.
    """
    opened = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and not is_own(int(entry.name)):
            with contextlib.suppress(OSError):
                os.close(os.open(entry / "mem", os.O_RDWR))
                opened.append(entry.name)
    return opened


def report():
    """
    Try everything once and log the results on one line.
    """
    other, run = f"/run/slipway/{OTHER}", "/run/slipway"
    tried = {
        "connect_other": outcome(connect, f"{other}/runtime.sock"),
        "connect_other_private": outcome(connect, f"{run}/private/{OTHER}/runtime.sock"),
        "connect_haproxy": outcome(connect, f"{run}/haproxy.sock"),
        "connect_systemd": outcome(connect, "/run/systemd/private"),
        "connect_dbus": outcome(connect, "/run/dbus/system_bus_socket"),
        "link_public": outcome(os.symlink, "/run/slipway/haproxy.sock", f"{run}/{SLOT}/x.sock"),
        "unlink_public": outcome(os.unlink, f"{run}/{SLOT}/runtime.sock"),
        "link_private": outcome(os.symlink, "/", f"{run}/private/{SLOT}/x"),
        "rename_home": outcome(os.rename, HOME, HOME.with_name("away")),
        "write_release": outcome((Path.cwd() / "x").touch),
        "write_state": outcome(Path("/var/lib/slipway/x").touch),
        "read_secrets": outcome(Path("/etc/slipway/environment").read_bytes),
        "read_weights": outcome(lambda: list(Path.cwd().iterdir())),
        "write_lock": outcome(Path("/run/lock/x").touch),
        "shared_memory": SHARED.exists(),
        "signals": signals(),
        "memories": memories(),
        "groups": sorted(os.getgroups()),
    }
    SHARED.with_name(f"from-the-other-slot-{SLOT}").touch()
    tried["filled"] = {str(d): fill(d) for d in (HOME, Path("/tmp"), Path("/var/tmp"))}
    tried["filled"]["/dev/shm"] = fill(Path("/dev/shm"))
    tried["files"] = files(SOCKET.parent)
    sys.stderr.write(f"REPORT {json.dumps(tried)}\n")
    sys.stderr.flush()


def misbehave():
    """
    Report; ignore signals, fork, extend the stop for ever, flood the log.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    for _ in range(30):
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                with contextlib.suppress(OSError):
                    os.setsid()
                while True:
                    time.sleep(3600)
    threading.Thread(target=extend, daemon=True).start()


def extend():
    report()  # before the flood, of which most lines are dropped
    number = 0
    while True:
        notify("EXTEND_TIMEOUT_USEC=600000000", "WATCHDOG=1", "WATCHDOG_USEC=3600000000")
        notify("MAINPID=1")
        notify(f"STATUS=\x1b[2J{'x' * 2000}", "ERRNO=1")
        for _ in range(500):
            sys.stderr.write(f"flood {number} \x1b[31m {'y' * 200}\n")
            number += 1
        time.sleep(0.2)


def answer(connection):
    """
    Answer one connection: ready at once, metrics without end, everything else drop by drop.
    """
    with connection, contextlib.suppress(OSError):
        request = connection.recv(65536)
        if request.startswith(b"GET /readyz"):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return
        if request.startswith(b"GET /metrics"):
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(b'slipway_http_requests_total{route="' * 4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            connection.sendall(b"[")
            time.sleep(0.5)


def serve(listener):
    listener.setblocking(True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def listening():
    """
    Return the socket on which the honest runtime listens.
    """
    for link in list(Path("/proc/self/fd").iterdir()):
        number = int(link.name)
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                one = socket.socket(fileno=os.dup(number))
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    return one
                one.close()
    raise RuntimeError("no listening socket")


def wait_for_the_trigger():
    while not TRIGGER.exists():
        time.sleep(0.1)
    listener = listening()
    listener.set_inheritable(True)
    # The same process, so systemd's main process, without the honest one's signal handlers.
    os.execv(sys.executable, [sys.executable, "-P", __file__, str(listener.fileno())])


def take_over(listener):
    misbehave()
    serve(listener)


def main():
    if len(sys.argv) > 1:
        return take_over(socket.socket(fileno=int(sys.argv[1])))
    from runtime.mode import MODE

    mode = str(MODE)
    if mode == "trigger":
        threading.Thread(target=wait_for_the_trigger, daemon=True).start()
        from runtime.honest import main as honest

        return honest()
    if mode == "link":
        SOCKET.symlink_to(f"/run/slipway/{OTHER}/runtime.sock")
        notify("READY=1")
        misbehave()
        time.sleep(3600)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(SOCKET))
    listener.listen(128)
    notify("READY=1")
    return take_over(listener)


if __name__ == "__main__":
    raise SystemExit(main())
