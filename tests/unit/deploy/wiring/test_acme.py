"""
A renewal from an ACME server: what is asked, whom it reaches, and where it stops.

certbot is a program here that runs its hook for each name and writes its files, as certbot does;
`tests/lab/test_acme.py` has the real one.
"""

import json
import os
import socket
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.certificates import acme
from deploy.certificates.shown import ShownCertificate
from deploy.cli import certificate_report
from deploy.errors import CommandFailed, PreconditionError, TransportError
from deploy.host.protocol import CertificateInstalled, CertificateSet, ChallengesShown
from deploy.inventory.schema import Acme, Tls
from deploy.wiring import acme as wiring
from deploy.wiring import acme_hook
from tests.unit.deploy.certificates.builders import DAY, key_pem, make_authority, make_leaf, pem_of

NAME = "api.example.com"
CERTBOT = """#!{python}
import json, os, pathlib, shutil, subprocess, sys
words = sys.argv[1:]
value = lambda flag: words[words.index(flag) + 1]
here = pathlib.Path(__file__).parent
with (here / "calls").open("a") as calls:
    calls.write(value("--cert-name") + "\\n")
for index, word in enumerate(words):
    if word == "--domain":
        env = os.environ | {{
            "CERTBOT_DOMAIN": words[index + 1], "CERTBOT_VALIDATION": "v", "CERTBOT_TOKEN": "t"
        }}
        # certbot goes on where a hook fails.
        subprocess.run(value("--manual-auth-hook"), shell=True, env=env, timeout=120)
(here / "validated").touch()
log = pathlib.Path(value("--logs-dir")) / "letsencrypt.log"
said = [here / "log", here / f"log-{{value('--cert-name')}}"]
log.write_text("".join(path.read_text() for path in said if path.exists()))
if log.read_text():
    sys.exit("An unexpected error occurred")
live = pathlib.Path(value("--config-dir")) / "live" / value("--cert-name")
shutil.copytree(here / "issued", live, dirs_exist_ok=True)
"""


class Client:
    """
    Attributes:
        fails: Verbs that fail, with their error.
        requests: In their order.
        certificate: That the port shows.
    """

    def __init__(self, host):
        self.host, self.fails, self.requests, self.certificate = host, {}, [], None

    def call(self, request, *, timeout_s):
        self.requests.append(request)
        if request.VERB in self.fails:
            raise self.fails[request.VERB]
        if isinstance(request, CertificateSet):
            return CertificateInstalled(sha256="0" * 64, served=True)
        return ChallengesShown(answered=len(request.show))


class Site:
    def __init__(self, folder, monkeypatch):
        self.folder, self.lines = folder, []
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.program = self.bin / "certbot"
        self.program.write_text(CERTBOT.format(python=sys.executable))
        self.program.chmod(0o755)
        monkeypatch.setattr(acme, "FOLDER", folder / "acme")
        self.authority = make_authority()
        (folder / "ca.pem").write_bytes(pem_of(self.authority.certificate))
        self.clients = {name: Client(name) for name in ("n1", "n2")}
        self.names, self.acme = (NAME,), Acme()
        self.issue()

    def issue(self, names=(NAME, "n1.example.com", "n2.example.com")):
        now = datetime.now(UTC)
        leaf, key = make_leaf(self.authority, names=names, begins=now - DAY, ends=now + 80 * DAY)
        issued = self.bin / "issued"
        issued.mkdir(exist_ok=True)
        (issued / "fullchain.pem").write_bytes(pem_of(leaf))
        (issued / "privkey.pem").write_bytes(key_pem(key))
        return leaf

    def refuse(self, kind, names=()):
        """
        Args:
            names: What certbot calls the certificates that are refused; empty: all.
        """
        urn = f"urn:ietf:params:acme:error:{kind}"
        for log in [f"log-{name}" for name in names] or ["log"]:
            (self.bin / log).write_text(json.dumps({"type": urn, "detail": "a limit"}))

    @property
    def fleet(self):
        tls = Tls(kind="acme", names=self.names, authority=self.folder / "ca.pem", acme=self.acme)
        return SimpleNamespace(
            name="gpu",
            path=SimpleNamespace(name="gpu.yml"),
            hosts=[
                SimpleNamespace(name=name, address=f"{name}.example.com") for name in self.clients
            ],
            others=(),
            service=SimpleNamespace(tls=tls),
        )

    def seen(self):
        return {
            name: client.fails.get("status")
            or SimpleNamespace(certificate=client.certificate, is_certificate_kept=True)
            for name, client in self.clients.items()
        }

    def renew(self, **changes):
        on = SimpleNamespace(fleet=self.fleet, clients=self.clients, seen=self.seen)
        env = {"PATH": f"{self.bin}:{os.environ['PATH']}"}
        return wiring.renew_from_acme(on, self.folder, env, self.lines.append, **changes)

    def calls(self):
        path = self.bin / "calls"
        return path.read_text().split() if path.exists() else []

    def verbs(self):
        return {
            name: [request.VERB for request in client.requests]
            for name, client in self.clients.items()
        }


