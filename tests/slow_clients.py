"""
A program that attacks one port with silent and slow clients; standard library only.

    python3 slow_clients.py HOST PORT CONNECTIONS SECONDS SOURCE...

Keeps CONNECTIONS connections open or being opened, spread over the SOURCE addresses of this
machine and over the kinds below; each one that is closed is opened again.  Prints one JSON object
at the end: {"opened", "refused", "peak"}, where refused counts those that were closed within a
second of their start.
"""

import contextlib
import json
import resource
import socket
import sys
import time

HEAD = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
STREAM = b'{"prompt": "x", "max_tokens": 64, "stream": true}'
# What each kind sends first, then every second.
KINDS = (
    (b"", b""),  # silent
    (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n"),  # a head without end
    (HEAD + b"content-length: 1000\r\n\r\n", b" "),  # a small body that drips
    (HEAD + b"content-length: 8000000\r\n\r\n" + b" " * 100_000, b" "),  # a large one
    (HEAD + b"content-length: %d\r\n\r\n" % len(STREAM) + STREAM, b""),  # does not read
    (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", b""),  # idle after an answer
)
PAUSE_S = 1.0  # before a refused connection is opened again
BURST = 256  # connections that are opened at once


class Client:
    """
    One connection, and the time from which it may be opened again.
    """

    def __init__(self, address, source, kind):
        self.address, self.source = address, source
        self.first, self.then = KINDS[kind]
        self.socket = None
        self.opened_s = self.next_s = 0.0

    def open(self, now_s):
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.bind((self.source, 0))
        self.socket.connect_ex(self.address)
        self.opened_s, self.next_s = now_s, now_s + 1.0
        self.left = self.first

    def send(self, now_s):
        if not self.left and now_s >= self.next_s:
            self.left, self.next_s = self.then, now_s + 1.0
        if self.left:
            with contextlib.suppress(BlockingIOError):
                self.left = self.left[self.socket.send(self.left) :]

    def is_closed(self):
        # A byte tells the end of the connection and leaves the rest unread.
        try:
            return self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False

    def close(self, now_s):
        self.socket.close()
        self.socket, self.next_s = None, now_s + PAUSE_S


def attack(address, sources, connections, duration_s):
    clients = [
        Client(address, sources[n % len(sources)], n // len(sources) % len(KINDS))
        for n in range(connections)
    ]
    counts = {"opened": 0, "refused": 0, "peak": 0}
    end_s = time.monotonic() + duration_s
    while (now_s := time.monotonic()) < end_s:
        opened = 0
        for client in clients:
            if client.socket is None:
                if now_s >= client.next_s and opened < BURST:
                    client.open(now_s)
                    opened += 1
                continue
            try:
                closed = client.is_closed()
                if not closed:
                    client.send(now_s)
            except OSError:
                closed = now_s - client.opened_s > 0.2  # not connected yet
            if closed:
                counts["refused"] += now_s - client.opened_s < 1.0
                client.close(now_s)
        counts["opened"] += opened
        counts["peak"] = max(counts["peak"], sum(c.socket is not None for c in clients))
        time.sleep(0.5)
    return counts


def main():
    host, port, connections, duration_s, *sources = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    counts = attack((host, int(port)), sources, int(connections), float(duration_s))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
