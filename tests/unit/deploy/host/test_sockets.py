"""
What the host program reads from a runtime's socket: bounded in time and size, never an exception.
"""

import os
import random
import socket
import threading
import time

import pytest

from deploy.host import sockets
from deploy.host.sockets import BODY_LIMIT, BODY_LIMITS, HEAD_LIMIT, http_request, send_line
from tests.unit.deploy.host.fakes import short_directory

OK = b"HTTP/1.1 200 OK\r\n"


class Answering:
    """
    A server that writes *parts* to each connection; `sent` counts its bytes.
    """

    def __init__(self, path, parts, pause_s=0.0):
        self.sent, self._pause_s, self._parts = 0, pause_s, parts
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                if self._stopped.is_set():
                    return
                self._write(connection)

    def _write(self, connection):
        try:
            connection.recv(1 << 16)
            for part in self._parts():
                connection.sendall(part)
                self.sent += len(part)
                if self._stopped.wait(self._pause_s) if self._pause_s else False:
                    return
        except OSError:
            pass  # the reader has gone

    def close(self):
        self._stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def path():
    with short_directory() as root:
        root.chmod(0o711)
        yield root / "runtime.sock"


@pytest.fixture
def answer(path):
    """
    Return the answer to a request, from a runtime that writes the given parts.
    """
    servers = []

    def ask(*parts, target="/readyz", timeout_s=20.0, pause_s=0.0, endless=b""):
        def written():
            yield from parts
            while endless:
                yield endless

        servers.append(Answering(path, written, pause_s))
        return http_request(path, "GET", target, timeout_s=timeout_s)

    ask.servers = servers
    yield ask
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    "parts",
    [
        (OK + b"Content-Length: 5\r\n\r\nready",),
        (OK + b"\r\nready",),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nready\r\n0\r\n\r\n",),
        (b"HTTP/1.1 100 Continue\r\n\r\n", OK + b"Content-Length: 5\r\n\r\nready"),
    ],
)
def test_an_answer_is_read_however_its_length_is_given(answer, parts):
    """
    By Content-Length, by the end of the connection, or in chunks.
    """
    assert answer(*parts)[:2] == (200, "ready")


@pytest.mark.parametrize("head", [b"", OK, OK + b"Content-Length: 50000\r\n\r\n"])
def test_a_dripping_answer_ends_at_the_deadline(answer, head):
    """
    One byte now and then extends nothing: in the status line, the headers or the body.
    """
    began_s = time.monotonic()

    got = answer(head, endless=b"x", pause_s=0.02, timeout_s=0.3)

    assert got.status is None
    assert "within 0.3 s" in got.body or "timed out" in got.body
    assert time.monotonic() - began_s < 10  # without a total deadline it would take 20 minutes


@pytest.mark.parametrize("is_guarded", [True, False])
def test_only_the_total_deadline_ends_a_drip(answer, monkeypatch, is_guarded):
    """
    Control: with a timeout for each read alone, the same answer is waited for to its end.
    """
    if not is_guarded:
        monkeypatch.setattr(sockets.Deadline, "left_s", lambda _: 20.0)

    drip = [b"x"] * 40
    got = answer(OK + b"Content-Length: 40\r\n\r\n", *drip, pause_s=0.02, timeout_s=0.3)

    assert got.status == (None if is_guarded else 200)


@pytest.mark.parametrize("target", ["/readyz", *BODY_LIMITS])
@pytest.mark.parametrize(
    "head",
    [
        OK + b"\r\n",
        OK + b"Content-Length: 999999999999999999999999\r\n\r\n",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\n",
    ],
)
def test_an_endless_body_is_cut_at_its_limit(answer, target, head):
    """
    Little more than the limit is read, whatever length the headers announce.
    """
    got = answer(head, target=target, endless=b"x" * 65536)

    assert got.status is None
    limit = BODY_LIMITS.get(target, BODY_LIMIT)
    # The rest lies in the buffers of the kernel.
    assert answer.servers[0].sent < HEAD_LIMIT + 2 * limit + (2 << 20)


def test_a_body_at_its_limit_is_read_whole(answer):
    """
    Control of the limit: one byte more is refused.
    """
    head = OK + b"Content-Length: %d\r\n\r\n"
    whole = answer(head % BODY_LIMIT, b"x" * BODY_LIMIT)
    assert whole[:2] == (200, "x" * BODY_LIMIT)


