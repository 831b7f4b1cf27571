"""
The lab's network beside another firewall, in a separate network namespace.
"""

import json
import subprocess
import sys

import pytest

# Runs in the namespace; prints its observations as one JSON document.
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
observed = {"before": seen()}
network.up(first); network.up(first)
observed["up"] = seen()
network.up(second)
network.cut(first, "n1"); network.cut(first, "n2", only_ssh=True); network.up(first)
observed["cut"] = sorted(network.cut_hosts(first)) + sorted(network.cut_hosts(second))
for name in ("n1", "n2"):
    network.heal(first, name)
observed["healed"] = sorted(network.cut_hosts(first))
network.down(first)
observed["one_left"] = seen()
network.down(second); network.down(second)
observed["after"] = seen()
sh("ip", "link", "add", "other", "type", "bridge")
sh("ip", "addr", "add", "10.77.1.200/16", "dev", "other")
for config in (first, LabConfig(Path("/x"), Path("/x"), "other", "10.99.1")):
    try:
        network.up(config)
    except LabError as error:
        observed.setdefault("refused", []).append([error.what, error.why])
print(json.dumps(observed))
"""


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = str(tmp_path_factory.mktemp("record"))
    argv = ["unshare", "--net", sys.executable, "-c", SCRIPT, folder]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_firewall_that_drops_lets_the_lab_through(observed: dict) -> None:
    """
    One accept rule in each direction, however often the lab comes up.
    """
    rules = observed["up"]["rules"]

    assert rules.count('iifname "net1" accept comment "slipway-lab-net1"') == 1
    assert rules.count('oifname "net1" accept comment "slipway-lab-net1"') == 1
    assert rules.count("masquerade") == 1


def test_forwarding_is_restored_after_the_last_lab(observed: dict) -> None:
    """
    The first `down` leaves it on for the other lab.
    """
    steps = [observed[when]["forward"] for when in ("before", "up", "one_left", "after")]

    assert steps == ["0", "1", "1", "0"]


def test_down_restores_links_and_rules(observed: dict) -> None:
    """
    Also those of the other firewall.
    """
    assert observed["after"] == observed["before"]
    assert "net1" not in observed["one_left"]["rules"] + observed["one_left"]["links"]


def test_coming_up_again_keeps_cuts(observed: dict) -> None:
    """
    `up` removes no cut of its own lab and adds none to another lab; healing ends both kinds.
    """
    assert observed["cut"] == ["n1", "n2"]
    assert observed["healed"] == []


def test_an_address_or_a_name_in_use_is_refused(observed: dict) -> None:
    """
    Each with its own error.
    """
    network, name = observed["refused"]

    assert network == [
        "the lab's network 10.77.1.0/24 is in use",
        "link other has an address in it: 10.77.1.200",
    ]
    assert name[0] == "the name of the lab's bridge, other, is in use"
