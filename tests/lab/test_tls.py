"""
TLS on booted hosts: provisioned, released and renewed under traffic of clients that verify.

Leaves the hosts with plain HTTP and v1.0.0, as the other tests of this lab expect them.
"""

import hashlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import yaml

from deploy.certificates.authority import CERTIFICATE
from deploy.host import layout
from deploy.lab import lab
from deploy.wiring import certificates, checkout, lab_models
from deploy.wiring.hosts import connect

ROOT = Path(__file__).parents[2]
RENEWALS = 20
BODY = {"prompt": "The lighthouse", "max_tokens": 2, "temperature": 0}


class Tls:
    """
    The lab's fleet with an authority of its own.

    Attributes:
        path: The fleet file.
    """

    def __init__(self, folder):
        self.path, self.authority = folder / "lab.yml", folder / "slipway-ca"
        document = yaml.safe_load((ROOT / "inventories" / "lab.yml").read_text())
        document["service"]["tls"] = {"kind": "internal", "authority": str(self.authority)}
        self.path.write_text(yaml.safe_dump(document))

    def inv(self, *args, wanted=0):
        """
        Run a task on the fleet, with --json except for certs.create; return its document.
        """
        is_json = args[0] != "certs.create"
        argv = [sys.executable, "-m", "invoke", *args, "--hosts", str(self.path)]
        argv += ["--json"] if is_json else []
        done = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == wanted, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if is_json else done.stdout

    def served(self):
        """
        Return the versions that have traffic.
        """
        argv = [sys.executable, "-m", "invoke", "status", "--hosts", str(self.path), "--json"]
        done = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        # It has an exit code of its own where nothing serves yet.
        slots = [slot for host in json.loads(done.stdout)["hosts"] for slot in host["slots"]]
        return {slot["version"] for slot in slots if slot["weight_pct"]}

    @property
    def fleet(self):
        return checkout.fleet(str(self.path))

    @property
    def client(self):
        return ssl.create_default_context(cafile=self.authority / CERTIFICATE)

    @property
    def urls(self):
        fleet = self.fleet
        port = fleet.service.port
        return {host.name: f"https://{host.address}:{port}/v1/completions" for host in fleet.hosts}


class Clients:
    """
    Two clients of each host that verify its certificate: one keeps its connection.

    Attributes:
        statuses: Of each answer; an exception's name where there was none.
    """

    def __init__(self, tls):
        self.statuses, self._stopping = [], threading.Event()
        jobs = [(url, is_kept) for url in tls.urls.values() for is_kept in (True, False)]
        self._threads = [
            threading.Thread(target=self._run, args=(tls.client, *job), daemon=True) for job in jobs
        ]
        for thread in self._threads:
            thread.start()

    def stop(self):
        """
        End all clients; return what was not answered with 200.
        """
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
        return [status for status in self.statuses if status != 200]

    def _run(self, context, url, is_kept):
        kept = httpx.Client(verify=context, timeout=60)
        while not self._stopping.wait(0.1):
            try:
                if is_kept:
                    status = kept.post(url, json=BODY).status_code
                else:
                    status = httpx.post(url, json=BODY, verify=context, timeout=60).status_code
            except httpx.HTTPError as error:
                status = repr(error)
            self.statuses.append(status)
        kept.close()


def shown(tls, host):
    """
    Return the SHA-256 of the certificate that a new connection to *host* verifies.
    """
    url = httpx.URL(tls.urls[host])
    with socket.create_connection((url.host, url.port), 10) as connection:
        secured = tls.client.wrap_socket(connection, server_hostname=url.host)
        with secured:
            return hashlib.sha256(secured.getpeercert(binary_form=True)).hexdigest()


def haproxy_of(host):
    """
    Return the process of HAProxy that serves, and when its unit was started.
    """
    script = (
        f"echo show info | socat - UNIX-CONNECT:{layout.HAPROXY_SOCKET} | grep '^Pid:'; "
        "systemctl show -p ActiveEnterTimestampMonotonic haproxy.service"
    )
    return lab.inside(host, ["sh", "-c", script]).stdout


@pytest.fixture(scope="module")
def tls(lab_hosts, tmp_path_factory):
    tls = Tls(tmp_path_factory.mktemp("tls"))
    try:
        tls.inv("certs.create", "--yes")
        tls.inv("provision", "--yes")
        for version, kind in {"v1.0.0": "good-v1", "v1.1.0": "good-v2"}.items():
            model = lab_models.make_lab_model(kind, None, print)
            tls.inv("bundle", "--model", str(model), "--version", version)
        if not tls.served():
            tls.inv("release", "--version", "v1.0.0", "--allow-older", "--yes")
        elif tls.served() != {"v1.0.0"}:
            tls.inv("rollback", "--to", "v1.0.0", "--yes")
        yield tls
    finally:
        argv = [sys.executable, "-m", "invoke", "provision", "--hosts", "lab", "--yes"]
        subprocess.run(argv, cwd=ROOT, timeout=400, check=True)


def test_a_second_provisioning_changes_nothing(tls):
    """
    Neither certificates nor HAProxy.
    """
    before = {host: shown(tls, host) for host in tls.urls}
    assert tls.inv("provision", "--yes")["changes"] == []
    assert {host: shown(tls, host) for host in tls.urls} == before


def test_twenty_renewals_on_all_hosts_lose_no_request(tls):
    """
    HAProxy is neither reloaded nor restarted; each host has a certificate of its own.
    """
    processes = {host: haproxy_of(host) for host in tls.urls}
    clients = Clients(tls)
    with connect(tls.fleet) as on:
        for _ in range(RENEWALS - 1):
            result = certificates.renew(on, certificates.new_pairs(tls.fleet))
            assert result.error is None, str(result.error)
    document = tls.inv("certs.renew", "--yes")
    seen = {host["host"]: host["sha256"] for host in document["hosts"] if host["renewed"]}
    assert clients.stop() == []
    assert len(clients.statuses) >= 8
    assert {host: shown(tls, host) for host in tls.urls} == seen
    assert len(set(seen.values())) == len(tls.urls)
    assert {host: haproxy_of(host) for host in tls.urls} == processes


def test_a_release_is_confirmed_through_tls(tls):
    """
    Under traffic, and back.
    """
    clients = Clients(tls)
    # Half of the traffic: the clients are few, and the canary needs 20 requests.
    tls.inv("release", "--version", "v1.1.0", "--canary", "50", "--allow-older", "--yes")
    tls.inv("rollback", "--to", "v1.0.0", "--yes")
    assert clients.stop() == []


def test_the_hosts_verify_and_show_their_certificates(tls):
    """
    `inv verify`, `inv status` and `inv certs.show`; clients without the authority refuse.
    """
    assert tls.inv("verify")["failed"] == []
    hosts = tls.inv("certs.show")["hosts"]
    assert [host["certificate"]["days_left"] for host in hosts] == [89] * len(hosts)
    assert all("certificate" in host for host in tls.inv("status")["hosts"])
    with pytest.raises(httpx.ConnectError):
        httpx.post(next(iter(tls.urls.values())), json=BODY, timeout=10)


def test_a_host_that_restarts_shows_what_it_was_given_last(tls):
    """
    The file on its disk is the last certificate.
    """
    before = shown(tls, "n1")
    assert lab.inside("n1", ["systemctl", "restart", layout.HAPROXY_UNIT]).returncode == 0
    until_s = time.monotonic() + 30
    while True:
        try:
            assert shown(tls, "n1") == before
            break
        except OSError:
            assert time.monotonic() < until_s
            time.sleep(0.1)
