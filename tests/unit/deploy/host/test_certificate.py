"""
`certificate.set` on a real HAProxy: no request is lost, and what cannot be served changes nothing.
"""

import hashlib
import socket
import stat
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.host import certificate, sockets, tls
from deploy.host.files import UNFINISHED, locked
from deploy.host.journal import Journal
from deploy.host.protocol import CERTIFICATE_MAX, CertificateSet, ErrorKind, HostError
from tests.local_host import short_directory
from tests.unit.deploy.certificates.builders import (
    DAY,
    NOW,
    key_pem,
    make_authority,
    make_leaf,
    pem_of,
    rsa_key,
)
from tests.unit.deploy.provision.public_port import PROGRAM, post, read_answer
from tests.unit.deploy.provision.tls_port import Clients, TlsPort

pytestmark = pytest.mark.skipif(not Path(PROGRAM).exists(), reason="haproxy is not installed")

RENEWALS = 20


@pytest.fixture
def port():
    with short_directory() as folder:
        port = TlsPort(Path(folder))
        try:
            yield port
        finally:
            port.close()


def digest_of(pem):
    return hashlib.sha256(tls.first_certificate(pem)).hexdigest()


def state_of(port):
    """
    Return what is served and what is on the disk.
    """
    folder = port.system.layout.certificates
    return port.shown(), {path.name: path.read_text() for path in folder.iterdir()}


def test_twenty_renewals_under_load_lose_no_request(port):
    """
    Each shows the new certificate to new connections at once; old connections go on.
    """
    old = port.connect()
    clients = Clients(port)
    serials = set()
    for _ in range(RENEWALS):
        pem = port.issue()
        result = port.install(pem)
        assert result.served
        assert result.sha256 == digest_of(pem) == port.shown()
        serials.add(result.sha256)
    lost = clients.stop()
    assert lost == []
    assert len(clients.answers) > RENEWALS
    assert len(serials) == RENEWALS
    old.sendall(post(b"{}"))
    assert read_answer(old)[0] == 200
    old.close()
    path = port.system.layout.certificate
    assert path.read_text() == pem
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_restart_in_their_place_loses_requests(port):
    """
    Negative control: the clients notice a HAProxy that ends its connections.
    """
    clients = Clients(port)
    while not clients.answers:
        time.sleep(0.01)
    port.restart()
    assert clients.stop() != []


def test_a_restart_serves_what_was_set_last(port):
    """
    The file on the disk is the certificate that HAProxy serves.
    """
    result = port.install(port.issue())
    port.restart()
    assert port.shown() == result.sha256


def mismatched(port):
    leaf, _ = make_leaf(port.authority)
    return (pem_of(leaf) + key_pem(make_leaf(port.authority)[1])).decode()


def other_kind(port):
    leaf, _ = make_leaf(port.authority)
    return (pem_of(leaf) + key_pem(rsa_key(2048))).decode()


def encrypted(port):
    leaf, key = make_leaf(port.authority)
    return (pem_of(leaf) + key_pem(key, b"secret")).decode()


def expired(port):
    leaf, key = make_leaf(port.authority, begins=NOW - 2 * DAY, ends=NOW - DAY)
    return (pem_of(leaf) + key_pem(key)).decode()


def weak(port):
    leaf, key = make_leaf(port.authority, key=rsa_key(1024))
    return (pem_of(leaf) + key_pem(key)).decode()


def der(port):
    leaf, _ = make_leaf(port.authority)
    return leaf.public_bytes(Encoding.DER).decode("latin-1")


