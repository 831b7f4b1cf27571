"""
The public port with TLS, as a real HAProxy with the rendered configuration serves it.
"""

import re
import ssl
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.local_host import short_directory
from tests.unit.deploy.provision.public_port import (
    DEADLINE_S,
    PROGRAM,
    PROXY,
    is_closed,
    post,
)
from tests.unit.deploy.provision.tls_port import TlsPort

pytestmark = pytest.mark.skipif(not Path(PROGRAM).exists(), reason="haproxy is not installed")
LIMIT = 8


@pytest.fixture
def started():
    ports, folders = [], []

    def start(**changes):
        folders.append(short_directory())
        ports.append(TlsPort(Path(folders[-1].name), **changes))
        return ports[-1]

    yield start
    for port in ports:
        port.close()
    for folder in folders:
        folder.cleanup()


def statuses(text):
    return sorted(re.findall(r"HTTP/2 (\d+)", text))


def test_clients_get_http_2_and_slots_http_1(started):
    """
    The request line that the slot gets is that of HTTP/1.1, with the path alone.
    """
    port = started()
    answer = port.curl("--http2", "--include", "--data", "{}", "URL")
    assert statuses(answer.stdout) == ["200"]
    assert port.slot.lines == ["POST /generate HTTP/1.1"]
    answer = port.curl("--http1.1", "--include", "--data", "{}", "URL")
    assert answer.stdout.startswith("HTTP/1.1 200")


def test_a_client_that_does_not_trust_the_authority_refuses(started):
    """
    Negative control of the clients here: they verify.
    """
    port = started()
    client = ssl.create_default_context()
    with pytest.raises(ssl.SSLCertVerificationError), port.plain() as connection:
        client.wrap_socket(connection, server_hostname="localhost")


@pytest.mark.parametrize(
    ("version", "cipher"),
    [
        (ssl.TLSVersion.TLSv1_1, None),
        (ssl.TLSVersion.TLSv1_2, "AES128-SHA"),  # without forward secrecy
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA"),  # CBC
    ],
)
def test_old_versions_and_ciphers_are_refused(started, version, cipher):
    """
    TLS 1.2 with an AEAD and forward secrecy, or TLS 1.3.
    """
    port = started()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TLS 1.1
        port.client.minimum_version = port.client.maximum_version = version
    port.client.set_ciphers(f"{cipher or 'ALL'}:@SECLEVEL=0")
    with pytest.raises(OSError):
        port.connect()
    port.client.minimum_version = port.client.maximum_version = ssl.TLSVersion.TLSv1_2
    port.client.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    port.connect().close()


def test_plain_http_gets_no_answer(started):
    """
    A token that a client sends in the clear reaches no slot.
    """
    port = started()
    with port.plain() as client:
        client.sendall(post(b"{}", authorization="Bearer secret"))
        assert is_closed(client)
    assert port.slot.lines == []


@pytest.mark.parametrize("target", ["/metrics", "/v1/../metrics", "//generate"])
def test_the_list_of_routes_stays(started, target):
    """
    With both versions of HTTP.
    """
    port = started()
    url = f"https://localhost:{port.port}{target}"
    for version in ("--http2", "--http1.1"):
        argv = (version, "--path-as-is", "--output", "/dev/null", "--write-out", "%{http_code}")
        assert port.curl(*argv, "--interface", "127.0.1.1", url).stdout == "404"
    assert port.slot.lines == []


def in_parallel(port, count):
    """
    Return the statuses of *count* requests at once on one HTTP/2 connection.

    The slot answers when each request is there or was refused.  They have no body: curl 7.88 loses
    an answer that comes before it has sent one, as a refusal may.
    """
    gate = port.slot.gate = threading.Event()
    argv = ["--http2", "--parallel", "--parallel-max", str(count), "--max-time", str(DEADLINE_S)]
    argv += ["--write-out", "%{http_version} %{http_code}\n"]
    url = f"https://localhost:{port.port}/v1/models"
    with ThreadPoolExecutor() as pool:
        curl = pool.submit(port.curl, *argv, *["--output", "/dev/null", url] * count)
        while not curl.done():
            refused = int(port.stat("public", "FRONTEND")["dreq"])
            if len(port.slot.lines) + refused == count:
                gate.set()
            time.sleep(0.01)
        done = curl.result()
    assert gate.is_set(), done.stderr
    port.slot.gate = None
    versions, answers = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    assert set(versions) == {"2"}, done.stderr
    return sorted(answers)


def test_the_requests_of_a_source_are_limited_on_one_connection(started):
    """
    With HTTP/2 the limit of connections would be none.
    """
    port = started(connections_per_source=LIMIT)
    answers = in_parallel(port, LIMIT + 4)
    assert answers.count("200") == LIMIT
    assert answers.count("429") == 4
    assert port.generate()[0] == 200


