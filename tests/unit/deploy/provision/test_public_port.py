"""
The public port, as a real HAProxy with the rendered configuration serves it.
"""

import contextlib
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.host import layout
from deploy.host.slots.haproxy import MAINT, READY, Haproxy
from deploy.provision import haproxy
from runtime.contract import MONITORING_ROUTES, PUBLIC_ROUTES
from tests.local_host import short_directory
from tests.unit.deploy.provision.public_port import (
    DEADLINE_S,
    MONITOR,
    OTHER,
    PROGRAM,
    PROXY,
    PUBLIC,
    PublicPort,
    code_of,
    is_closed,
    post,
    read_answer,
)

LIMIT = 8  # connections of one source
SPELLINGS = (
    "//metrics",
    "/%6detrics",
    "/%2fmetrics",
    "/./metrics",
    "/v1/../metrics",
    "/metrics/",
    "/metrics;x",
    "/metrics%00",
    "/METRICS",
    "*",
)
UNROUTED = ("/", "/docs/", "/redoc", "/openapi.yaml", "/generate/", "/v1/models/", "/v1/%6dodels")
NO_MODELS = ("/v1/models/..", "/v1/models/%2e", "/v1/models/a%00", "/v1/models/" + "a" * 200)


@pytest.fixture
def started():
    """
    Return a function that starts HAProxy with the changes that it is given.
    """
    if not Path(PROGRAM).exists():
        pytest.skip("haproxy is not installed: apt-get install haproxy")
    with contextlib.ExitStack() as stack:

        def start(**changes):
            folder = Path(stack.enter_context(short_directory()))
            return stack.enter_context(contextlib.closing(PublicPort(folder, **changes)))

        yield start


@pytest.fixture
def port(started):
    return started()


def without(line):
    """
    Return an edit that removes the lines with *line*.
    """
    return lambda text: "\n".join(kept for kept in text.splitlines() if line not in kept) + "\n"


def until(condition, what):
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"timed out waiting for {what}"
        time.sleep(0.02)


def silent(port, sources, each):
    """
    Return open connections of *sources* on which nothing is sent.
    """
    clients = [port.connect(source) for source in sources for _ in range(each)]
    until(lambda: int(port.stat("public", "FRONTEND")["scur"]) >= len(clients), "the connections")
    return clients


# What is on the port


@pytest.mark.parametrize("route", MONITORING_ROUTES)
def test_monitoring_is_answered_to_its_networks_only(port, route):
    """
    Health and metrics: 404 for everybody else, and nothing reaches the slot.
    """
    status, body = port.get(route)
    assert (status, code_of(body)) == (404, "not_found")
    assert port.get(f"{route}?deep=1")[0] == 404
    assert port.get(f"http://x{route}")[0] == 404
    assert port.slot.lines == []
    assert port.get(route, MONITOR)[0] == 200
    assert port.slot.lines == [f"GET {route} HTTP/1.1"]


def test_a_closed_door_is_a_503_for_monitoring_alone(port):
    """
    Users are served as before, and their connections end after the answer, also the open ones.  No
    scrape reaches a slot, where it would count as a request: the host could never get quiet.
    """
    door = f"{layout.DOOR_BACKEND}/{layout.DOOR_SERVER}"
    proxy = Haproxy(SimpleNamespace(haproxy=port.ask))
    assert proxy.states(layout.DOOR_BACKEND) == {layout.DOOR_SERVER: READY}
    with port.connect() as kept:
        kept.sendall(post(b"{}"))
        assert read_answer(kept)[0] == 200

        assert port.ask(f"set server {door} state maint").strip() == ""
        assert proxy.states(layout.DOOR_BACKEND) == {layout.DOOR_SERVER: MAINT}
        before = list(port.slot.lines)
        for route in MONITORING_ROUTES:
            status, body = port.get(route, MONITOR)
            assert (status, code_of(body)) == (503, "unavailable")
        assert port.slot.lines == before
        assert port.get("/v1/models")[0] == 200
        kept.sendall(post(b"{}"))
        assert read_answer(kept)[0] == 200
        assert is_closed(kept)

    assert port.ask(f"set server {door} state ready").strip() == ""
    assert port.get("/readyz", MONITOR)[0] == 200
    with port.connect() as kept:
        for _ in range(2):
            kept.sendall(post(b"{}"))
            assert read_answer(kept)[0] == 200


