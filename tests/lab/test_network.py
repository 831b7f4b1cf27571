"""
The lab's network, in a network namespace of its own: other firewalls, and what it gives back.
"""

import json
import subprocess
import sys

import pytest

# Runs in the namespace; prints what it found as one JSON document.
SCRIPT = """
import json, subprocess, sys
from pathlib import Path
from deploy.lab import network
from deploy.lab.config import LabConfig
from deploy.errors import LabError

network.IP_FORWARD_WAS = Path(sys.argv[1]) / "ip_forward.was"
first, second = (LabConfig(Path("/x"), Path("/x"), f"net{i}", f"10.77.{i}") for i in (1, 2))

def sh(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

def seen():
    return {"rules": sh("nft", "list", "ruleset"), "links": sh("ip", "-br", "link"),
            "forward": network.IP_FORWARD.read_text().strip()}

network.IP_FORWARD.write_text("0")
sh("nft", "add", "table", "ip", "firewall")
sh("nft", "add", "chain", "ip", "firewall", "forward",
   "{ type filter hook forward priority 0; policy drop; }")
found = {"before": seen()}
network.up(first); network.up(first)
found["up"] = seen()
network.up(second)
network.cut(first, "n1"); network.up(first)
found["cut"] = sorted(network.cut_hosts(first)) + sorted(network.cut_hosts(second))
network.down(first)
found["one_left"] = seen()
network.down(second); network.down(second)
found["after"] = seen()
sh("ip", "link", "add", "other", "type", "bridge")
sh("ip", "addr", "add", "10.77.1.200/16", "dev", "other")
for config in (first, LabConfig(Path("/x"), Path("/x"), "other", "10.99.1")):
    try:
        network.up(config)
    except LabError as error:
        found.setdefault("refused", []).append([error.what, error.why])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = str(tmp_path_factory.mktemp("record"))
    argv = ["unshare", "--net", sys.executable, "-c", SCRIPT, folder]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_firewall_that_drops_lets_the_lab_through(found: dict) -> None:
    """
    Once in each direction, however often the lab comes up.
    """
    rules = found["up"]["rules"]

    assert rules.count('iifname "net1" accept comment "slipway-lab-net1"') == 1
    assert rules.count('oifname "net1" accept comment "slipway-lab-net1"') == 1
    assert rules.count("masquerade") == 1


def test_forwarding_goes_back_when_the_last_lab_is_gone(found: dict) -> None:
    """
    The first `down` leaves it on for the other lab.
    """
    steps = [found[when]["forward"] for when in ("before", "up", "one_left", "after")]

    assert steps == ["0", "1", "1", "0"]


def test_nothing_of_the_network_is_left(found: dict) -> None:
    """
    Links and rules are what they were; the other firewall has its own chain and no more.
    """
    assert found["after"] == found["before"]
    assert "net1" not in found["one_left"]["rules"] + found["one_left"]["links"]


def test_coming_up_again_keeps_cuts(found: dict) -> None:
    """
    Of this lab, and none of another's.
    """
    assert found["cut"] == ["n1"]


def test_what_belongs_to_others_is_refused(found: dict) -> None:
    """
    Addresses and names that are in use, each by its own error.
    """
    network, name = found["refused"]

    assert network == [
        "the lab's network 10.77.1.0/24 is taken",
        "other has an address in it: 10.77.1.200",
    ]
    assert name[0] == "the lab's bridge other is taken"
