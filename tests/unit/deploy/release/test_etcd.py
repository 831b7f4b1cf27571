"""
The client of etcd's JSON gateway: several endpoints, TLS, authentication, and hostile answers.
"""

import base64
import json
import socket
import time
from dataclasses import replace

import pytest

from deploy.errors import DeployError, PreconditionError, TransportError
from deploy.inventory.secrets import SecretValue
from deploy.release.etcd import EtcdClient, EtcdSettings, KeyValue
from deploy.release.store_etcd import EtcdStore
from tests.free_port import free_port
from tests.unit.deploy.release import webhook_server as servers
from tests.unit.deploy.release.etcd_process import etcd_process


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    with etcd_process(tmp_path_factory.mktemp("etcd")) as one:
        yield one


@pytest.fixture
def server(tmp_path):
    with servers.webhook_server(tmp_path) as one:
        yield one


@pytest.fixture
def fake(server, tmp_path):
    """
    Return a function that makes a client of a server that answers as told.
    """

    def make(behaviour, within_s=60.0):
        server.behaviour = behaviour
        endpoint = f"https://127.0.0.1:{server.server_port}"
        settings = EtcdSettings((endpoint,), ca=tmp_path / "server.crt")
        return EtcdClient(settings, within_s=within_s)

    return make


def answers(document, status=200):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()

    def behave(handler):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def b64(text):
    return base64.b64encode(text.encode()).decode()


# -- a real etcd


def test_keys_are_compared_and_swapped(etcd):
    """
    In one step, with the revision that was read.
    """
    client = etcd.client()
    assert client.txn(ranges=["a"]).values == (KeyValue(),)
    assert client.txn(unchanged={"a": 0}, puts=[("a", b"\x00\xff", 0)]).succeeded
    assert not client.txn(unchanged={"a": 0}, puts=[("a", b"2", 0)]).succeeded
    [value, missing] = client.txn(ranges=["a", "none"]).values
    assert value.value == b"\x00\xff"
    assert missing == KeyValue()
    assert client.txn(unchanged={"a": value.mod_revision}, puts=[("a", b"2", 0)]).succeeded
    assert client.txn(ranges=["a"]).values[0].value == b"2"


def test_a_lease_takes_its_keys_with_it(etcd):
    client = etcd.client()
    lease = client.grant(30)
    client.txn(puts=[("present", b"x", lease)])
    assert client.keep_alive(lease)
    client.revoke(lease)
    assert not client.keep_alive(lease)
    assert client.txn(ranges=["present"]).values == (KeyValue(),)