REFUSED = {
    "mismatched": (mismatched, "belongs to another certificate"),
    "another kind of key": (other_kind, "belongs to another certificate"),
    "encrypted": (encrypted, "the private key is encrypted"),
    "expired": (expired, "certificate has expired"),
    "weak": (weak, "the key is too weak"),
    "der": (der, "not PEM"),
    "empty": (lambda port: "", "not PEM"),
    "words": (lambda port: "nothing\n", "no certificate"),
    "large": (lambda port: "x" * 10_000_000, f"more than {CERTIFICATE_MAX} bytes"),
    "commands": (lambda port: port.issue() + "\nset weight runtime/blue 0\n", "empty lines"),
    "no key": (lambda port: port.issue().partition("-----BEGIN PRIV")[0], ""),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_served_changes_nothing(port, kind):
    """
    The old certificate stays, in HAProxy and on the disk; no draft and no key is left.
    """
    make, why = REFUSED[kind]
    before = state_of(port)
    pem = make(port)
    with pytest.raises(HostError) as caught:
        port.install(pem)
    assert why in caught.value.why
    assert caught.value.kind is ErrorKind.PRECONDITION
    assert state_of(port) == before
    assert "PRIVATE" not in str(caught.value.as_json())
    assert port.stat("runtime", "blue")["weight"] == "100"


def test_a_certificate_that_is_not_shown_is_taken_back(port, monkeypatch):
    """
    HAProxy took it, and new connections show another one.
    """
    before = state_of(port)
    monkeypatch.setattr(certificate, "SHOWN_TIMEOUT_S", 0.2)
    monkeypatch.setattr(port.system, "served_certificate", lambda **_: b"another")
    with pytest.raises(HostError, match="does not serve the new certificate"):
        port.install(port.issue())
    assert state_of(port) == before


def test_haproxy_has_the_last_word(port, monkeypatch):
    """
    What passes our check and not HAProxy's is refused in its words, and the next one is taken.
    """
    before = state_of(port)
    with monkeypatch.context() as patch:
        patch.setattr(tls, "check_file", lambda path: b"x")
        with pytest.raises(HostError) as caught:
            port.install(mismatched(port))
    assert "it does not commit the certificate" in caught.value.why
    assert state_of(port) == before
    assert port.install(port.issue()).served


def test_a_transaction_that_a_dead_call_left_is_no_obstacle(port):
    """
    HAProxy has one transaction at a time.
    """
    path = port.system.layout.certificate
    assert "Transaction created" in port.ask(f"set ssl cert {path} <<\n{port.issue()}")
    result = port.install(port.issue())
    assert port.shown() == result.sha256


@pytest.mark.parametrize("kind", ["stopped", "plain"])
def test_without_tls_in_haproxy_only_the_file_is_replaced(port, kind):
    """
    It is read at the next start or reload: the first provisioning, or HAProxy is down.
    """
    if kind == "stopped":
        port._process.kill()
        port._process.wait()
    else:
        other = port.system.layout.certificates / "other.pem"
        port.system.layout.certificate.rename(other)
        port.system.layout.certificate = other.with_name("further.pem")
    pem = port.issue()
    assert not port.install(pem).served
    assert port.system.layout.certificate.read_text() == pem


def test_a_haproxy_that_does_not_answer_changes_nothing(port, monkeypatch):
    """
    It may serve the old certificate for long: the file is not replaced behind it.
    """
    before = state_of(port)

    def busy(command):
        raise TimeoutError("timed out")

    monkeypatch.setattr(port.system, "haproxy", busy)
    with pytest.raises(HostError):
        port.install(port.issue())
    assert state_of(port) == before


def test_the_journal_names_the_certificate_and_never_the_key(port):
    """
    One event, before HAProxy gets it.
    """
    result = port.install(port.issue())
    text = port.system.layout.journal.read_text()
    assert result.sha256 in text
    assert "PRIVATE" not in text
    records, _ = Journal(port.system).read()
    assert [record.step for record in records] == ["certificate.set"]
    assert "PRIVATE" not in repr(CertificateSet(pem=port.issue()))


def test_the_host_asks_its_port_only_with_its_own_certificate(port):
    """
    The request that confirms a release has a token: it goes to no other certificate.
    """
    ask = {"timeout_s": 5.0, "document": {}, "token": "secret"}
    assert port.system.http_public("POST", "/generate", **ask).status == 200
    assert port.slot.lines == ["POST /generate HTTP/1.1"]
    port.system.layout.certificate.write_text(
        make_authority().issue(("localhost",), NOW).pem.reveal()
    )
    answer = port.system.http_public("POST", "/generate", **ask)
    assert answer.status is None
    assert "another certificate" in answer.body
    assert len(port.slot.lines) == 1


def test_a_release_is_confirmed_while_the_certificate_is_replaced(port, monkeypatch):
    """
    The port shows the next one just before it is the file; for good, if the call dies there.
    """
    ask = {"timeout_s": 5.0, "document": {}, "token": "secret"}
    layout = port.system.layout
    draft = layout.certificates / tls.NEXT_NAME
    pem = port.issue()
    old = layout.certificate.read_text()
    port.install(pem)
    layout.certificate.write_text(old)
    assert port.system.http_public("POST", "/generate", **ask).status is None, "the control"

    draft.write_text(pem)
    assert port.system.http_public("POST", "/generate", **ask).status == 200

    assert port.install(port.issue()).served
    assert not draft.exists()


@pytest.fixture
def cut_off(port):
    """
    A call that was killed after HAProxy's commit: the port shows its draft, the file is the old.
    """
    layout = port.system.layout
    old, pem = layout.certificate.read_text(), port.issue()
    port.install(pem)
    layout.certificate.write_text(old)
    (layout.certificates / tls.NEXT_NAME).write_text(pem)
    (layout.certificates / f"{UNFINISHED}{tls.NEXT_NAME}").write_text(pem)
    return pem


def is_kept(port):
    return certificate.is_kept(port.system, port.system.served_certificate(timeout_s=5.0))


def test_what_another_operator_installed_meanwhile_stays(port):
    """
    Whoever looked before it is refused; a look after it is good, and so is none.
    """
    seen = digest_of(port.system.layout.certificate.read_text())
    other, own = port.issue(), port.issue()
    port.install(other, replaces=seen)
    before = state_of(port)
    with pytest.raises(HostError, match="replaced meanwhile"):
        port.install(own, replaces=seen)
    assert state_of(port) == before == (digest_of(other), {"public.pem": other})
    assert port.install(own, replaces=digest_of(other)).served
    assert port.install(other).served


def test_a_call_that_was_cut_off_is_finished_by_the_next_one(port, cut_off):
    """
    Also by one that is refused: the port goes on to show the certificate that is its file.
    """
    with pytest.raises(HostError):
        port.install("nothing\n")
    assert state_of(port) == (digest_of(cut_off), {"public.pem": cut_off})
    assert is_kept(port)


def test_a_draft_that_the_port_does_not_show_is_dropped(port, cut_off):
    """
    HAProxy was started again, with the file.
    """
    old = port.system.layout.certificate.read_text()
    port.restart()
    with pytest.raises(HostError):
        port.install("nothing\n")
    assert state_of(port) == (digest_of(old), {"public.pem": old})


def test_a_certificate_that_a_restart_would_not_show_is_noticed(port, cut_off):
    """
    Not while another call replaces it, nor once it is replaced.
    """
    assert not is_kept(port)
    with locked(port.system, port.system.layout.certificate_lock, 5.0):
        assert is_kept(port)
    port.install(port.issue())
    assert is_kept(port)
    port.system.layout.certificate.unlink()
    assert not is_kept(port)


@pytest.mark.parametrize("moment", ["before the handshake", "after it"])
def test_a_certificate_that_is_replaced_meanwhile_is_the_hosts_own(port, monkeypatch, moment):
    """
    The handshake showed the old one or the new one, and the file is another by now.
    """
    handshake = tls.wrap

    def wrap(connection):
        monkeypatch.setattr(tls, "wrap", handshake)
        if moment == "before the handshake":
            port.install(port.issue())
        secured = handshake(connection)
        if moment == "after it":
            port.install(port.issue())
        return secured

    monkeypatch.setattr(tls, "wrap", wrap)
    ask = {"timeout_s": 30.0, "document": {}}
    assert port.system.http_public("POST", "/generate", **ask).status == 200
    assert tls.wrap is handshake, "it was replaced"


def test_a_draft_that_is_no_certificate_does_not_disturb_a_confirmation(port):
    """
    A call writes its draft before it checks it.
    """
    (port.system.layout.certificates / tls.NEXT_NAME).write_text("nothing")
    assert port.system.http_public("POST", "/generate", timeout_s=5.0, document={}).status == 200


def test_connection_and_handshake_have_one_deadline(port, monkeypatch):
    """
    What the connection took is not left for the handshake, which a flood of clients delays.
    """
    now_s, left_s = [100.0], []
    connect, handshake = socket.create_connection, tls.wrap

    def slow(*arguments):
        now_s[0] += 2.0
        return connect(*arguments)

    def wrap(connection):
        left_s.append(connection.gettimeout())
        return handshake(connection)

    monkeypatch.setattr(sockets, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    monkeypatch.setattr(socket, "create_connection", slow)
    monkeypatch.setattr(tls, "wrap", wrap)
    assert port.system.served_certificate(timeout_s=8.0)
    assert left_s == [6.0]
    with pytest.raises(TimeoutError):
        port.system.served_certificate(timeout_s=2.0)
    assert port.system.http_public("POST", "/generate", timeout_s=8.0, document={}).status == 200
    assert left_s == [6.0, 6.0]


def test_the_status_has_the_certificate_that_is_shown(port):
    """
    As DER; without HAProxy it fails, and a host with plain HTTP has none.
    """
    shown = port.system.served_certificate(timeout_s=5.0)
    assert hashlib.sha256(shown).hexdigest() == port.shown()
    port.system.layout.host_config.write_text(f'{{"port": {port.port}}}')
    assert port.system.served_certificate(timeout_s=5.0) is None
    port.system.layout.host_config.write_text(f'{{"port": {port.port}, "tls": true}}')
    port._process.kill()
    port._process.wait()
    with pytest.raises(OSError):
        port.system.served_certificate(timeout_s=5.0)