@pytest.mark.parametrize("target", SPELLINGS + UNROUTED)
def test_another_spelling_is_not_forwarded(port, target):
    """
    From no address: what is not a route of the list never reaches a slot.
    """
    for source in (PUBLIC, MONITOR):
        assert port.get(target, source)[0] == 404
    assert port.slot.lines == []


def test_without_the_list_everything_is_forwarded(started):
    """
    Negative control of both tests above.
    """
    port = started(edit=without("deny_status 404"))
    assert port.get("/metrics")[0] == 200
    assert port.get("//metrics")[0] == 200
    assert len(port.slot.lines) == 2


@pytest.mark.parametrize("route", PUBLIC_ROUTES)
def test_the_routes_of_the_contract_are_public(port, route):
    """
    In both forms of a request; the slot gets the short one.
    """
    assert port.get(route)[0] == 200
    assert port.get(f"http://x{route}?x=1")[0] == 200
    assert port.slot.lines == [f"GET {route} HTTP/1.1", f"GET {route}?x=1 HTTP/1.1"]


@pytest.mark.parametrize("name", ["lab", "zai-org/GLM-4-9B", "zai-org%2FGLM-4-9B", "a+b_c.d"])
def test_a_model_is_found_by_its_name(port, name):
    """
    Any that a release may have, with its slash as it is or escaped.
    """
    assert port.get(f"/v1/models/{name}")[0] == 200
    assert port.slot.lines == [f"GET /v1/models/{name} HTTP/1.1"]


@pytest.mark.parametrize("target", NO_MODELS)
def test_what_is_no_name_of_a_model_is_not_forwarded(port, target):
    """
    As any other spelling of a route.
    """
    assert port.get(target)[0] == 404
    assert port.slot.lines == []


def test_an_answer_of_haproxy_has_the_headers_of_cors(started):
    """
    A browser shows no other error to a page; a page of another origin sees none.
    """
    port = started(cors_origins=("https://a.example",))

    def head(origin):
        with port.connect() as client:
            client.sendall(f"GET /x HTTP/1.1\r\nhost: x\r\norigin: {origin}\r\n\r\n".encode())
            return client.recv(65536).partition(b"\r\n\r\n")[0].lower()

    assert b"\r\naccess-control-allow-origin: https://a.example" in head("https://a.example")
    assert b"access-control" not in head("https://b.example")


def test_http_2_is_refused(started):
    """
    One connection of it carries many requests, past the limit; without "proto h1" it is taken.
    """
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
    assert started().send(preface)[0] == 400
    taken = started(edit=lambda text: text.replace(" proto h1", ""))
    with taken.connect() as client:
        client.sendall(preface)
        assert client.recv(9)[3] == 4  # a SETTINGS frame


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /generate#/metrics HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: " + b"b" * 70_000 + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\nhost : y\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST /generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\nab",
    ],
)
def test_what_is_not_http_is_refused(port, raw):
    """
    One answer, and nothing reaches the slot.
    """
    assert port.send(raw)[0] in (400, 422, 501)
    assert port.slot.lines == []


def test_a_request_cannot_hide_in_a_body(port):
    """
    With both lengths, the chunked one counts and the other is removed; what follows is a request
    of its own, under the same rules.
    """
    hidden = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n" % (len(hidden) + 5)
    port.send(head + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + hidden)
    assert not any("metrics" in line for line in port.slot.lines)


# Connections


def test_one_source_cannot_close_the_port(port):
    """
    Connections over the limit are closed at once; another source is answered.
    """
    with contextlib.ExitStack() as stack:
        for client in silent(port, [PUBLIC], LIMIT):
            stack.enter_context(client)
        assert port.generate() == (0, b"")
        assert port.generate(OTHER)[0] == 200
    until(lambda: port.generate()[0] == 200, "the end of the connections")


