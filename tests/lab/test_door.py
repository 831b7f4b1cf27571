"""
The door of booted hosts: TLS, renewed under traffic, and API keys, changed under traffic.

A lab of its own with four hosts; all clients verify the fleet's authority and send a token.
"""

import argparse
import asyncio
import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.api_keys.token import make_token
from deploy.certificates.authority import CERTIFICATE
from deploy.demo.load import LoadGenerator
from deploy.host import layout
from deploy.lab import lab
from deploy.lab.config import LabConfig
from deploy.wiring import certificates, checkout, lab_models
from deploy.wiring.hosts import connect
from runtime.contract import (
    KEY_GENERATED_TOKENS_TOTAL,
    KEY_PROMPT_TOKENS_TOTAL,
    KEY_REQUESTS_TOTAL,
)
from tests import fairness_load, secret_search
from tests.lab.conftest import say
from tests.lab.own_lab import booted_lab

ROOT = Path(__file__).parents[2]
HOSTS = ("n1", "n2", "n3", "n4")
RENEWALS = 20
IN_FORCE_S = 5.0  # from the end of a command of keys to its effect on each host
SECRET_ROOTS = ["/opt/slipway", "/etc", "/run", "/var/lib/slipway", "/var/log", "/tmp", "/dev/shm"]
MODELS = {"v1.0.0": "good-v1", "v1.1.0": "good-v2"}
BODY = {"prompt": "The slipway is", "max_tokens": 2, "temperature": 0}


@dataclass
class Door:
    """
    The fleet of this module.

    Attributes:
        path: The fleet file.
        began_s: When the first key was added, in seconds since 1970: no secret is older.
        tokens: Of the keys that were added, by name.
        digests: Of the bundles, by version.
    """

    config: LabConfig
    path: Path
    authority: Path
    began_s: float = 0.0
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    digests: dict[str, str] = field(default_factory=dict)

    def inv(self, *args):
        """
        Run a task on the fleet, with --json except for certs.create; return its document.
        """
        wanted = (0, 26) if args[0] == "status" else (0,)  # 26: a finding, such as no release
        is_json = args[0] != "certs.create"
        argv = [sys.executable, "-m", "deploy.cli", *args, "--hosts", str(self.path)]
        argv += ["--json"] if is_json else []
        done = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
        )
        # A token is printed once, on stdout: not shown here.
        shown = done.stderr if args[0] in ("keys.add", "keys.rotate") else done.stdout + done.stderr
        assert done.returncode in wanted, f"{' '.join(args)}: exit {done.returncode}\n{shown}"
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout) if is_json else done.stdout

    def add_key(self, name, *flags):
        self.tokens[name] = self.inv("keys.add", "--name", name, *flags, "--yes")["token"]
        return self.tokens[name]

    def served(self):
        """
        Return the versions that have traffic.
        """
        slots = [slot for host in self.inv("status")["hosts"] for slot in host["slots"]]
        return {slot["version"] for slot in slots if slot["weight_pct"]}

    @property
    def fleet(self):
        return checkout.fleet(str(self.path))

    @property
    def trusted(self):
        return self.authority / CERTIFICATE

    @property
    def tls(self):
        return ssl.create_default_context(cafile=self.trusted)

    def url(self, host, path=""):
        return f"https://{self.config.address(host)}:8000{path}"

    def inside(self, host, *argv, timeout_s=60.0):
        done = lab.inside(host, list(argv), config=self.config, timeout_s=timeout_s)
        assert done.returncode == 0, f"{host}: {argv[:3]}: {done.stdout}{done.stderr}"
        return done.stdout

    def load(self, **changes):
        """
        Return live traffic on all hosts: kept connections, and chat streams.
        """
        arguments = {
            "prompts": [BODY["prompt"], "The keel is"],
            "rate_rps": 20,
            "connections": 8,
            "streams": 4,
            "max_tokens": 2,
            "stream_max_tokens": 16,
            "stream_pause_s": 0.5,
            "timeout_s": 30.0,
            "authority": self.trusted,
            "token": self.tokens["load"],
            "networks": (self.config.subnet,),
        }
        return LoadGenerator([self.url(name) for name in HOSTS], **(arguments | changes))


