"""
Two slots that count what reaches them, behind a real HAProxy with the rendered configuration.
"""

import contextlib
import re
import socket
import threading
import time
from collections import Counter

from tests.unit.deploy.provision.public_port import DEADLINE_S, PublicPort, post, read_answer

STATUS_OF = {b"500": 500, b"502": 502}
_CHECK = b"host: slipway"


CHECK_S = 0.1  # the longest time between two checks, as `quick` has it


class CountingSlot:
    """
    A slot whose behaviour is in the body of the request.

    `kill` ends the slot, as SIGKILL does; `close` ends the connection without an answer; `500` and
    `502` are answered with that status, everything else with 200.

    Attributes:
        bodies: Body of each request that arrived, in order.
        ready_after_s: Time until a check is answered; None never answers.
        work_s: Time until a request is answered.
    """

    def __init__(self, path):
        self.path = path
        self.bodies = []
        self.ready_after_s = 0.0
        self.work_s = 0.0
        self._lock = threading.Lock()
        self.start()

    @property
    def counts(self):
        """
        Return how often each body arrived.
        """
        return Counter(self.bodies)

    def start(self):
        self.path.unlink(missing_ok=True)
        self._connections = set()
        self._ended = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(512)
        self._run(self._accept, self._listener, self._ended)

    def end(self):
        """
        Close all sockets at once; the path stays, and refuses connections.
        """
        with self._lock:
            for each in (self._listener, *self._connections):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self._ended.set()  # now: before, a waiting thread could still answer
            for each in (self._listener, *self._connections):
                each.close()

    close = end

    @property
    def has_ended(self):
        with self._lock:  # its clients notice an end before it is complete
            return self._ended.is_set()

    @staticmethod
    def _run(function, *args):
        threading.Thread(target=function, args=args, daemon=True).start()

    def _accept(self, listener, ended):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(connection)
                if ended.is_set():
                    connection.close()
                    return
            self._run(self._serve, connection, ended)

    def _serve(self, connection, ended):
        # A connection that ends() has closed raises OSError here.
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as stream:
            while stream.readline():
                length, is_check = 0, False
                for line in iter(stream.readline, b"\r\n"):
                    if not line:
                        return
                    is_check |= line.lower().startswith(_CHECK)
                    if found := re.match(rb"(?i)content-length: (\d+)", line):
                        length = int(found[1])
                body = stream.read(length)
                if is_check:
                    ended.wait(self.ready_after_s)
                    status = 200
                else:
                    with self._lock:
                        self.bodies.append(body)
                    kind = body.split(b" ")[0]
                    if kind == b"kill":
                        self.end()
                    if kind in (b"kill", b"close"):
                        return
                    ended.wait(self.work_s)
                    status = STATUS_OF.get(kind, 200)
                connection.sendall(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % status)


class TwoSlots(PublicPort):
    """
    Args:
        edit: As in `PublicPort`, after the times were divided.
        is_quick: Whether the times of checks are divided by ten.
    """

    def __init__(self, folder, *, edit=None, is_quick=True, **changes):
        (folder / "blue").mkdir(exist_ok=True)
        (folder / "green").mkdir(exist_ok=True)
        self.green = CountingSlot(folder / "green" / "runtime.sock")
        self.blue = CountingSlot(folder / "blue" / "runtime.sock")
        changes = {"connections_per_source": 256, "slot": self.blue} | changes
        if is_quick:
            changes["edit"] = lambda text: (edit or str)(quick(text))
        super().__init__(folder, **{"edit": edit} | changes)

    @property
    def slots(self):
        return {"blue": self.blue, "green": self.green}

    def close(self):
        self.green.close()
        return super().close()

    def set(self, slot, *, weight=None, state=None):
        if weight is not None:
            assert self.ask(f"set weight runtime/{slot} {weight}").strip() == ""
        if state is not None:
            assert self.ask(f"set server runtime/{slot} state {state}").strip() == ""

    def wait_status(self, slot, status, backend="runtime"):
        until_s = time.monotonic() + DEADLINE_S
        while self.stat(backend, slot)["status"] != status:
            assert time.monotonic() < until_s, f"{backend}/{slot} is not {status}"
            time.sleep(0.01)

    def all_up(self):
        """
        Start slots that have ended, and wait until both take requests.
        """
        ended = [slot for slot in self.slots.values() if slot.has_ended]
        for slot in ended:
            slot.start()
        if ended:
            # A check that began before the start may still take a slot DOWN that is shown as UP.
            time.sleep(2 * CHECK_S)
        for name in self.slots:
            for backend in ("runtime", "timely"):
                self.wait_status(name, "UP", backend)

    def send_each(self, bodies):
        """
        Return the status of the answer to each body, each on a connection of its own.
        """
        return [self.send(post(body))[0] for body in bodies]


class KeepAliveClients:
    """
    Clients that send one request after another on a connection of their own, until `stop`.

    Attributes:
        answers: Body and status of each request; 0 is a connection that ended without an answer.
    """

    def __init__(self, port, count, pause_s=0.003):
        self.answers = []
        self._port, self._pause_s = port, pause_s
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def lost(self):
        return [body for body, status in self.answers if status != 200]

    def _run(self, number):
        client = None
        count = 0
        while not self._stopping.wait(self._pause_s):
            count += 1
            body = b"r %d %d" % (number, count)
            try:
                client = client or self._port.connect()
                client.sendall(post(body))
                status = read_answer(client)[0]
            except OSError:
                status = 0
            if status == 0 and client is not None:
                client.close()
                client = None
            self.answers.append((body, status))
        if client is not None:
            client.close()


def quick(text):
    """
    Return the configuration with all times of checks divided by ten.
    """
    for old, new in (
        ("timeout check 5s", "timeout check 500ms"),
        ("check inter 1s", "check inter 100ms"),
        ("check inter 500ms", "check inter 50ms"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text