@pytest.fixture
def site(tmp_path, monkeypatch):
    return Site(tmp_path, monkeypatch)


def lost(host):
    return TransportError(f"{host}: lost", why="timed out", fix="ping it", host=host)


def test_all_hosts_answer_a_challenge_and_then_get_the_certificate(site):
    """
    The answer is removed before; the next call does nothing on hosts and at the server.
    """
    site.issue((NAME,))
    result = site.renew()
    assert result.error is None, str(result.error)
    verbs = ["challenge.set", "challenge.set", "certificate.set"]
    assert site.verbs() == {"n1": verbs, "n2": verbs}
    show, hide, _ = site.clients["n1"].requests
    assert (show.show, hide.hide) == ({"t": "v"}, ("t",))
    for client in site.clients.values():
        leaf = result.pairs["n1"].leaf
        shown = leaf.fingerprint(leaf.signature_hash_algorithm).hex()
        client.certificate = make_shown(leaf, sha256=shown)
        client.requests.clear()
    again = site.renew()
    assert again.error is None
    assert (set(again.kept), dict(again.pairs)) == ({"n1", "n2"}, {})
    assert site.verbs() == {"n1": [], "n2": []}
    assert site.calls() == ["gpu"]
    site.issue((NAME,))
    assert site.renew(is_forced=True).error is None
    assert site.calls() == ["gpu", "gpu"]


def test_a_certificate_that_certbot_put_elsewhere_is_no_success(site):
    """
    In a folder that was moved it begins a new lineage, and the old files stay as they were.
    """
    site.issue((NAME,))
    assert site.renew().error is None
    result = site.renew(is_forced=True)
    assert "somewhere else" in result.error.why
    assert str(site.folder / "acme") in result.error.fix


def test_where_no_host_answers_certbot_is_ended(site):
    """
    The server would count a failed validation.  The control: one host answers.
    """
    for name, client in site.clients.items():
        client.fails["challenge.set"] = lost(name)
    result = site.renew()
    assert isinstance(result.error, CommandFailed)
    assert "lost" in result.error.why
    assert not (site.bin / "validated").exists()
    del site.clients["n2"].fails["challenge.set"]
    assert site.renew().error is None
    assert (site.bin / "validated").exists()


def test_a_host_that_was_not_reached_is_given_the_same_one_later(site):
    """
    The others are not held up, and the server is asked once.
    """
    site.issue((NAME,))
    site.clients["n2"].fails = {"status": lost("n2"), "challenge.set": lost("n2")}
    result = site.renew()
    assert result.error.what == "n2: lost"
    assert site.verbs()["n2"] == ["challenge.set"]
    first = result.pairs["n1"]
    site.clients["n2"].fails = {}
    later = site.renew()
    assert later.error is None
    assert later.pairs["n2"].leaf == first.leaf
    assert site.calls() == ["gpu"]


def test_a_limit_of_one_name_keeps_no_other_from_its_certificate(site):
    """
    Such as: too many failed validations of this name.
    """
    site.names, site.clients = (), {name: Client(name) for name in ("n1", "n2", "n3")}
    site.issue(tuple(f"{name}.example.com" for name in site.clients))
    site.refuse("rateLimited", names=("n1", "n3"))
    result = site.renew()
    assert set(result.errors) == {"n1", "n3"}
    assert set(result.pairs) == {"n2"}
    assert site.calls() == ["n1", "n2", "n3"]


@pytest.mark.parametrize("names", [(NAME,), ()])
def test_hosts_that_are_down_cost_no_certificate(site, names):
    """
    Nobody could be given it; where one host is left, it is asked for.
    """
    site.names = names
    for host in ("n1", "n2"):
        site.clients[host].fails = {"status": lost(host)}
    result = site.renew()
    assert (site.calls(), set(result.errors)) == ([], {"n1", "n2"})
    site.clients["n2"].fails = {}
    assert set(site.renew().pairs) == {"n2"}
    assert len(site.calls()) == 1


def test_a_forced_renewal_replaces_also_what_lasts_longer(site):
    """
    Its key may be lost.  Without --force the certificate that was issued later stays.
    """
    own = site.issue((NAME,))
    longer, _ = make_leaf(site.authority, begins=own.not_valid_before_utc + DAY / 2,
                          ends=own.not_valid_after_utc + DAY)  # fmt: skip
    for client in site.clients.values():
        client.certificate = make_shown(longer)
    assert set(site.renew().kept) == {"n1", "n2"}
    site.issue((NAME,))
    assert set(site.renew(is_forced=True).pairs) == {"n1", "n2"}


