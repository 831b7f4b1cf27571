"""
A real HAProxy with the configuration that `inv provision` writes, in front of one slot.

Only paths, the user and the lengths of timeouts differ from a host's.
"""

import json
import re
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler

from deploy.host import layout
from deploy.provision import haproxy
from tests.free_port import free_port
from tests.unit.deploy.provision.builders import make_spec

ERROR_KEYS = {"message", "type", "param", "code", "request_id", "retry_safe"}
PROGRAM = shutil.which("haproxy") or "/usr/sbin/haproxy"
DEADLINE_S = 60.0
PUBLIC, OTHER, MONITOR, PROXY = "127.0.1.1", "127.0.2.2", "127.0.9.9", "127.0.8.8"
SERVICE = {
    "monitoring_networks": ("127.0.9.0/24",),
    "trusted_proxies": ("127.0.8.0/24",),
    "connections_per_source": 8,
}


class Slot:
    """
    A slot that records the request lines that reach it.

    Attributes:
        lines: Request line of each request.
        pause_s: Time before an answer to POST.
        gate: An event that new requests wait for; None: they do not wait.
        answer: Body of POST answers; None closes the connection without an answer.
    """

    def __init__(self, path):
        self.lines = []
        self.pause_s = 0.0
        self.gate = None
        self.answer = b'{"text": "hello"}'
        slot = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def address_string(self):
                return "unix"

            def log_message(self, *_):
                pass

            def do_GET(self):
                if self.headers.get("Host") != "slipway":  # the health check of HAProxy
                    self._arrive()
                self._send(b"ok")

            def do_POST(self):
                self._arrive()
                left = int(self.headers["Content-Length"])
                while left and (read := self.rfile.read1(min(left, 65536))):
                    left -= len(read)
                time.sleep(slot.pause_s)
                self._send(slot.answer)

            def _arrive(self):
                gate = slot.gate
                slot.lines.append(self.requestline)
                if gate is not None:
                    gate.wait(DEADLINE_S)

            def _send(self, body):
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_):
                pass

        self._server = Server(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class PublicPort:
    """
    Args:
        times: Replaced values of timeouts, such as {"client": "1s"}.
        edit: Changes the text before HAProxy reads it; for negative controls.
        slot: What listens on the socket of the slot; None for a fake.
        status: Status of the slot to wait for.
    """

    def __init__(self, folder, *, times=None, edit=None, slot=None, status="UP", **service):
        self.port = free_port()
        (folder / "blue").mkdir(exist_ok=True)
        self.slot = slot or Slot(folder / "blue" / "runtime.sock")
        text = haproxy.config(make_spec(port=self.port, **SERVICE | service))
        text = re.sub(r"^ +(user|group|log) .*$", "", text, flags=re.MULTILINE)
        text = text.replace(layout.RUN, str(folder)).replace(layout.STATE, str(folder))
        text = text.replace(" disabled", "")
        for name, value in (times or {}).items():
            text, count = re.subn(rf"timeout {name} \S+", f"timeout {name} {value}", text)
            assert count == 1, name
        if edit is not None:
            before, text = text, edit(text)
            assert text != before, "the edit changed nothing"
        (folder / "haproxy.cfg").write_text(text)
        self._control = folder / "haproxy.sock"
        self._process = subprocess.Popen(
            [PROGRAM, "-db", "-f", str(folder / "haproxy.cfg")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._wait_until(status)

    def _wait_until(self, status):
        until_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                if self.stat("runtime", "blue")["status"] == status:
                    return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > until_s:
                raise AssertionError(f"HAProxy did not start: {self.close().decode()}")
            time.sleep(0.01)

    def close(self):
        """
        Stop all, and return what HAProxy wrote.
        """
        self.slot.close()
        self._process.kill()
        if not self._process.stderr.closed:
            self._errors = self._process.communicate()[1]
        return self._errors

    def ask(self, command):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_S)
            client.connect(str(self._control))
            client.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: client.recv(65536), b"")).decode()

    def stat(self, proxy, name):
        """
        Return the row of `show stat`, by column.
        """
        lines = self.ask("show stat").lstrip("# ").splitlines()
        columns = lines[0].split(",")
        rows = [dict(zip(columns, line.split(","), strict=False)) for line in lines[1:] if line]
        return next(r for r in rows if (r["pxname"], r["svname"]) == (proxy, name))

    def connect(self, source=PUBLIC):
        client = socket.create_connection(
            ("127.0.0.1", self.port), DEADLINE_S, source_address=(source, 0)
        )
        client.settimeout(DEADLINE_S)
        return client

    def send(self, raw, source=PUBLIC):
        """
        Return the status and the body of the answer to *raw*, or (0, b"") without an answer.
        """
        try:
            with self.connect(source) as client:
                client.sendall(raw)
                return read_answer(client)
        except ConnectionError:
            return 0, b""

    def get(self, target, source=PUBLIC, **headers):
        lines = [f"GET {target} HTTP/1.1", "host: x", "connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return self.send("\r\n".join([*lines, "", ""]).encode(), source)

    def generate(self, source=PUBLIC, **headers):
        return self.send(post(b"{}", **headers), source)


def post(body, target="/generate", **headers):
    lines = [f"POST {target} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_answer(client):
    """
    Return status and body of the next answer of *client*; 0 and what came if it closes before.
    """
    received = b""
    while b"\r\n\r\n" not in received:
        part = client.recv(65536)
        if not part:
            return 0, received
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length is not None and len(body) < int(length[1]):
        part = client.recv(65536)
        if not part:
            return 0, body
        body += part
    return int(head.split()[1]), body


def is_closed(client):
    """
    Wait for the end of *client*'s connection; True if it came without an answer.
    """
    try:
        return client.recv(65536) == b""
    except ConnectionError:
        return True


def code_of(body):
    """
    Return the code of an error document, which must be whole.
    """
    error = json.loads(body)["error"]
    assert set(error) == ERROR_KEYS
    assert len(error["request_id"]) >= 32
    return error["code"]
