"""
`challenge.set` on a real HAProxy: exactly the challenges that are shown are answered.
"""

import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from deploy.host import challenges, layout
from deploy.host.codec import Malformed, decode
from deploy.host.journal import Journal
from deploy.host.protocol import Call, ChallengeSet, ErrorKind, HostError
from deploy.inventory.schema import Acme, Tls
from tests.free_port import free_port
from tests.local_host import short_directory
from tests.unit.deploy.provision.public_port import DEADLINE_S, PROGRAM
from tests.unit.deploy.provision.tls_port import TlsPort

pytestmark = pytest.mark.skipif(not Path(PROGRAM).exists(), reason="haproxy is not installed")

THUMBPRINT = "t" * 43


def token(number=0):
    return f"token-{number:_>20}"


def text_of(name):
    return f"{name}.{THUMBPRINT}"


class AcmePort(TlsPort):
    """
    Attributes:
        http_port: Where challenges are answered.
    """

    def __init__(self, folder, **changes):
        self.http_port = free_port()
        tls = Tls(kind="acme", acme=Acme(http_port=self.http_port))
        super().__init__(folder, **({"tls": tls} | changes))

    def answer(self, show=(), hide=()):
        request = ChallengeSet({name: text_of(name) for name in show}, tuple(hide))
        return challenges.answer(self.system, Call(actor="test"), request)

    def fetch(self, path, method="GET"):
        """
        Return the status and the text of the answer to *path*.
        """
        url = f"http://127.0.0.1:{self.http_port}{path}"
        request = urllib.request.Request(url, method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""


@pytest.fixture
def port():
    with short_directory() as folder:
        port = AcmePort(Path(folder))
        try:
            yield port
        finally:
            port.close()


def test_a_challenge_is_answered_while_it_is_shown(port):
    """
    With the exact text, to GET alone; the public port and other paths know nothing of it.
    """
    one, two = token(1), token(2)
    assert port.fetch(challenges.PATH + one)[0] == 404
    assert port.answer([one, two]).answered == 2
    assert port.fetch(challenges.PATH + one) == (200, text_of(one))
    assert port.fetch(challenges.PATH + two) == (200, text_of(two))
    assert port.fetch(challenges.PATH + one, "POST")[0] == 404
    for path in ("/", "/metrics", "/v1/models", challenges.PATH, challenges.PATH + token(3)):
        assert port.fetch(path)[0] == 404
    assert port.get(challenges.PATH + one)[0] == 404
    assert port.answer(hide=[one, token(9)]).answered == 1
    assert port.fetch(challenges.PATH + one)[0] == 404
    assert port.fetch(challenges.PATH + two)[0] == 200


def test_a_challenge_that_is_shown_twice_has_one_answer(port):
    """
    A renewal that is repeated.
    """
    port.answer([token()])
    assert port.answer([token()]).answered == 1
    assert port.fetch(challenges.PATH + token()) == (200, text_of(token()))


def test_a_restart_forgets_all_answers(port):
    """
    They are in memory alone: the file stays empty.
    """
    port.answer([token()])
    assert port.system.layout.acme_map.read_text() == ""
    port.restart()
    assert port.fetch(challenges.PATH + token())[0] == 404


def test_answers_that_were_left_do_not_add_up(port, monkeypatch):
    """
    Renewals that were cut off hide nothing.
    """
    monkeypatch.setattr(challenges, "SHOWN_MAX", 3)
    assert port.answer([token(1), token(2), token(3)]).answered == 3
    assert port.answer([token(4)]).answered == 1
    with pytest.raises(HostError, match="too many"):
        port.answer([token(number) for number in range(4)])


def test_a_host_that_was_not_provisioned_for_it_says_so(port):
    """
    Its HAProxy has no map.
    """
    port.system.layout.acme_map = port.system.layout.acme_map.with_name("other.map")
    with pytest.raises(HostError) as caught:
        port.answer([token()])
    assert caught.value.kind is ErrorKind.PRECONDITION
    assert "inv provision" in caught.value.fix


def test_a_haproxy_that_does_not_run_is_an_error(port):
    """
    Nothing would answer the challenge.
    """
    port.close()
    with pytest.raises(HostError) as caught:
        port.answer([token()])
    assert caught.value.kind is ErrorKind.COMMAND_FAILED


@pytest.mark.parametrize("name", ["short", "a b" * 20, "x" * 129, f"{token()}\n", "é" * 20, ""])
def test_only_tokens_reach_haproxy(name):
    """
    A line break or a semicolon would be a command of its own on the runtime socket.
    """
    decode(ChallengeSet, {"show": {token(): text_of(token())}, "hide": [token()]})
    for document in ({"show": {name: text_of(token())}}, {"hide": [name]}):
        with pytest.raises(Malformed):
            decode(ChallengeSet, document)
    with pytest.raises(Malformed):
        decode(ChallengeSet, {"show": {token(): f"{token()}.{THUMBPRINT};shutdown"}})


def test_the_journal_counts_challenges(port):
    """
    One event for each call.
    """
    port.answer([token()])
    records, _ = Journal(port.system).read()
    assert [(r.step, r.args) for r in records] == [("challenge.set", {"shown": 1, "hidden": 0})]


def test_slow_clients_of_the_challenge_port_take_nothing_from_users(port):
    """
    It has connections of its own, beside those of the public port.
    """
    text = (port.system.layout.run / "haproxy.cfg").read_text()
    assert re.findall(r"maxconn (\d+)", text) == [str(4096 + 64), "64"]
    slow = [socket.create_connection(("127.0.0.1", port.http_port)) for _ in range(70)]
    try:
        assert port.generate()[0] == 200
    finally:
        for client in slow:
            client.close()


def test_without_http_challenges_nothing_listens():
    """
    DNS-01, and the other kinds: neither a port nor a map.
    """
    from deploy.provision import haproxy
    from tests.unit.deploy.provision.builders import make_spec

    acme = Tls(kind="acme", acme=Acme(dns_hook="hooks/dns"))
    for tls in (acme, Tls(kind="internal", authority=Path("/ca"))):
        assert layout.ACME_MAP not in haproxy.config(make_spec(tls=tls))
    assert layout.ACME_MAP in haproxy.config(make_spec(tls=Tls(kind="acme")))