def test_what_another_operator_gave_a_host_meanwhile_is_not_replaced(site):
    """
    The host compares it with the one that it was seen with; one that showed none takes any.
    """
    site.issue((NAME,))
    old, _ = make_leaf(site.authority, begins=datetime.now(UTC) - 70 * DAY,
                       ends=datetime.now(UTC) + 9 * DAY)  # fmt: skip
    site.clients["n1"].certificate = make_shown(old, sha256="ab" * 32)
    assert set(site.renew().pairs) == {"n1", "n2"}
    sent = {name: client.requests[-1].replaces for name, client in site.clients.items()}
    assert sent == {"n1": "ab" * 32, "n2": None}


def make_shown(leaf, sha256="0" * 64):
    return ShownCertificate(
        names=(NAME,),
        issuer=leaf.issuer.rfc4514_string(),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        sha256=sha256,
    )


@pytest.mark.parametrize(
    ("kind", "asked"), [("externalAccountRequired", 1), ("rateLimited", 2), ("caa", 4)]
)
def test_a_refusal_for_all_names_ends_the_requests(site, kind, asked):
    """
    The account concerns all; a limit may be of one name, and of all once the next name meets it.
    """
    site.names, site.clients = (), {name: Client(name) for name in ("n1", "n2", "n3", "n4")}
    site.refuse(kind)
    result = site.renew()
    assert len(site.calls()) == asked
    assert set(result.errors) == set(site.clients)
    assert kind in result.error.why
    assert all("certificate.set" not in verbs for verbs in site.verbs().values())


def test_what_clients_would_refuse_reaches_no_host(site):
    """
    Its name is another one; it is not asked for again at each call.
    """
    site.issue(("other.example.com",))
    result = site.renew()
    assert "not for api.example.com" in result.error.why
    assert all("certificate.set" not in verbs for verbs in site.verbs().values())


@pytest.mark.parametrize(
    ("program", "kind"),
    [(None, PreconditionError), ("#!/bin/sh\necho no zone; exit 3\n", CommandFailed)],
)
def test_a_hook_that_fails_ends_certbot(site, program, kind):
    """
    Before the server looks for a record that is not there.
    """
    site.acme = Acme(dns_hook="hooks/dns")
    if program is not None:
        (site.folder / "hooks").mkdir()
        path = site.folder / "hooks" / "dns"
        path.write_text(program)
        path.chmod(0o755)
    result = site.renew()
    assert isinstance(result.error, kind)
    assert not (site.bin / "validated").exists()
    assert site.verbs() == {"n1": [], "n2": []}
    if program is not None:
        assert "no zone" in result.error.why
        assert any("may be left" in line for line in site.lines)


def test_without_certbot_nothing_is_begun(site):
    """
    The error says how to install it.
    """
    site.program.unlink()
    on = SimpleNamespace(fleet=site.fleet, clients=site.clients, seen=site.seen)
    result = wiring.renew_from_acme(on, site.folder, {"PATH": str(site.bin)}, site.lines.append)
    assert "certbot is not installed" in result.error.what
    assert site.verbs() == {"n1": [], "n2": []}


def test_the_folder_of_keys_is_private(site):
    """
    With every directory above it that was made.
    """
    site.issue((NAME,))
    assert site.renew().error is None
    path = acme.certbot_folder(site.fleet)
    for one in (path, path.parent, acme.FOLDER):
        assert stat.S_IMODE(one.stat().st_mode) == 0o700


class NoResponder:
    def __init__(self):
        self.hidden = []

    def show(self, challenge):
        raise lost("n1")

    def hide(self, challenges):
        self.hidden += challenges


@pytest.mark.parametrize("text", ["", "nothing\n", "[]\n", '{"CERTBOT_DOMAIN": 1}\n'])
def test_what_is_no_challenge_is_dropped(text):
    """
    The socket serves the next one.
    """
    responder = NoResponder()
    with wiring.challenge_server(responder) as server:
        path = server.hook.rpartition(" ")[2]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(text.encode())
            client.shutdown(socket.SHUT_WR)
            assert client.recv(64) == b""
        env = os.environ | dict.fromkeys(acme_hook.FIELDS, "x")
        hook = subprocess.Popen(server.hook, shell=True, env=env)
        while server.error is None:
            assert hook.poll() is None  # certbot does not go on before it is ended
        assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    assert hook.wait(60) == 1
    assert responder.hidden == [wiring.Challenge("x", "x", "x")]
    assert not Path(path).exists()


def test_the_report_tells_unchanged_from_renewed_and_failed(site):
    """
    Hosts without a certificate have a line too.
    """
    site.issue((NAME,))
    site.clients["n2"].fails["status"] = lost("n2")
    result = site.renew()
    document = certificate_report.renewal_json("gpu", result)
    assert [(h["host"], h["renewed"], h["unchanged"]) for h in document["hosts"]] == [
        ("n2", False, False),
        ("n1", True, False),
    ]
    assert len(certificate_report.renewal_table(result).rows) == 2
