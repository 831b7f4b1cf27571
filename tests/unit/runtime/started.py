"""
Starts `python -m runtime` as systemd does; shared by the end-to-end tests of both engines.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[3]
DEADLINE_S = 120.0  # of any one thing that is waited for
WATCHDOG_S = 2.0


def until(condition, what):
    """
    Wait for *condition*; on timeout, fail and name *what* was awaited.
    """
    deadline_s = time.monotonic() + DEADLINE_S
    waiting = threading.Event()
    while not (result := condition()):
        assert time.monotonic() < deadline_s, f"timed out waiting for {what}"
        waiting.wait(0.01)
    return result


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Started:
    """
    One started runtime, and its messages to the service manager.

    Args:
        folder: Directory of the release, complete except for its links and its config.
        python: Python of the venv.
        env: Variables in addition to those that every runtime gets.
        port: Where it listens, instead of its socket.
    """

    def __init__(self, folder, *, model, release, name, python=sys.executable, env=None, port=None):
        (folder / "model").symlink_to(model)
        (folder / "config.yml").write_text(release)
        self.socket = folder / name
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / "notify"))
        self.manager.settimeout(DEADLINE_S)
        self.log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [str(python), "-m", "runtime", *([] if port is None else ["--port", str(port)])],
            cwd=ROOT,
            stderr=self.log,
            env=os.environ
            | {
                "SLIPWAY_SLOT": "green",
                "SLIPWAY_SOCKET": str(self.socket),
                "SLIPWAY_RELEASE_DIR": str(folder),
                "NOTIFY_SOCKET": str(folder / "notify"),
                "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6)),
            }
            | (env or {}),
        )
        self.http = self.client(self.socket)

    def client(self, path):
        transport = httpx.HTTPTransport(uds=str(path))
        return httpx.Client(transport=transport, base_url="http://runtime", timeout=DEADLINE_S)

    def next_message(self):
        """
        Return the manager's next message other than a heartbeat.
        """
        while (message := self.manager.recv(4096).decode()) == "WATCHDOG=1":
            pass
        return message

    def messages_until(self, start):
        """
        Return the messages up to the one that starts with *start*, without heartbeats.
        """
        messages = [self.next_message()]
        while not messages[-1].startswith(start):
            messages.append(self.next_message())
        return messages

    def drain(self):
        """
        Read heartbeats from now on: a full socket stops the runtime, ten beats later.
        """

        def read():
            with contextlib.suppress(OSError):  # closed, or silent for a long time
                while self.manager.recv(4096):
                    pass

        threading.Thread(target=read, daemon=True).start()

    @property
    def engine_pid(self):
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None

    def assert_that_only_the_engine_beats(self):
        """
        Assert that a stopped engine feeds no watchdog, although HTTP still answers.
        """
        assert self.manager.recv(100) == b"WATCHDOG=1"
        pid = self.engine_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            self.manager.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while self.manager.recv(100):
                    pass
            self.manager.settimeout(WATCHDOG_S * 0.6)  # more than two beats
            assert self.http.get("/livez").status_code == 200
            # The last beats of the engine may still be on their way.
            in_flight = itertools.takewhile(lambda _: self._beats(), range(3))
            assert len(list(in_flight)) < 3
        finally:
            os.kill(pid, signal.SIGCONT)
            self.manager.settimeout(DEADLINE_S)
        assert self.manager.recv(100) == b"WATCHDOG=1"

    def _beats(self):
        """
        Return True if a message comes within the time limit of the manager's socket.
        """
        try:
            return bool(self.manager.recv(100))
        except TimeoutError:
            return False

    def exit_code(self):
        return self.process.wait(DEADLINE_S)

    def logged(self):
        self.log.seek(0)
        return self.log.read()

    def close(self):
        self.http.close()
        self.process.kill()
        self.process.wait()
        self.manager.close()
        self.log.close()


@contextlib.contextmanager
def closing(runtime):
    """
    Yield *runtime* and close it; print its log if the test fails.
    """
    try:
        yield runtime
    except BaseException:
        print(runtime.logged(), file=sys.stderr)
        raise
    finally:
        runtime.close()