def test_a_body_above_its_limit_is_refused(answer):
    """
    The answer says so, and has no status.
    """
    got = answer(OK + b"Content-Length: %d\r\n\r\n" % (BODY_LIMIT + 1), b"x" * (BODY_LIMIT + 1))
    assert (got.status, f"more than {BODY_LIMIT} bytes" in got.body) == (None, True)


@pytest.mark.parametrize(
    "flood", [b"HTTP/1.1 100 Continue\r\n\r\n" * 500, OK + b"X: y\r\n" * 5000, b"x" * 65536]
)
def test_floods_before_the_body_end_at_the_limit(answer, flood):
    """
    Informational answers, headers and status lines without end.
    """
    got = answer(endless=flood)

    assert got.status is None
    assert answer.servers[0].sent < HEAD_LIMIT + 2 * BODY_LIMIT + (2 << 20)


def test_garbage_is_an_answer_without_a_status(path):
    """
    Random bytes, and random changes of a valid answer; no exception.
    """
    rng = random.Random(10)
    valid = OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nready\r\n0\r\n\r\n"
    current = []
    server = Answering(path, lambda: current)
    statuses = set()
    try:
        for _ in range(400):
            garbage = bytearray(valid)
            for _ in range(rng.randrange(1, 12)):
                garbage[rng.randrange(len(garbage))] = rng.randrange(256)
            current[:] = [bytes(garbage) if rng.random() < 0.7 else rng.randbytes(300)]
            got = http_request(path, "GET", "/readyz", timeout_s=5)
            statuses.add(got.status)
            assert isinstance(got.body, str)
    finally:
        server.close()
    assert {None, 200} <= statuses


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "loop"])
def test_what_is_no_socket_is_not_opened(path, kind):
    """
    Opening a fifo or a device could block for ever, or have effects.
    """
    make = {
        "file": path.touch,
        "directory": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path),
    }
    make[kind]()

    assert http_request(path, "GET", "/readyz", timeout_s=5).status is None


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_a_directory_that_others_may_change_is_not_trusted(answer, path, mode):
    """
    A slot could put a link to another socket there.
    """
    path.parent.chmod(mode)

    got = answer(OK + b"Content-Length: 0\r\n\r\n")

    assert (got.status, "another user may change" in got.body) == (None, True)


def test_a_directory_of_another_user_is_not_trusted(answer, path):
    """
    Its owner could exchange the socket.
    """
    if os.geteuid() != 0:
        pytest.skip("only root may give a directory away")
    os.chown(path.parent, 65534, -1)

    got = answer(OK + b"Content-Length: 0\r\n\r\n")

    assert (got.status, "another user may change" in got.body) == (None, True)


def test_a_missing_socket_is_an_answer(path):
    """
    Nothing runs there.
    """
    got = http_request(path, "GET", "/readyz", timeout_s=5)
    assert (got.status, "No such file" in got.body) == (None, True)


def test_haproxys_answer_has_a_limit_too(path, monkeypatch):
    """
    And a deadline for the whole of it.
    """
    monkeypatch.setattr(sockets, "HAPROXY_LIMIT", 1000)
    server = Answering(path, lambda: [b"x" * 2000])
    try:
        with pytest.raises(OSError, match="more than 1000 bytes"):
            send_line(path, "show stat", 5)
    finally:
        server.close()


def test_haproxys_answer_is_read_to_its_end(path):
    """
    Control of the limit.
    """
    server = Answering(path, lambda: [b"a", b"b\n\n"])
    try:
        assert send_line(path, "show info", 5) == "ab\n\n"
    finally:
        server.close()


@pytest.mark.parametrize("part", [b"", b"# pxname,svn", b"# pxname\nruntime,blue\n"])
def test_an_answer_of_haproxy_that_is_cut_off_is_no_answer(path, part):
    """
    An HAProxy that ends in between closes the connection: a weight of 100 would be read as 10, and
    a command that was never answered would count as done.
    """
    server = Answering(path, lambda: [part])
    try:
        with pytest.raises(OSError, match="before the end of its answer"):
            send_line(path, "show stat", 5)
    finally:
        server.close()