def test_without_the_limit_one_source_has_any_number(started):
    """
    Negative control.
    """
    port = started(edit=without("sc0_conn_cur"))
    with contextlib.ExitStack() as stack:
        for client in silent(port, [PUBLIC], LIMIT + 1):
            stack.enter_context(client)
        assert port.generate()[0] == 200


def test_on_a_crowded_port_a_source_has_a_quarter(monkeypatch, started):
    """
    Few sources cannot take all: beyond the half of the connections each may open few more.
    """
    monkeypatch.setattr(haproxy, "RESERVED_CONNECTIONS", 8)
    for edit, wanted in ((None, 0), (without("is_crowded {"), 200)):
        port = started(edit=edit, max_connections=40)
        with contextlib.ExitStack() as stack:
            for sources, each in ((["127.0.3.1", "127.0.3.2"], 7), ([PUBLIC], 6)):
                for client in silent(port, sources, each):
                    stack.enter_context(client)
            assert port.generate()[0] == wanted
            assert port.generate(OTHER)[0] == 200


def full(monkeypatch, started, edit=lambda text: text):
    """
    Return a port for 40 connections, 8 of them for the monitoring networks.

    With one thread, for an exact limit: a thread of HAProxy adds one to fe_conn before it asks the
    kernel for a next connection, and another thread may then refuse one too early.
    """
    monkeypatch.setattr(haproxy, "RESERVED_CONNECTIONS", 8)

    def changed(text):
        text = text.replace("global\n", "global\n    nbthread 1\n", 1)
        return edit(without("is_crowded {")(text))

    return started(edit=changed, max_connections=40)


def test_a_full_port_still_answers_health_checks(monkeypatch, started):
    """
    The last connections are for the monitoring networks: many sources cannot take them.
    """
    port = full(monkeypatch, started)
    with contextlib.ExitStack() as stack:
        for client in silent(port, [f"127.0.3.{n}" for n in range(1, 5)], LIMIT):
            stack.enter_context(client)
        assert port.generate() == (0, b"")
        assert port.get("/readyz", MONITOR)[0] == 200