def test_a_dead_endpoint_is_passed_over(etcd):
    """
    One that refuses, and one that never answers; then the good one comes first.
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dead = f"https://127.0.0.1:{free_port()}", f"https://127.0.0.1:{silent.getsockname()[1]}"
        settings = replace(etcd.settings, endpoints=(*dead, *etcd.settings.endpoints))
        client = EtcdClient(settings, within_s=60.0)
        for _ in range(2):
            client.txn(ranges=["a"])
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # the second request went to the good one alone
            silent.accept()


def test_all_endpoints_are_named(etcd):
    dead = tuple(f"https://127.0.0.1:{free_port()}" for _ in range(2))
    client = EtcdClient(replace(etcd.settings, endpoints=dead))
    with pytest.raises(TransportError) as failed:
        client.txn(ranges=["a"])
    for endpoint in dead:
        assert endpoint in failed.value.what
        assert f"{endpoint}: no connection: Connection refused" in failed.value.why


@pytest.mark.parametrize(
    "without", [{"ca": None}, {"cert": None, "key": None}], ids=["server", "client"]
)
def test_both_sides_are_verified(etcd, without):
    """
    Its certificate against `ca`; ours by etcd.
    """
    with pytest.raises(TransportError):
        EtcdClient(replace(etcd.settings, **without), within_s=2.0).txn(ranges=["a"])


@pytest.mark.parametrize("spoil", ["cert", "key", "ca"])
def test_a_broken_certificate_is_one_error(etcd, tmp_path, spoil):
    (tmp_path / "broken").write_text("-----BEGIN CERTIFICATE-----\nxx\n")
    for path in (tmp_path / "broken", tmp_path / "missing"):
        client = EtcdClient(replace(etcd.settings, **{spoil: path}))
        with pytest.raises(PreconditionError, match="certificates") as failed:
            client.txn(ranges=["a"])
        assert str(path) in failed.value.why


def test_a_user_authenticates(etcd):
    """
    A wrong password is refused and not shown; permissions are etcd's own.
    """
    client = etcd.client()
    for path, document in (
        ("user/add", {"name": "root", "password": "r00t-s3cret"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("user/add", {"name": "slipway", "password": "s3cret"}),
        ("role/add", {"name": "slipway"}),
        ("role/grant", {
            "name": "slipway",
            "perm": {"permType": 2, "key": b64("slipway/"), "range_end": b64("slipway0")},
        }),
        ("user/grant", {"user": "slipway", "role": "slipway"}),
        ("enable", {}),
    ):  # fmt: skip
        client._call(f"/v3/auth/{path}", document, lambda answer: None)

    def client_of(user, password):
        settings = replace(etcd.settings, user=user, password=SecretValue(password))
        return EtcdClient(settings, within_s=60.0)

    root = client_of("root", "r00t-s3cret")
    try:
        one = client_of("slipway", "s3cret")
        one.txn(puts=[("slipway/x", b"1", 0)])
        one._token = "expired.1"
        one.txn(ranges=["slipway/x"])  # authenticates again
        for refused in (
            lambda: one.txn(ranges=["other"]),
            lambda: client_of("slipway", "wr0ng").txn(ranges=["slipway/x"]),
            lambda: etcd.client().txn(ranges=["slipway/x"]),
        ):
            with pytest.raises(PreconditionError, match="etcd refuses") as failed:
                refused()
            assert "wr0ng" not in str(failed.value)
            assert "state.user" in failed.value.fix
    finally:
        root._call("/v3/auth/disable", {}, lambda answer: None)


def test_a_value_that_is_too_large_is_one_error(etcd):
    """
    Etcd takes 1.5 MiB.
    """
    with pytest.raises(PreconditionError, match="etcd refuses") as failed:
        etcd.client().txn(puts=[("a", b"x" * 1_700_000, 0)])
    assert "too large" in failed.value.why


# -- hostile answers

HEADER = {"header": {"revision": "7"}}
VALUE = {"key": b64("a"), "value": b64("x"), "mod_revision": "5"}


def found(*kvs, **more):
    responses = [{"response_range": {"kvs": list(kvs)}}]
    return {**HEADER, "succeeded": True, "responses": responses, **more}


def test_a_right_answer_is_taken(fake):
    """
    Negative control of those below.
    """
    client = fake(answers(found(VALUE)))
    assert client.txn(ranges=["a"]).values == (KeyValue(b"x", 5),)


@pytest.mark.parametrize(
    "document",
    [
        b"", b"garbage\x1b[2J", b"[" * 100_000, b"[]", b"null", b"\xff\xfe", b'"x"',
        {}, {"header": []}, {"header": {"revision": "x"}}, {"header": {"revision": 7}},
        {"header": {"revision": "-1"}}, {"header": {"revision": "9" * 40}},
        {"header": {"revision": "\u0661"}},
        found(VALUE, succeeded="yes"), found(VALUE, succeeded=1), found(VALUE, responses={}),
        found(VALUE, responses=[]), found(VALUE, responses=[1]),
        found(VALUE, responses=[{"response_range": []}]),
        found(VALUE, responses=[{"response_range": {"kvs": {}}}]),
        found(VALUE, VALUE), found(1), found({**VALUE, "key": b64("b")}),
        found({**VALUE, "key": "!"}), found({**VALUE, "value": 1}),
        found({**VALUE, "value": "\u00e9"}),
        found({**VALUE, "mod_revision": "0"}), found({**VALUE, "mod_revision": None}),
        found({**VALUE, "mod_revision": []}),
    ],
    ids=lambda document: (
        document[:12].hex() if isinstance(document, bytes) else json.dumps(document)[-60:]
    ),
)  # fmt: skip
def test_an_answer_that_is_not_etcds_is_one_error(fake, document):
    with pytest.raises(TransportError, match="cannot be used") as failed:
        fake(answers(document)).txn(ranges=["a"])
    assert "its answer is not etcd's" in failed.value.why
    assert "\x1b" not in str(failed.value)


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (servers.never_answer, "no answer within 1 s"),
        (servers.drip, "no answer within 1 s"),
        (servers.endless_headers, "RemoteProtocolError"),
        (servers.garbage, "RemoteProtocolError"),
        (servers.redirect, "status 307"),
        (answers(b"<html>\x1b[2J", 502), 'status 502; it says: "<html>\\x1b[2J"'),
        (servers.close_at_once, "RemoteProtocolError"),
        (servers.answer_one_gigabyte, "more than 8 MiB"),
        (answers({"message": "no\x1b[2J leader", "code": 14}, 503), 'says: "no\\x1b[2J leader"'),
        (answers({"error": 5}, 418), "status 418"),
    ],
)  # fmt: skip
def test_a_server_that_misbehaves_is_one_error_in_time(fake, behaviour, why):
    client = fake(behaviour, within_s=1.0 if why.startswith("no answer") else 60.0)
    began_s = time.monotonic()
    with pytest.raises(TransportError) as failed:
        client.txn(ranges=["a"])
    assert time.monotonic() - began_s < 30  # those that do not answer go on for 600 s
    assert why in failed.value.why or why.startswith("no answer")


def test_an_older_revision_than_before_is_refused(fake, server):
    """
    A member that was restored from a backup would forget who won the epoch.
    """
    client = fake(answers(found(VALUE)))
    client.txn(ranges=["a"])
    server.behaviour = answers({**found(VALUE), "header": {"revision": "6"}})
    with pytest.raises(TransportError) as failed:
        client.txn(ranges=["a"])
    assert "its revision is 6, after 7" in failed.value.why


@pytest.mark.parametrize(
    "value",
    ["", "x", "[]", "{}", '{"epoch": "1", "number": 1, "text": "{}"}',
     '{"epoch": 1, "number": 1, "text": "garbage"}', '{"epoch": 1, "number": 1, "text": 5}',
     '{"epoch": 1, "winner": 5}', '{"epoch": -1, "winner": "x"}', "[" * 10_000],
)  # fmt: skip
def test_a_value_that_is_not_slipways_is_one_error(etcd, fleet, value):
    """
    Another program has written to the prefix.
    """
    prefix = "foreign"
    keeper = type("Keeper", (), {"owner": "me", "ttl_s": 15.0, "release_all": lambda self: None})()
    client = etcd.client()
    store = EtcdStore(etcd.client(), prefix, fleet.clients, keeper, fleet.clock)
    for key, action in (
        ("state", store.read),
        ("epoch", lambda: store.acquire(steal=False, is_way_back=False)),
    ):
        if key == "state" and "winner" in value:
            continue
        client.txn(puts=[(f"{prefix}/{key}", value.encode(), 0)])
        with pytest.raises(PreconditionError) as failed:
            action()
        assert len(str(failed.value)) < 2000


def test_an_encrypted_key_is_not_asked_for(etcd, tmp_path):
    """
    OpenSSL would ask the terminal for its password.
    """
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(etcd.settings.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pw"),
        )
    )
    with pytest.raises(DeployError, match="certificates"):
        EtcdClient(replace(etcd.settings, key=locked)).txn(ranges=["a"])
