"""
Certificates of a real ACME server: pebble and certbot of Debian, and a real HAProxy for each host.

No host is booted: HAProxy and the host program run on loopback addresses.  Runs with
SLIPWAY_LAB_LONG=1, and installs the two packages where they are missing, which needs root.
"""

import base64
import os
import re
import ssl
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from deploy.certificates import acme
from deploy.certificates.pair import Pair
from deploy.certificates.shown import shown_certificate
from deploy.certificates.wanted import wanted_pairs
from deploy.errors import CommandFailed, DeployError, InventoryError, TransportError
from deploy.host import certificate
from deploy.host.__main__ import handle
from deploy.inventory.load import load_fleet
from deploy.inventory.schema import Acme, Tls
from deploy.transport.base import Completed
from deploy.transport.client import HostClient
from deploy.wiring.acme import renew_from_acme
from tests.local_host import short_directory
from tests.pebble import PACKAGES, Pebble, files_below, missing_programs
from tests.unit.deploy.provision.tls_port import Clients, TlsPort

NAMES = ("api.example.com", "gpu.example.com")
RENEWALS = 5


@pytest.fixture(scope="session", autouse=True)
def programs():
    if missing_programs():
        argv = ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]
        subprocess.run(argv, check=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    assert missing_programs() == []


class AcmeHost(TlsPort):
    """
    A host on a loopback address of its own, provisioned before it has a certificate.
    """

    def __init__(self, folder, number, pebble):
        self.name, self.address = f"gpu-{number}", f"127.0.1.{number}"
        self.pebble = pebble
        bind = f"bind :{pebble.http_port}"
        super().__init__(
            folder,
            ipv6=False,  # two hosts on one machine
            tls=Tls(kind="acme", acme=Acme(http_port=pebble.http_port)),
            edit=lambda text: text.replace(bind, f"bind {self.address}:{pebble.http_port}"),
        )
        # Its load accepts any certificate: what a client accepts is a test of its own.
        self.client.check_hostname, self.client.verify_mode = False, ssl.CERT_NONE
        self.is_down = False
        self.requests = []

    def issue(self, names=NAMES):
        return acme.placeholder(names, datetime.now(UTC)).pem.reveal()

    @property
    def host(self):
        return self.name

    def run(self, argv, *, timeout_s, stdin=None, check=True, output_max=2**20):
        """
        Run the host program in this process, as a transport does over SSH.
        """
        self.requests.append(argv[-1])
        if self.is_down:
            raise TransportError(f"{self.name}: down", why="test", fix="none", host=self.name)
        return Completed(
            tuple(argv), 0, handle(self.system, argv[-1], stdin.decode()) + "\n", "", 0.0
        )

    def observed(self):
        if self.is_down:
            return TransportError(f"{self.name}: down", why="test", fix="none", host=self.name)
        der = self.system.served_certificate(timeout_s=5.0)
        return SimpleNamespace(
            certificate=shown_certificate(base64.b64encode(der).decode()),
            is_certificate_kept=certificate.is_kept(self.system, der),
        )


class Site:
    """
    A fleet of hosts whose names an ACME server checks.
    """

    def __init__(self, folder, hosts, pebble, **tls):
        self.hosts, self.pebble, self.folder = hosts, pebble, folder
        self.lines = []
        self.write(**tls)

    def write(self, names=NAMES, server=None, hosts=None, **keys):
        document = {
            "row": "torch-2.13-cpu",
            "signing": {"identity": "me", "key": "/k", "allowed_signers": "/s"},
            "service": {
                "tls": {
                    "kind": "acme",
                    "names": list(names),
                    "authority": str(self.pebble.trust),
                    "acme": {
                        "server": server or self.pebble.url,
                        "http_port": self.pebble.http_port,
                        **keys,
                    },
                }
            },
            "hosts": hosts or {host.name: {"address": host.address} for host in self.hosts},
        }
        path = self.folder / "inventories" / "gpu.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(document))

    @property
    def fleet(self):
        return load_fleet("gpu", root=self.folder)

    def renew(self, limit=None, **changes):
        fleet = load_fleet("gpu", root=self.folder, limit=limit)
        by_name = {host.name: host for host in self.hosts}
        on = SimpleNamespace(
            fleet=fleet,
            clients={n: HostClient(h, actor="test", sudo=False) for n, h in by_name.items()},
            seen=lambda: {host.name: by_name[host.name].observed() for host in fleet.hosts},
        )
        return renew_from_acme(on, self.folder, dict(os.environ), self.lines.append, **changes)

    def renewed(self, **changes):
        result = self.renew(**changes)
        assert result.error is None, str(result.error)
        return result

    def shown(self):
        return [host.observed().certificate for host in self.hosts]

    def answers(self):
        """
        Return the challenges that HAProxy of the hosts answers now.
        """
        return [host.ask(f"show map {host.system.layout.acme_map}").strip() for host in self.hosts]


@pytest.fixture(scope="module")
def pebble():
    with short_directory() as folder:
        pebble = Pebble(Path(folder) / "pebble")
        yield pebble
        pebble.close()


@pytest.fixture
def site(pebble, monkeypatch):
    folders = [short_directory() for _ in range(3)]
    own = Path(folders[2].name)
    monkeypatch.setattr(acme, "FOLDER", own / "acme")
    hosts = []
    try:
        for number in (1, 2):
            hosts.append(AcmeHost(Path(folders[number - 1].name), number, pebble))
        for name in NAMES:
            pebble.point(name, *(host.address for host in hosts))
        yield Site(own, hosts, pebble)
    finally:
        for host in hosts:
            host.close()
        for folder in folders:
            folder.cleanup()


def test_hosts_behind_one_name_get_one_certificate_without_losing_a_request(site):
    """
    From the placeholder to the certificate, under load; HAProxy is not restarted, and answers no
    challenge any more.  A second call finds nothing to do.
    """
    clients = [Clients(host) for host in site.hosts]
    result = site.renew()
    lost = [status for one in clients for status in one.stop()]
    assert result.error is None, str(result.error)
    assert lost == []
    assert all(len(one.answers) > 10 for one in clients)
    first, second = site.shown()
    assert first == second
    assert set(first.names) == set(NAMES)
    assert "Pebble Intermediate" in first.issuer
    assert first.days_left(datetime.now(UTC)) in (89, 90)
    assert site.answers() == ["", ""]

    for host in site.hosts:
        host.requests.clear()
    again = site.renew()
    assert again.error is None
    assert again.pairs == {}
    assert set(again.kept) == {"gpu-1", "gpu-2"}
    assert [host.requests for host in site.hosts] == [[], []]
    assert site.shown() == [first, second]


def test_a_client_that_trusts_the_server_accepts_the_port(site):
    """
    The chain is whole; before, with the placeholder, the same client refused.
    """
    argv = ["curl", "--silent", "--cacert", str(site.pebble.trust), "--data", "{}"]
    argv += ["--output", "/dev/null", "--write-out", "%{http_code}"]

    def curl(host):
        to = f"{NAMES[0]}:{host.port}:127.0.0.1"
        url = f"https://{NAMES[0]}:{host.port}/generate"
        done = subprocess.run([*argv, "--resolve", to, url], capture_output=True, text=True)
        return done.returncode, done.stdout

    assert curl(site.hosts[0])[0] == 60  # the control: no certificate of a known authority
    site.renewed()
    assert [curl(host) for host in site.hosts] == [(0, "200")] * 2


def test_renewals_lose_no_request(site):
    """
    Each with a new key.
    """
    site.renewed()
    clients = [Clients(host) for host in site.hosts]
    seen = set()
    for _ in range(RENEWALS):
        result = site.renew(is_forced=True)
        assert result.error is None, str(result.error)
        [sha256] = {one.sha256 for one in site.shown()}
        seen.add(sha256)
    assert [status for one in clients for status in one.stop()] == []
    assert len(seen) == RENEWALS


def test_keys_are_private_and_in_no_argument_log_or_journal(site):
    """
    Of the account and of the certificate.  The control: the files that may have them do.
    """
    seen = []
    stopping = threading.Event()

    def watch():
        while not stopping.wait(0.002):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.append(path.read_bytes())
                except OSError:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        site.renewed()
    finally:
        stopping.set()
        thread.join()
    live = acme.live_folder(site.fleet, acme.orders(site.fleet)[0])
    secret = (live / "privkey.pem").read_text().splitlines()[1]
    account = next(acme.FOLDER.rglob("private_key.json")).read_text()
    exponent = re.search(r'"d": ?"([^"]+)"', account)[1]
    assert any(b"certonly" in words for words in seen)
    places = [
        *seen,
        *(path.read_bytes() for path in acme.FOLDER.rglob("*.log*")),
        *(host.system.layout.journal.read_bytes() for host in site.hosts),
        *(line.encode() for line in site.lines),
    ]
    for text in places:
        assert secret.encode() not in text
        assert exponent.encode() not in text
        assert b"PRIVATE" not in text
    for path in files_below(acme.FOLDER):
        if b"PRIVATE" in path.read_bytes() or exponent.encode() in path.read_bytes():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(acme.FOLDER.stat().st_mode) == 0o700


def test_each_host_may_have_a_name_of_its_own(site):
    """
    Then the challenge of a name is answered by its host alone.
    """
    entries = {f"gpu-{n}": f"gpu-{n}.example.com" for n in (1, 2)}
    for host in site.hosts:
        site.pebble.point(entries[host.name], host.address)
    site.write(names=(), hosts={name: {"address": dns} for name, dns in entries.items()})
    site.renewed(limit="gpu-1")
    assert "challenge.set" not in site.hosts[1].requests
    assert site.shown()[0].names == ("gpu-1.example.com",)
    assert "placeholder" in site.shown()[1].issuer
    site.renewed()
    assert [one.names for one in site.shown()] == [(name,) for name in entries.values()]


def test_a_name_that_points_elsewhere_changes_nothing(site):
    """
    The server's own words name the domain; the challenges are gone from the hosts.
    """
    before = site.shown()
    site.pebble.point(NAMES[0], "127.0.3.3")
    result = site.renew()
    assert isinstance(result.error, CommandFailed)
    assert NAMES[0] in result.error.why
    assert "connection" in result.error.why
    assert "port 80" in result.error.fix
    assert set(result.errors) == {"gpu-1", "gpu-2"}
    assert site.shown() == before
    assert site.answers() == ["", ""]
    site.pebble.point(NAMES[0], *(host.address for host in site.hosts))
    site.renewed()


def test_a_host_that_another_program_answers_for_is_named(site):
    """
    The name points to a web server without the challenge: a 404.
    """
    site.pebble.point(NAMES[0], site.hosts[0].address)
    site.hosts[0].is_down = True
    result = site.renew()
    assert "unauthorized" in result.errors["gpu-2"].why
    assert "not answered by gpu-1" in result.errors["gpu-2"].why


def test_a_host_that_was_down_gets_the_certificate_later(site):
    """
    Half-renewed: nothing is asked of the ACME server the second time.
    """
    for name in NAMES:
        site.pebble.point(name, site.hosts[0].address)
    site.hosts[1].is_down = True
    result = site.renew()
    assert isinstance(result.error, TransportError)
    assert set(result.errors) == {"gpu-2"}
    first = site.hosts[0].observed().certificate
    site.hosts[1].is_down = False
    site.lines.clear()
    later = site.renew()
    assert later.error is None
    assert set(later.kept) == {"gpu-1"}
    assert site.lines == []
    assert site.shown() == [first, first]


def test_another_name_is_a_new_certificate_and_until_then_the_old_one_stays(site):
    """
    Provisioning meanwhile brings the old one, never a placeholder.
    """
    site.renewed()
    old = site.shown()[0]
    site.pebble.point("new.example.com", *(host.address for host in site.hosts))
    site.write(names=(*NAMES, "new.example.com"))
    pairs = wanted_pairs(site.fleet, datetime.now(UTC), is_kept=True)
    assert {isinstance(pair, Pair) for pair in pairs.values()} == {True}
    assert not any(acme.is_placeholder(pair.leaf) for pair in pairs.values())
    site.renewed()
    assert set(site.shown()[0].names) == {*NAMES, "new.example.com"}
    assert site.shown()[0] != old


DNS_HOOK = """#!{python}
import json, os, sys, urllib.request
name = "_acme-challenge." + os.environ["CERTBOT_DOMAIN"] + "."
path, document = {{
    "present": ("set-txt", {{"host": name, "value": os.environ["CERTBOT_VALIDATION"]}}),
    "cleanup": ("clear-txt", {{"host": name}}),
}}[sys.argv[1]]
with open({log!r}, "a") as log:
    log.write(sys.argv[1] + " " + name + "\\n")
urllib.request.urlopen("{dns}/" + path, json.dumps(document).encode(), timeout=5)
"""


def test_dns_records_of_a_hook_prove_names_that_lead_nowhere(site):
    """
    DNS-01: no host is asked for anything, and each record is removed.
    """
    folder = site.folder / "hooks"
    folder.mkdir()
    program, log = folder / "dns", site.folder / "hook.log"
    program.write_text(
        DNS_HOOK.format(python=sys.executable, log=str(log), dns=site.pebble.dns_control)
    )
    program.chmod(0o755)
    for name in NAMES:
        site.pebble.point(name, "127.0.3.3")
    site.write(dns_hook="hooks/dns")
    result = site.renew()
    assert result.error is None, str(result.error)
    assert all("challenge.set" not in host.requests for host in site.hosts)
    records = [f"_acme-challenge.{name}." for name in NAMES]
    lines = log.read_text().splitlines()
    assert sorted(lines[:2]) == [f"present {record}" for record in records]
    assert sorted(lines[2:]) == [f"cleanup {record}" for record in records]

    program.write_text("#!/bin/sh\necho no such zone\nexit 3\n")
    failed = site.renew(is_forced=True)
    assert "no such zone" in failed.error.why
    assert any("cleanup" in line for line in site.lines)


def test_without_certbot_the_error_says_what_to_install(site, monkeypatch):
    """
    No host is asked for anything but its state.
    """
    monkeypatch.setenv("PATH", "/nowhere")
    result = site.renew()
    assert "certbot is not installed" in result.error.what
    assert "apt install certbot" in result.error.fix
    assert [host.requests for host in site.hosts] == [[], []]


def test_a_server_that_does_not_answer_is_one_error(site):
    """
    With the last words of certbot, and where its log is; no traceback.
    """
    site.write(server="https://127.0.0.1:1/dir")
    result = site.renew()
    assert isinstance(result.error, CommandFailed)
    assert "certbot" in result.error.why
    assert "letsencrypt.log" in result.error.fix
    assert "Traceback" not in str(result.error)


def test_a_certificate_that_clients_would_refuse_reaches_no_host(site):
    """
    As that of a test server: the clients of the fleet file trust another authority.
    """
    before = site.shown()
    trusted = site.pebble.trust.read_text()
    site.renewed()
    own = trusted.split("-----END CERTIFICATE-----\n")[0] + "-----END CERTIFICATE-----\n"
    try:
        site.pebble.trust.write_text(own)
        result = site.renew(is_forced=True)
        assert isinstance(result.error, InventoryError)
        assert "service.tls.authority" in result.error.fix
        with pytest.raises(DeployError, match="clients would refuse"):
            wanted_pairs(site.fleet, datetime.now(UTC), is_kept=True)
    finally:
        site.pebble.trust.write_text(trusted)
    assert site.shown()[0].sha256 != before[0].sha256


def test_answers_that_were_left_do_no_harm(site):
    """
    Of a renewal that was killed, which removed none.
    """
    host = site.hosts[0]
    host.ask(f"add map {host.system.layout.acme_map} /.well-known/acme-challenge/left left")
    site.renewed()
    assert [len(text.splitlines()) for text in site.answers()] == [1, 0]