def test_without_the_reserve_a_full_port_answers_nobody(monkeypatch, started):
    """
    Negative control: HAProxy does not accept the connection of a health check.
    """
    port = full(monkeypatch, started, edit=without("is_full !from"))
    with contextlib.ExitStack() as stack:
        for client in silent(port, [f"127.0.3.{n}" for n in range(1, 6)], LIMIT):
            stack.enter_context(client)
        check = stack.enter_context(port.connect(MONITOR))
        check.settimeout(1.0)
        check.sendall(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
        with pytest.raises(TimeoutError):
            check.recv(100)


# Silence


def test_a_silent_connection_ends(started):
    """
    Without an answer, after the time for a head; a part of a head does not prolong it.
    """
    port = started(times={"http-request": "1s"})
    with port.connect() as client:
        assert is_closed(client)
    with port.connect() as client:
        client.sendall(b"GET /generate HTTP/1.1\r\nhost: x\r\n")
        assert read_answer(client)[0] == 408


def test_a_slow_body_is_no_session_of_a_slot(started):
    """
    A drain would wait for a session; the slot gets a request whose body is here.
    """
    port = started(times={"http-request": "2s"})
    with port.connect() as client:
        client.sendall(post(b"x" * 100)[:-50])
        until(lambda: int(port.stat("public", "FRONTEND")["req_tot"]) == 1, "the head")
        assert port.stat("runtime", "blue")["scur"] == "0"
        status, body = read_answer(client)
    assert (status, code_of(body)) == (408, "request_timeout")
    assert port.stat("runtime", "blue")["stot"] == "0"
    assert port.slot.lines == []


def test_without_the_buffer_a_slow_body_is_a_session(started):
    """
    Negative control.
    """
    port = started(edit=without("option http-buffer-request"))
    with port.connect() as client:
        client.sendall(post(b"x" * 100)[:-50])
        until(lambda: port.stat("runtime", "blue")["scur"] == "1", "the session")


def test_a_client_may_wait_longer_than_it_may_be_silent(started):
    """
    `timeout client` is for sending and reading, not for the time that an answer takes.
    """
    port = started(times={"client": "1s", "http-request": "1s"})
    port.slot.pause_s = 2.0
    assert port.generate()[0] == 200


def test_a_client_that_does_not_read_is_closed(started):
    """
    Its session ends, and with it what a drain would wait for.
    """
    port = started(times={"client": "1s"})
    port.slot.answer = b"x" * (16 << 20)
    with port.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(post(b"{}"))
        until(lambda: port.stat("runtime", "blue")["stot"] == "1", "the session")
        until(lambda: port.stat("runtime", "blue")["scur"] == "0", "its end")


# Proxies in front


def test_behind_a_proxy_the_client_is_the_forwarded_address(port):
    """
    The last one, which the proxy itself wrote; of other clients the header means nothing.
    """
    assert port.get("/metrics", PROXY, x_forwarded_for="198.51.100.1")[0] == 404
    assert port.get("/metrics", PROXY, x_forwarded_for=f"{MONITOR}, 198.51.100.1")[0] == 404
    assert port.get("/metrics", PROXY, x_forwarded_for=f"198.51.100.1, {MONITOR}")[0] == 200
    assert port.get("/metrics", PROXY, x_forwarded_for="unknown")[0] == 400
    assert port.get("/metrics", PUBLIC, x_forwarded_for=MONITOR)[0] == 404
    assert port.get("/metrics", PROXY)[0] == 404  # the proxy is in no monitoring network
    assert port.get("/v1/models", PROXY, x_forwarded_for="198.51.100.1")[0] == 200


def test_two_clients_on_one_connection_of_a_proxy_are_two(port):
    """
    Each request of a connection that is kept alive has its own client.
    """
    with port.connect(PROXY) as client:
        for address, wanted in ((MONITOR, 200), ("198.51.100.1", 404), (MONITOR, 200)):
            head = f"GET /metrics HTTP/1.1\r\nhost: x\r\nx-forwarded-for: {address}\r\n\r\n"
            client.sendall(head.encode())
            assert read_answer(client)[0] == wanted


def test_a_client_behind_a_proxy_has_a_limit_of_requests(port):
    """
    429 with the limit in flight; another client of the same proxy is answered.
    """
    port.slot.gate = threading.Event()
    with contextlib.ExitStack() as stack:
        for _ in range(LIMIT):
            client = stack.enter_context(port.connect(PROXY))
            client.sendall(post(b"{}", x_forwarded_for="198.51.100.1"))
        until(lambda: len(port.slot.lines) == LIMIT, "the requests")
        port.slot.gate = None
        status, body = port.generate(PROXY, x_forwarded_for="198.51.100.1")
        assert (status, code_of(body)) == (429, "too_many_requests")
        assert port.generate(PROXY, x_forwarded_for="198.51.100.2")[0] == 200


def test_no_networks_mean_nobody(started):
    """
    Empty lists are valid: no monitoring, no proxies.
    """
    port = started(monitoring_networks=(), trusted_proxies=())
    assert port.get("/metrics", MONITOR)[0] == 404
    assert port.get("/metrics", PROXY, x_forwarded_for=MONITOR)[0] == 404
    assert port.get("/v1/models")[0] == 200


def over_ipv6(port):
    """
    Return the status of a request to ::1; None if nothing listens there.
    """
    try:
        with socket.create_connection(("::1", port.port), DEADLINE_S) as client:
            client.sendall(post(b"{}"))
            return read_answer(client)[0]
    except ConnectionRefusedError:
        return None


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this kernel has no IPv6")
@pytest.mark.parametrize(("ipv6", "status"), [(True, 200), (False, None)])
def test_ipv6_is_served_unless_the_fleet_says_otherwise(started, ipv6, status):
    """
    On the same port; IPv4 is served either way.
    """
    port = started(ipv6=ipv6)
    assert over_ipv6(port) == status
    assert port.generate()[0] == 200
