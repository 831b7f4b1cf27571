"""
Silent and slow clients on a host that serves: honest clients, health checks and a release.

SLIPWAY_SLOW_CLIENTS_S is the length of the attack in seconds (default 60).
"""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from deploy.demo.load import LoadGenerator
from deploy.wiring import checkout, lab_models
from tests.lab.test_release import ROOT, inv, on_host, serving

DURATION_S = float(os.environ.get("SLIPWAY_SLOW_CLIENTS_S", "60"))
CONNECTIONS = 6000  # more than HAProxy's 4096
SOURCES = 20  # addresses; with 256 connections each they would take all of the port's
PROGRAM = Path(__file__).parents[1] / "slow_clients.py"
MIB_KB = 1024


@pytest.fixture(scope="module")
def fleet(lab_hosts):
    inv("provision", "--yes")
    for version, kind in {"v1.0.0": "good-v1", "v1.1.0": "good-v2"}.items():
        model = lab_models.make_lab_model(kind, None, print)
        inv("bundle", "--model", str(model), "--version", version)
    if any(shares != {"v1.0.0": 100} for shares in serving().values()):
        inv("release", "--version", "v1.0.0", "--yes")
    return checkout.fleet("lab")


@pytest.fixture
def sources(fleet):
    """
    Further addresses of n4, from which it attacks n1.
    """
    route = on_host(fleet, "n4", "ip", "-o", "route", "get", fleet.host("n1").address).split()
    device = route[route.index("dev") + 1]
    names = [f"10.78.0.{150 + number}" for number in range(SOURCES)]
    for name in names:
        on_host(fleet, "n4", "ip", "address", "add", f"{name}/24", "dev", device)
    yield names
    for name in names:
        on_host(fleet, "n4", "ip", "address", "del", f"{name}/24", "dev", device)


class Attack:
    """
    Runs the program on n4 until its time is over.
    """

    def __init__(self, fleet, sources):
        ssh = fleet.host("n4").ssh
        argv = [
            "ssh", "-i", str(ssh.key), "-o", f"UserKnownHostsFile={ssh.known_hosts}",
            "-o", "BatchMode=yes", f"root@{fleet.host('n4').address}",
            "python3", "-", fleet.host("n1").address, str(fleet.service.port), str(CONNECTIONS),
            str(DURATION_S), *sources,
        ]  # fmt: skip
        self._process = subprocess.Popen(
            argv, stdin=PROGRAM.open("rb"), stdout=subprocess.PIPE, text=True
        )

    def counts(self):
        out, _ = self._process.communicate(timeout=DURATION_S + 60)
        assert self._process.returncode == 0
        return json.loads(out)


# Prints the status of /readyz on the public port, HAProxy's connections, and the memory in KiB of
# HAProxy and of each runtime's API process.
LOOK = """
import pathlib, re, socket

def ask(client, text):
    client.settimeout(5)
    client.sendall(text)
    return b"".join(iter(lambda: client.recv(65536), b"")).decode()

with socket.create_connection(("127.0.0.1", 8000), 5) as client:
    print(ask(client, b"GET /readyz HTTP/1.0\\r\\n\\r\\n").split()[1])
with socket.socket(socket.AF_UNIX) as client:
    client.connect("/run/slipway/haproxy.sock")
    print(re.search(r"CurrConns: (\\d+)", ask(client, b"show info\\n"))[1])
proxies, runtimes = [], []
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        argv = (process / "cmdline").read_bytes().split(b"\\0")
        rss = int(re.search(r"VmRSS:\\s+(\\d+)", (process / "status").read_text())[1])
    except (OSError, TypeError):
        continue
    if argv[0].endswith(b"haproxy"):
        proxies.append(rss)
    elif argv[1:3] == [b"-m", b"runtime"]:
        runtimes.append(rss)
print(max(proxies), *runtimes)
"""


class Watch(threading.Thread):
    """
    Looks at n1 every few seconds: health checks on the host, connections, memory.
    """

    def __init__(self, fleet):
        super().__init__(daemon=True)
        self._fleet = fleet
        self.rows = []
        self.is_over = threading.Event()

    def run(self):
        while not self.is_over.wait(2.0):
            lines = on_host(self._fleet, "n1", "python3", "-c", LOOK).split()
            self.rows.append([int(line) for line in lines])


def test_slow_clients_stop_nobody(fleet, sources):
    """
    While one machine holds all the connections that it gets, of each slow kind: every honest
    request and health check is answered, memory stays bounded, and a release and a rollback lose
    nothing.
    """
    prompts = json.loads((ROOT / ".slipway/models/good-v1/live_prompts.json").read_text())
    generator = LoadGenerator(
        [f"http://{host.address}:{fleet.service.port}" for host in fleet.hosts[:3]],
        prompts=prompts, rate_rps=20, connections=12, streams=3, max_tokens=8, stream_pause_s=1.0,
        stream_max_tokens=24,
    )  # fmt: skip
    watch = Watch(fleet)
    attack = Attack(fleet, sources)
    generator.start()
    watch.start()
    began_s = time.monotonic()
    try:
        time.sleep(15)  # until the attack has its connections
        assert inv("release", "--version", "v1.1.0", "--yes")["outcome"] == "promoted"
        assert inv("rollback", "--yes")["outcome"] == "rolled_back"
        time.sleep(max(0.0, DURATION_S - (time.monotonic() - began_s)))
    finally:
        watch.is_over.set()
        report = generator.stop()
    counts = attack.counts()
    watch.join(60)

    checks, connections, proxy_kb, *_ = zip(*(row[:3] for row in watch.rows), strict=True)
    slot_kb = [kb for row in watch.rows for kb in row[3:]]
    print(
        json.dumps(
            counts
            | {
                "duration_s": DURATION_S,
                "requests": report.requests,
                "ok": report.ok,
                "lost": report.lost_requests,
                "cut": report.cut_streams,
                "latency_s": dict(report.latency_s),
                "health_checks": len(checks),
                "connections_max": max(connections),
                "haproxy_mib": [min(proxy_kb) // MIB_KB, max(proxy_kb) // MIB_KB],
                "slot_mib": [min(slot_kb) // MIB_KB, max(slot_kb) // MIB_KB],
            }
        )
    )
    assert counts["refused"] > 0, "the attack never reached the limit"
    assert max(connections) > 1000
    assert (report.lost_requests, report.cut_streams) == (0, 0), report.losses
    assert report.ok == report.requests
    assert set(checks) == {200}
    assert max(proxy_kb) < 400 * MIB_KB
    assert max(slot_kb) < 700 * MIB_KB
