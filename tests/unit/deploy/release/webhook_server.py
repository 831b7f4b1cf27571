"""
A real HTTPS server on this machine that records what is posted to it, or misbehaves.
"""

import contextlib
import datetime
import http.server
import json
import ssl
import threading
import time
from ipaddress import IPv4Address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class WebhookServer(http.server.ThreadingHTTPServer):
    """
    Attributes:
        behaviour: Called with the handler after each request was read; answers it.
        messages: (headers, document) of each request.
        trust: The context of a client that trusts the server.
    """

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Handler)
        certificate, key = make_certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )
        self.trust = ssl.create_default_context(cafile=str(certificate))
        self.behaviour = accept
        self.messages = []
        self.ended = threading.Event()

    @property
    def url(self):
        return f"https://127.0.0.1:{self.server_port}/hook/s3cret-path"

    def handle_error(self, request, client_address):
        pass  # clients that give up, or do not trust it


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.messages.append((dict(self.headers), json.loads(body)))
        self.server.behaviour(self)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def webhook_server(folder):
    with WebhookServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()


def make_certificate(folder, name_type=NameOID.COMMON_NAME):
    """
    Return the files of a certificate for 127.0.0.1, which signs itself, and of its key.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(name_type, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "server.crt", folder / "server.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


# -- behaviours


def accept(handler):
    answer(handler, 204)


def answer(handler, status, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def never_answer(handler):
    handler.server.ended.wait(600)


def drip(handler):
    """
    One byte of a header at a time: no read ever waits long.
    """
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not handler.server.ended.wait(0.1):
        handler.wfile.write(b"x")


def answer_one_gigabyte(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(1 << 30))
    handler.end_headers()
    handler.server.sent = 0
    for _ in range(1 << 14):
        handler.wfile.write(b"x" * (1 << 16))
        handler.server.sent += 1 << 16


def endless_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1 << 20):
        handler.wfile.write(b"X-%d: " % number + b"x" * 1000 + b"\r\n")


def garbage(handler):
    handler.wfile.write(b"\x00\x1b[2J SLIPWAY garbage\r\n\r\n" * 50)
    handler.close_connection = True


def redirect(handler):
    target = f"https://127.0.0.1:{handler.server.server_port}/elsewhere"
    answer(handler, 307, Location=target)


def close_at_once(handler):
    handler.close_connection = True
    handler.connection.close()


def wait_for(condition, what):
    until_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < until_s, what
        time.sleep(0.01)
