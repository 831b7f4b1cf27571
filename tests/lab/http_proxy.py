"""
An HTTP proxy of the tests: CONNECT, and GET of absolute URLs as apt sends them.
"""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

_HEAD_MAX = 65536
_PART = 65536


class Proxy(socketserver.ThreadingTCPServer):
    """
    Attributes:
        asked: Addresses of clients, one for each connection.
        targets: What they asked for: absolute URLs, or name:port of CONNECT.
    """

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str) -> None:
        super().__init__((address, 0), _Handler)
        self.url = f"http://{address}:{self.server_address[1]}"
        self.asked: list[str] = []
        self.targets: list[str] = []


class _Handler(socketserver.StreamRequestHandler):
    server: Proxy

    def handle(self) -> None:
        self.server.asked.append(self.client_address[0])
        with contextlib.suppress(OSError):
            self._serve()

    def _serve(self) -> None:
        """
        Answer one request; its connection is closed afterwards.
        """
        method, target, version = self.rfile.readline(_HEAD_MAX).decode("latin-1").split()
        self.server.targets.append(target)
        head = []
        while (line := self.rfile.readline(_HEAD_MAX)) not in (b"\r\n", b"\n", b""):
            if not line.lower().startswith((b"proxy-", b"connection:")):
                head.append(line)
        if method == "CONNECT":
            name, _, port = target.rpartition(":")
            with socket.create_connection((name, int(port)), timeout=60) as origin:
                self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                back = threading.Thread(target=_copy, args=(origin, self.connection), daemon=True)
                back.start()
                _copy(self.connection, origin)
                back.join()
            return
        url = urlsplit(target)
        path = url._replace(scheme="", netloc="").geturl() or "/"
        with socket.create_connection((url.hostname or "", url.port or 80), timeout=60) as origin:
            first = f"{method} {path} {version}\r\n".encode()
            origin.sendall(first + b"".join(head) + b"Connection: close\r\n\r\n")
            _copy(origin, self.connection)


def _copy(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_PART):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def http_proxy(address: str) -> Iterator[Proxy]:
    """
    Run a proxy on *address* of this machine, on a free port.
    """
    with Proxy(address) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()