def test_without_the_table_one_connection_has_any_number(started):
    """
    Negative control.
    """
    port = started(
        connections_per_source=LIMIT,
        edit=lambda text: re.sub(r"(?m)^ +http-request track-sc1 .*$", "", text),
    )
    assert in_parallel(port, LIMIT + 4) == ["200"] * (LIMIT + 4)


def test_all_requests_in_flight_are_limited(started):
    """
    As the connections are without HTTP/2: each takes memory of HAProxy.
    """
    port = started(edit=lambda text: text.replace("sc2_conn_cur gt 3968", "sc2_conn_cur gt 3"))
    answers = in_parallel(port, 6)
    assert (answers.count("200"), answers.count("503")) == (3, 3)


def test_behind_a_proxy_the_client_is_the_forwarded_address(started):
    """
    Its requests are counted, and those of another client behind the same proxy are not.
    """
    port = started(connections_per_source=LIMIT)
    gate = port.slot.gate = threading.Event()

    def ask(client):
        return port.generate(PROXY, x_forwarded_for=client)[0]

    with ThreadPoolExecutor(LIMIT) as pool:
        in_flight = [pool.submit(ask, "192.0.2.1") for _ in range(LIMIT)]
        until(lambda: len(port.slot.lines) == LIMIT)
        port.slot.gate = None
        assert (ask("192.0.2.1"), ask("192.0.2.2")) == (429, 200)
        gate.set()
        assert [each.result() for each in in_flight] == [200] * LIMIT


def test_a_client_that_begins_no_handshake_is_closed(started):
    """
    As one that sends no request; a trickle of bytes does not extend it.
    """
    port = started(times={"client": "2s", "http-request": "2s"})
    with port.plain() as client:
        assert is_closed(client)
    with port.plain() as client:
        client.sendall(b"\x16\x03\x01\x00\xa5\x01")  # the head of a ClientHello
        assert is_closed(client)
    assert port.generate()[0] == 200


@pytest.mark.parametrize("version", ["--http2", "--http1.1"])
def test_a_client_may_wait_longer_than_it_may_be_silent(started, version):
    """
    A long answer is no silence of its client, with both versions of HTTP.
    """
    port = started(times={"client": "2s", "http-request": "2s", "http-keep-alive": "2s"})
    port.slot.pause_s = 4.0
    answer = port.curl(version, "--include", "--data", "{}", "URL")
    assert answer.stdout.split()[1] == "200"


def test_a_slow_body_reaches_no_slot(started):
    """
    As with HTTP/1.1: HAProxy waits for the body, and for its time alone.
    """
    port = started(times={"http-request": "2s"})
    headers = [
        (":method", "POST"), (":scheme", "https"), (":path", "/generate"), (":authority", "x"),
        ("content-length", "100"),
    ]  # fmt: skip
    assert b"\x00\x00\x00\x01" in http_2(port, headers, is_whole=False)
    assert port.slot.lines == []


def test_a_header_that_would_smuggle_is_refused(started):
    """
    HTTP/2 carries names and values of any bytes; none becomes a line of HTTP/1.1.
    """
    port = started()
    attack = "x\r\nGET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
    frames = [
        [(":method", "POST"), (":scheme", "https"), (":path", "/generate"), (":authority", "x"),
         ("x-a", attack)],
        [(":method", "POST"), (":scheme", "https"), (":path", "/generate HTTP/1.1\r\nx: y"),
         (":authority", "x")],
        [(":method", "GET"), (":scheme", "https"), (":path", "/docs"), (":authority", "x"),
         ("transfer-encoding", "chunked")],
        [(":method", "GET"), (":scheme", "https"), (":path", "/docs"), (":authority", "x"),
         ("content-length", "1"), ("content-length", "2")],
    ]  # fmt: skip
    for headers in frames:
        assert http_2(port, headers)[:1] != b"2"
    assert port.slot.lines == []
    harmless = [(":method", "GET"), (":scheme", "https"), (":path", "/docs"), (":authority", "x")]
    http_2(port, harmless)
    # Negative control: such frames do reach the slot.
    until(lambda: port.slot.lines == ["GET /docs HTTP/1.1"])


def until(condition):
    until_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def http_2(port, headers, *, is_whole=True):
    """
    Send one request as HTTP/2 frames, its headers uncompressed; return what comes back.

    Args:
        is_whole: No body follows.
    """
    port.client.set_alpn_protocols(["h2"])
    block = b"".join(
        b"\x10" + _length(name.encode()) + _length(value.encode()) for name, value in headers
    )
    # A SETTINGS frame, then HEADERS on stream 1 with END_HEADERS, and END_STREAM.
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"")
    with port.connect() as client:
        client.settimeout(DEADLINE_S)
        client.sendall(preface + _frame(1, 5 if is_whole else 4, 1, block))
        received = b""
        try:
            while part := client.recv(65536):
                received += part
                if b"\x00\x00\x00\x01" in received:  # a frame of the stream: its answer or its end
                    break
        except (TimeoutError, OSError):
            pass
    return received


def _length(text):
    assert len(text) < 127
    return bytes([len(text)]) + text


def _frame(kind, flags, stream, payload):
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )
