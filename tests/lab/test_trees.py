"""
Hosts of each supported distribution: one with too little room, one whose network has only a proxy,
which is then provisioned twice and verified.

SLIPWAY_LAB_TREES names the suites to boot, such as "trixie noble"; without it, Debian 13.
SLIPWAY_LAB_PYTHON names an archive of a standalone Python 3.11, which the hosts then get.  Without
it they have the row of their own Python.
"""

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from deploy.host import layout
from deploy.lab import suites
from deploy.provision import provision
from deploy.verify import verify
from tests.lab.conftest import say
from tests.lab.http_proxy import http_proxy
from tests.lab.own_lab import booted_lab, lab_config
from tests.lab.provision_fixtures import ENV, World

ROWS = {
    "bookworm": "torch-2.13-cpu",
    "trixie": "torch-2.13-cpu-py313",
    "noble": "torch-2.13-cpu-py312",
    "resolute": "torch-2.13-cpu-py314",
}
TREES = os.environ.get("SLIPWAY_LAB_TREES", "trixie").split()
PYTHON = os.environ.get("SLIPWAY_LAB_PYTHON")
# The first test also makes the base tree; the last one sends and builds an environment.
pytestmark = pytest.mark.timeout(1800)


def python_of(archive):
    """
    Return the fleet's row and mirror of a standalone Python, whose release its file name has.
    """
    release = re.search(r"3\.11\.\d+", archive.name)
    assert release is not None, f"SLIPWAY_LAB_PYTHON: {archive.name} names no release of 3.11"
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    pin = {"release": release[0], "path": archive.name, "sha256": sha256}
    return {"python": {"folder": str(archive.parent), "archives": [pin]}}


SMALL_DISK = 1040 << 20  # bytes, of which about 1 GiB is free
PROXY_ONLY = "slipway_test_proxy_only"
ROUTES = """
table ip {table} {{
    chain out {{
        type filter hook forward priority -10;
        iifname {bridge} drop
    }}
}}
"""


@pytest.fixture(scope="module", params=TREES)
def world(request, tmp_path_factory):
    """
    n1 is bare; n2 as well, on a disk with 1 GiB.
    """
    if request.param not in ROWS and PYTHON is None:
        pytest.skip(f"{suites.title(request.param)} needs SLIPWAY_LAB_PYTHON")
    disk = lab_config("trees", request.param).disk_image("n2")
    disk.parent.mkdir(parents=True, exist_ok=True)
    with disk.open("wb") as file:
        file.truncate(SMALL_DISK)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", disk], check=True)
    try:
        with booted_lab("trees", 2, suite=request.param) as config:
            on = World(config, tmp_path_factory.mktemp("fleet"), hosts=("n1", "n2"))
            on.suite = request.param
            yield on
    finally:
        disk.unlink()


@pytest.fixture
def proxy(world):
    """
    A proxy on the bridge, which alone leads hosts to other networks.
    """
    with http_proxy(world.config.gateway) as server:
        rules = ROUTES.format(table=PROXY_ONLY, bridge=world.config.bridge)
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
        try:
            yield server
        finally:
            subprocess.run(["nft", "delete", "table", "ip", PROXY_ONLY], check=True)


def fleet(world, host="n1", **mirrors):
    """
    Return the fleet of *host* with its row, its Python and the keys of *mirrors*.
    """
    if PYTHON is not None:
        return world.fleet(host, mirrors=mirrors | python_of(Path(PYTHON)))
    return world.fleet(host, row=ROWS[world.suite], mirrors=mirrors)


def test_the_host_runs_the_suite(world):
    """
    The toolkit finds what the lab was asked for.
    """
    shown = world.inside("n1", ". /etc/os-release && echo $VERSION_CODENAME")
    assert shown == f"{world.suite}\n"
    say(f"{world.suite}: {world.inside('n1', 'python3 --version && systemctl --version')}")


def test_a_host_with_1_gib_is_refused_before_it_is_changed(world):
    """
    With the room that it has and the room that is needed.
    """
    state = "dpkg-query -W | sha256sum; ls -A /opt /etc/apt/apt.conf.d; cat /etc/passwd"
    before = world.inside("n2", state)
    report = provision(fleet(world, "n2"), progress=lambda _: None, env=ENV)
    [failure] = report.failed
    say(f"{world.suite}: {failure}")
    assert (failure.error, report.changes) == ("DiskTooSmall", ())
    assert re.search(r"has [\d.]+\w+ free, .* takes [\d.]+\w+", failure.why)
    assert world.inside("n2", state) == before
    assert world.inside("n2", f"ls -A {layout.OPT} 2>/dev/null || :") == ""


def test_a_bare_host_converges_through_the_only_proxy(world, proxy, tmp_path):
    """
    Without the proxy nothing is reachable.  The second run changes nothing; the assertions hold.
    """
    reach = "apt-get -o Acquire::Retries=0 -o Acquire::http::Timeout=5 update 2>&1; exit 0"
    assert "Failed to fetch" in world.inside("n1", reach, timeout_s=120.0)
    on = fleet(world, apt_proxy=proxy.url)
    first = provision(on, progress=lambda event: say(str(event)), env=ENV)
    assert first.failed == ()
    assert any("haproxy" in target for target in proxy.targets)
    requests = f"{len(proxy.targets)} requests through the proxy"
    say(f"{world.suite}: {len(first.changes)} changes in {first.took_s:.0f} s, {requests}")
    second = provision(on, progress=lambda _: None, env=ENV)
    assert (second.changes, second.failed, second.commands) == ((), (), {"n1": 1})
    say(f"{world.suite}: second run, 0 changes in {second.took_s:.1f} s")
    report = verify(on, junit=tmp_path / "junit.xml", progress=say)
    assert report.failed == ()
    say(f"{world.suite}: {report.passed} assertions hold")