class FreshClients:
    """
    One client of each host that makes a connection, with a handshake, for every request.

    Attributes:
        answers: Status of each answer; an exception's text where there was none.
    """

    def __init__(self, door):
        self.answers, self._stopping = [], threading.Event()
        self._headers = {"authorization": f"Bearer {door.tokens['load']}"}
        jobs = [(door.url(host, "/v1/completions"), door.tls) for host in HOSTS]
        self._threads = [threading.Thread(target=self._run, args=job, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def stop(self):
        """
        End all clients; return what was not answered with 200.
        """
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
        return [answer for answer in self.answers if answer != 200]

    def _run(self, url, tls):
        while not self._stopping.wait(0.2):
            try:
                answer = httpx.post(
                    url, json=BODY, headers=self._headers, verify=tls, timeout=60
                ).status_code
            except httpx.HTTPError as error:
                answer = repr(error)
            self.answers.append(answer)


def certificate_of(door, host):
    """
    Return the serial number (hex) and the SHA-256 of the certificate that a new connection to
    *host* verifies.
    """
    address = door.config.address(host)
    with (
        socket.create_connection((address, 8000), 10) as connection,
        door.tls.wrap_socket(connection, server_hostname=address) as secured,
    ):
        serial = secured.getpeercert()["serialNumber"].lower().lstrip("0")
        return serial, hashlib.sha256(secured.getpeercert(binary_form=True)).hexdigest()


def haproxy_of(door, host):
    """
    Return the process of HAProxy that serves, and when its unit was started.
    """
    script = (
        f"echo show info | socat - UNIX-CONNECT:{layout.HAPROXY_SOCKET} | grep '^Pid:'; "
        "systemctl show -p ActiveEnterTimestampMonotonic haproxy.service"
    )
    return door.inside(host, "sh", "-c", script)


def slots_of(door, host):
    """
    Return what changes when a slot of *host* is restarted.
    """
    names = ("InvocationID", "MainPID", "NRestarts", "ActiveState")
    units = [layout.unit(slot) for slot in layout.SLOTS]
    return door.inside(host, "systemctl", "show", *(f"--property={name}" for name in names), *units)


class KeyClients:
    """
    A client of each host that keeps its connection.

    Attributes:
        usage: {(host, key): [requests, prompt tokens, generated tokens]} of answers with 200.
    """

    def __init__(self, door):
        self._door, self.usage = door, {}
        self._clients = {host: httpx.Client(verify=door.tls, timeout=30) for host in HOSTS}

    def status(self, host, name):
        """
        Send one request with the token of the key *name*; return the status.
        """
        response = self._clients[host].post(
            self._door.url(host, "/v1/completions"),
            json=BODY,
            headers={"authorization": f"Bearer {self._door.tokens[name]}"},
        )
        if response.status_code == 200:
            counts = self.usage.setdefault((host, name), [0, 0, 0])
            usage = response.json()["usage"]
            for at, more in enumerate((1, usage["prompt_tokens"], usage["completion_tokens"])):
                counts[at] += more
        return response.status_code

    def seconds_until(self, name, wanted):
        """
        Return for each host the seconds until it answers the key *name* with the status *wanted*.

        Fails where one does not within `IN_FORCE_S` of now.
        """
        began_s, took_s, last = time.monotonic(), {}, {}
        while len(took_s) < len(HOSTS):
            for host in set(HOSTS) - took_s.keys():
                last[host] = self.status(host, name)
                now_s = time.monotonic() - began_s
                if last[host] == wanted:
                    took_s[host] = round(now_s, 2)
                elif now_s > IN_FORCE_S:
                    pytest.fail(
                        f"{name}: not {wanted} on {host} in {IN_FORCE_S} s: {last}, {took_s}"
                    )
        return took_s


def counted(door, host):
    """
    Return {key: [requests with 200, prompt tokens, generated tokens]} as /metrics of *host* says.
    """
    text = httpx.get(door.url(host, "/metrics"), verify=door.tls, timeout=30).text
    names = (KEY_REQUESTS_TOTAL, KEY_PROMPT_TOKENS_TOTAL, KEY_GENERATED_TOKENS_TOTAL)
    counts = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in names and sample.labels.get("code", "200") == "200":
                row = counts.setdefault(sample.labels["key"], [0, 0, 0])
                row[names.index(sample.name)] += int(sample.value)
    return counts


def log_lines_of(door, host, key):
    """
    Return how many requests of *key* are in the log of the slots of *host*.
    """
    lines = door.inside(host, "journalctl", "-o", "cat", "-u", "slipway-runtime@*").splitlines()
    return sum("request.answered" in line and f" key={key} " in line for line in lines)


def secrets_on(door, host, secrets):
    """
    Return where *host* has one of *secrets*, as `secret_search` finds it.
    """
    config = {"secrets": secrets, "roots": SECRET_ROOTS, "since_s": door.began_s}
    text = Path(secret_search.__file__).read_text()
    argument = json.dumps(config).encode().hex()
    shown = door.inside(host, "python3", "-I", "-c", text, argument, timeout_s=120.0)
    return [tuple(place) for place in json.loads(shown)]


@pytest.fixture(scope="module")
def config():
    with booted_lab("door", len(HOSTS)) as config:
        yield config


@pytest.fixture(scope="module")
def door(config, tmp_path_factory):
    """
    Provisioned with TLS; v1.0.0 serves, and only a request with a key.
    """
    keys, folder = config.keys, tmp_path_factory.mktemp("door")
    authority = folder / "slipway-ca"
    document = yaml.safe_load((ROOT / "inventories" / "lab.yml").read_text())
    document["ssh"] |= {
        "key": str(keys / "id_ed25519"),
        "known_hosts": str(keys / "known_hosts"),
    }
    document["signing"] |= {
        "key": str(keys / "signing_ed25519"),
        "allowed_signers": str(keys / "allowed_signers"),
    }
    document["service"] |= {
        "tls": {"kind": "internal", "authority": str(authority)},
        "request_log": True,
        "monitoring_networks": ["127.0.0.0/8", config.subnet],
    }
    document.pop("groups")
    document["hosts"] = {name: {"address": config.address(name)} for name in HOSTS}
    path = folder / "door.yml"
    path.write_text(yaml.safe_dump(document))
    door = Door(config, path, authority)
    try:
        door.inv("certs.create", "--yes")
        door.inv("provision", "--yes")
        for version, kind in MODELS.items():
            model = lab_models.make_lab_model(kind, None, say)
            bundle = door.inv("bundle", "--model", str(model), "--version", version)
            door.digests[version] = bundle["bundle"]
        release(door, "v1.0.0")
        door.began_s = time.time()
        door.add_key("load")
        yield door
    finally:
        for digest in door.digests.values():
            shutil.rmtree(checkout.store().get(digest, "door").directory)


def release(door, version, *flags):
    bundle = door.digests[version]
    done = door.inv("release", "--version", bundle, "--allow-older", *flags, "--yes")
    assert door.served() == {version}
    return done


def test_a_second_provisioning_changes_nothing(door):
    """
    Neither certificates nor HAProxy, nor the API keys.
    """
    before = {host: certificate_of(door, host) for host in HOSTS}
    assert door.inv("provision", "--yes")["changes"] == []
    assert {host: certificate_of(door, host) for host in HOSTS} == before


def test_twenty_renewals_on_all_hosts_lose_no_request(door):
    """
    Each is seen on the wire by its serial number.  HAProxy is neither reloaded nor restarted.
    """
    processes = {host: haproxy_of(door, host) for host in HOSTS}
    serials = {host: [certificate_of(door, host)[0]] for host in HOSTS}
    load, clients = door.load(), FreshClients(door)
    load.start()
    try:
        with connect(door.fleet) as on:
            for number in range(1, RENEWALS):
                pairs = certificates.new_pairs(door.fleet)
                renewal = certificates.renew(on, pairs)
                assert renewal.error is None, f"renewal {number}: {renewal.error}"
                for host in HOSTS:
                    serials[host].append(certificate_of(door, host)[0])
                    issued = f"{pairs[host].leaf.serial_number:x}"
                    assert serials[host][-1] == issued, f"renewal {number} of {host}"
        document = door.inv("certs.renew", "--yes")
        for host in HOSTS:
            serials[host].append(certificate_of(door, host)[0])
    finally:
        unanswered, report = clients.stop(), load.stop()
    assert unanswered == []
    assert (report.lost_requests, report.cut_streams) == (0, 0), report.losses
    assert report.ok == report.requests, report.errors_by_version
    assert min(len(clients.answers), report.requests, report.streams) >= RENEWALS
    assert {host: len(set(seen)) for host, seen in serials.items()} == dict.fromkeys(
        HOSTS, RENEWALS + 1
    )
    sent = {host["host"]: host["sha256"] for host in document["hosts"] if host["renewed"]}
    assert {host: certificate_of(door, host)[1] for host in HOSTS} == sent
    assert len(set(sent.values())) == len(HOSTS), "each host has one of its own"
    assert {host: haproxy_of(door, host) for host in HOSTS} == processes


def test_a_release_is_confirmed_through_tls(door):
    """
    Under traffic, and back.
    """
    load = door.load()
    load.start()
    try:
        # Half of the traffic: the clients are few, and the canary needs 20 requests.
        release(door, "v1.1.0", "--canary", "50")
        door.inv("rollback", "--to", "v1.0.0", "--yes")
    finally:
        report = load.stop()
    assert door.served() == {"v1.0.0"}
    assert (report.lost_requests, report.cut_streams) == (0, 0), report.losses
    assert report.requests_by_version["v1.1.0"] > 0


def test_the_hosts_verify_and_show_their_certificates(door):
    """
    `inv verify`, `inv status` and `inv certs.show`; clients without the authority refuse.
    """
    assert door.inv("verify")["failed"] == []
    hosts = door.inv("certs.show")["hosts"]
    assert [host["certificate"]["days_left"] for host in hosts] == [89] * len(hosts)
    assert all("certificate" in host for host in door.inv("status")["hosts"])
    with pytest.raises(httpx.ConnectError):
        httpx.post(door.url("n1", "/v1/completions"), json=BODY, timeout=10)


def test_a_key_works_and_is_refused_within_seconds(door, eventually):
    """
    On all hosts, without a restart of a slot, and what it used is counted under its name.
    """
    slots = {host: slots_of(door, host) for host in HOSTS}
    clients = KeyClients(door)
    door.tokens["ann"] = make_token()  # nobody's
    assert {clients.status(host, "ann") for host in HOSTS} == {401}, "control: keys are asked for"

    door.add_key("ann")
    added_s = clients.seconds_until("ann", 200)
    for host in HOSTS[:2]:  # more on some than on others
        assert [clients.status(host, "ann") for _ in range(5)] == [200] * 5
    assert clients.status("n1", "load") == 200
    used = {host: counts for (host, name), counts in clients.usage.items() if name == "ann"}
    assert sorted(used) == sorted(HOSTS)
    for host in HOSTS:
        eventually(lambda host=host: counted(door, host).get("ann"), used[host])
        eventually(lambda host=host: log_lines_of(door, host, "ann"), used[host][0])

    door.inv("keys.revoke", "ann", "--yes")
    revoked_s = clients.seconds_until("ann", 401)
    assert {clients.status(host, "ann") for host in HOSTS for _ in range(3)} == {401}
    assert {clients.status(host, "load") for host in HOSTS} == {200}, "another key still works"
    assert {host: slots_of(door, host) for host in HOSTS} == slots, "a slot was restarted"
    say(f"in force after: added {added_s}, revoked {revoked_s}")


def test_no_host_has_a_token_in_the_clear(door):
    """
    Not in its journal, in a command line, in an environment, or in a file; the token that a host
    made for itself is in its own file alone.

    The negative control plants one in each of these places.
    """
    secrets = {name: {"text": token} for name, token in door.tokens.items()}
    secrets["host"] = {"file": layout.HOST_TOKEN}
    assert len(secrets) >= 2
    for host in HOSTS:
        assert secrets_on(door, host, secrets) == [], host

    decoy = make_token()
    planted = f"{layout.ETC}/planted"
    script = (
        f"printf %s {decoy} > {planted}; chmod 0644 {planted}; logger {decoy}; "
        f"systemd-run --quiet --unit=planted --setenv=PLANTED={decoy} sh -c 'sleep 300; : {decoy}'"
    )
    door.inside("n1", "sh", "-c", script)
    try:
        places = secrets_on(door, "n1", secrets | {"decoy": {"text": decoy}})
    finally:
        door.inside("n1", "sh", "-c", f"systemctl stop planted.service; rm {planted}")
    assert {name for name, _, _ in places} == {"decoy"}
    assert {kind for _, kind, _ in places} == {"journal", "cmdline", "environ", "file"}, places
    assert ("decoy", "file", planted) in places


def test_a_flood_of_one_key_does_not_slow_down_another(door):
    """
    The polite key's 99th percentile beside it is within 20 % of alone, over 400 requests each.

    Alone and beside the flood are measured in turn.  The flood keeps eight requests in flight and
    may have one row: more of them share two busy cores.
    """
    names = ("polite", "flood")
    door.add_key("polite")
    door.add_key("flood", "--concurrency", "1")
    clients = KeyClients(door)
    for name in names:
        clients.seconds_until(name, 200)
    result = asyncio.run(
        fairness_load.measure(
            argparse.Namespace(
                url=door.url("n1"),
                ca=str(door.trusted),
                polite=door.tokens["polite"],
                flood=door.tokens["flood"],
                requests=400,
                rounds=4,
                workers=8,
                pause=0.02,
                warm=2.0,
            )
        )
    )
    say(json.dumps(result))
    counts = counted(door, "n1")
    # The last answers of the flood reach no client: it was cancelled.
    assert counts["flood"][0] >= result["flood_answers"].get("200", 0) > result["requests"] / 10, (
        result
    )
    assert counts["polite"][0] > 2 * result["requests"]
    assert result["p99_ratio"] <= 1.2, result


def test_a_host_that_restarts_shows_what_it_was_given_last(door, eventually):
    """
    The file on its disk is the last certificate; its keys are those from before.
    """
    before = certificate_of(door, "n1")
    door.inside("n1", "systemctl", "restart", layout.HAPROXY_UNIT)

    def shown():
        try:
            return certificate_of(door, "n1")
        except OSError as error:
            return repr(error)

    eventually(shown, before, timeout_s=30)
    assert KeyClients(door).status("n1", "load") == 200
