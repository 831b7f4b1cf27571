from pathlib import Path

from deploy.lab.config import LabConfig
from deploy.lab.network import ruleset

CONFIG = LabConfig(Path("/lab"), Path("/bases"))


def test_only_traffic_that_leaves_the_lab_is_masqueraded():
    """
    Between hosts, addresses stay as they are.
    """
    assert "ip saddr 10.78.0.0/24 ip daddr != 10.78.0.0/24 masquerade" in ruleset(CONFIG)


def test_a_cut_drops_frames_in_both_directions():
    """
    The rules match the link in the bridge, so addresses do not matter.
    """
    rules = ruleset(CONFIG)

    assert "add rule bridge slipway_lab_slip0 from iifname @cut drop" in rules
    assert "add rule bridge slipway_lab_slip0 to oifname @cut drop" in rules


def test_a_cut_of_ssh_alone_leaves_users_their_port():
    """
    The frames of sshd, in both directions; nothing of the other ports.
    """
    rules = ruleset(CONFIG)

    assert "add rule bridge slipway_lab_slip0 from iifname @cut_ssh tcp sport 22 drop" in rules
    assert "add rule bridge slipway_lab_slip0 to oifname @cut_ssh tcp dport 22 drop" in rules


def test_loading_the_rules_again_duplicates_no_rule_and_keeps_cuts():
    """
    Each chain is flushed before its rules are added; the set and the tables never are.
    """
    lines = ruleset(CONFIG).splitlines()

    for family, chain in (("ip", "out"), ("bridge", "from"), ("bridge", "to")):
        target = f"{family} slipway_lab_slip0 {chain}"
        adds = [i for i, line in enumerate(lines) if line.startswith(f"add rule {target} ")]
        assert lines.index(f"flush chain {target}") < min(adds)
    assert not [line for line in lines if line.startswith(("flush set", "flush table", "delete"))]
