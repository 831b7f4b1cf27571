"""
A host under a temporary root, a caller like the controller, and a runtime on a socket.
"""

import json
import socketserver
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from deploy.host.__main__ import handle
from deploy.host.layout import SLOTS
from deploy.host.protocol import SCHEMA, Call, HostError, LeaseAcquire, Status
from deploy.host.rpc import encode_request, parse_answer
from tests import local_host
from tests.local_host import FakeClock, FakeSystem, place_release

BUNDLE = "a" * 64
OTHER = "b" * 64


class TemporaryHost:
    """
    One host under a temporary root of its own.
    """

    def __init__(self, root, clock=None):
        self.root = root
        self.system = FakeSystem(root, clock or FakeClock())
        self.layout = self.system.layout
        self.clock = self.system.clock
        self.fence = None
        self.release = "r1"
        for slot in SLOTS:
            (self.layout.run / slot).mkdir(parents=True, exist_ok=True)

    @property
    def units(self):
        return {slot: self.system.unit_of(slot) for slot in SLOTS}

    def call(self, request):
        """
        Return the result of *request*; raises the HostError that the host reports.
        """
        text = encode_request(request, Call(self.fence, self.release, "ann")).decode()
        line = handle(self.system, request.VERB, text)
        assert "\n" not in line
        return parse_answer(request, line)

    def refusal(self, request):
        """
        Return the HostError that *request* ends with.
        """
        with pytest.raises(HostError) as caught:
            self.call(request)
        return caught.value

    def answer(self, verb, args):
        """
        Return the answer to a raw document, which no request type can encode.
        """
        document = {"schema": SCHEMA, "fence": self.fence, "release": self.release, "args": args}
        return json.loads(handle(self.system, verb, json.dumps(document)))

    def status(self):
        return self.call(Status())

    def lease(self, ttl_s=30.0, owner="ann@desk:1"):
        self.fence = self.call(LeaseAcquire(owner=owner, ttl_s=ttl_s)).fence
        return self.fence

    def stage(self, bundle=BUNDLE, version="v1", golden=()):
        place_release(self.system, bundle, version, golden)

    def journal(self):
        return [json.loads(line) for line in self.layout.journal.read_text().splitlines()]


@contextmanager
def short_directory():
    with local_host.short_directory() as name:
        yield Path(name)


class SocketRuntime:
    """
    A fake runtime on a Unix socket: readiness, counters, answers; `gate` holds answers back.
    """

    def __init__(self, path, name):
        self.name = name
        self.is_ready = True
        self.reason = None  # the reason phrase of its readiness check; None: the standard one
        self.metrics = ""
        self.answers = {}  # prompt, or text of the last message, to text or message
        self.fails_with = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.requests = []
        runtime = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def address_string(self):
                return "unix"

            def log_message(self, *_):
                pass

            def do_GET(self):
                if self.path == "/readyz":
                    return self._answer(200 if runtime.is_ready else 503, b"", runtime.reason)
                if self.path == "/metrics" and runtime.metrics is not None:
                    return self._answer(200, runtime.metrics.encode())
                return self._answer(404, b"")

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                runtime.requests.append((body, dict(self.headers)))
                runtime.entered.set()
                assert runtime.gate.wait(60)
                if runtime.fails_with:
                    return self._answer(runtime.fails_with, b'{"error": {"code": "broken"}}')
                chat = "messages" in body
                asked = body["messages"][-1]["content"] if chat else body.get("prompt")
                answer = runtime.answers.get(asked, runtime.name)
                if chat:
                    message = answer if isinstance(answer, dict) else {"content": answer}
                    return self._answer(
                        200, json.dumps({"choices": [{"message": message}]}).encode()
                    )
                return self._answer(200, json.dumps({"text": answer}).encode())

            def _answer(self, status, body, reason=None):
                self.send_response(status, reason)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_):
                pass  # a client that goes away is no news

        path.unlink(missing_ok=True)
        self._server = Server(str(path), Handler)
        path.chmod(0o666)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    def close(self):
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
