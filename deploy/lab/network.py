"""
The lab's bridge, its NAT to the outside, and the set of hosts that are cut off.
"""

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from deploy.errors import LabError
from deploy.lab.commands import attempt, run
from deploy.lab.config import LabConfig

# ip_forward is a setting of the whole machine, so all labs share the record of its old value.
# A reboot resets the setting and empties /run.
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
IP_FORWARD_WAS = Path("/run/slipway-lab/ip_forward.was")
_TABLE_PREFIX = "slipway_lab_"
_SET, _SSH_SET = "cut", "cut_ssh"


def up(config: LabConfig) -> None:
    """
    Create the bridge and the nft tables; existing ones are kept and completed.

    Raises:
        LabError: Another link uses an address of the lab's network, or the bridge's name.
    """
    if not _has_bridge(config):
        run(["ip", "link", "add", config.bridge, "type", "bridge", "forward_delay", "0"])
    run(["ip", "addr", "replace", f"{config.gateway}/24", "dev", config.bridge])
    run(["ip", "link", "set", config.bridge, "up"])
    run(["nft", "-f", "-"], stdin=ruleset(config))
    for chain in _dropping_chains():
        if not _own_rules(config, chain):
            for direction in ("iifname", "oifname"):
                rule = [direction, config.bridge, "accept", "comment", f'"{config.tag}"']
                run(["nft", "insert", "rule", *chain, *rule])
    if IP_FORWARD.read_text().strip() == "0":
        IP_FORWARD_WAS.parent.mkdir(exist_ok=True)
        IP_FORWARD_WAS.write_text("0\n")  # before the change, so that `down` always finds it
        IP_FORWARD.write_text("1\n")


def ruleset(config: LabConfig) -> str:
    """
    Return the lab's nft tables. Pure.

    Loading them again changes nothing and keeps cuts.  The set `cut` holds the links whose frames
    the bridge drops in both directions, `cut_ssh` those where it drops SSH alone.  Neither side
    loses its carrier, and a cut outlasts a reboot of the host.
    """
    table, net = config.table, config.subnet
    return f"""\
table ip {table} {{
    chain out {{ type nat hook postrouting priority srcnat; }}
}}
flush chain ip {table} out
add rule ip {table} out ip saddr {net} ip daddr != {net} masquerade

table bridge {table} {{
    set cut {{ type ifname; }}
    set cut_ssh {{ type ifname; }}
    chain from {{ type filter hook prerouting priority -300; }}
    chain to {{ type filter hook postrouting priority -300; }}
}}
flush chain bridge {table} from
flush chain bridge {table} to
add rule bridge {table} from iifname @cut drop
add rule bridge {table} to oifname @cut drop
add rule bridge {table} from iifname @cut_ssh tcp sport 22 drop
add rule bridge {table} to oifname @cut_ssh tcp dport 22 drop
"""


def down(config: LabConfig) -> None:
    """
    Remove all links, tables and rules of this lab; restore ip_forward after the last lab.
    """
    for link in links(config):
        delete_link(link)
    for family in ("ip", "bridge"):
        if (family, config.table) in tables():
            run(["nft", "delete", "table", family, config.table])
    for chain in _dropping_chains():
        for handle in _own_rules(config, chain):
            run(["nft", "delete", "rule", *chain, "handle", str(handle)])
    other_labs = any(name.startswith(_TABLE_PREFIX) for _, name in tables())
    if IP_FORWARD_WAS.exists() and not other_labs:
        IP_FORWARD.write_text(IP_FORWARD_WAS.read_text())
        IP_FORWARD_WAS.unlink()


def links(config: LabConfig) -> tuple[str, ...]:
    """
    Return the names of the lab's links, those of hosts before the bridge.
    """
    names = [link["ifname"] for link in _ip("link")]
    hosts = [name for name in names if name.startswith(config.link_prefix)]
    return (*hosts, *(name for name in names if name == config.bridge))


def delete_link(link: str) -> None:
    """
    Delete *link*; no error if it is gone.  The link of a dead host also disappears by itself.
    """
    attempt(["ip", "link", "del", link])


def tables() -> frozenset[tuple[str, str]]:
    """
    Return (family, name) of every nft table.
    """
    items = json.loads(run(["nft", "-j", "list", "tables"]))["nftables"]
    listed = [item["table"] for item in items if "table" in item]
    return frozenset((table["family"], table["name"]) for table in listed)


def cut(config: LabConfig, host: str, *, only_ssh: bool = False) -> None:
    """
    Drop all frames to and from *host*, or those of its sshd.
    """
    name = _SSH_SET if only_ssh else _SET
    run(["nft", "add", "element", "bridge", config.table, name, _element(config, host)])


def heal(config: LabConfig, host: str) -> None:
    """
    Undo `cut`; no effect on a host that is not cut off.
    """
    for name in (_SET, _SSH_SET):
        if host in _hosts_of(config, name):
            run(["nft", "delete", "element", "bridge", config.table, name, _element(config, host)])


def cut_hosts(config: LabConfig) -> frozenset[str]:
    """
    Return the hosts that are cut off, or whose SSH is.
    """
    return _hosts_of(config, _SET) | _hosts_of(config, _SSH_SET)


def _hosts_of(config: LabConfig, name: str) -> frozenset[str]:
    result = attempt(["nft", "-j", "list", "set", "bridge", config.table, name])
    if result.returncode:
        return frozenset()
    sets = [item["set"] for item in json.loads(result.stdout)["nftables"] if "set" in item]
    elements = [link for nft_set in sets for link in nft_set.get("elem", [])]
    return frozenset(link.removeprefix(config.link_prefix) for link in elements)


def _dropping_chains() -> list[tuple[str, str, str]]:
    """
    Return (family, table, chain) of the forward chains whose policy is drop.

    Docker and ufw set this policy.  Hosts then cannot reach package mirrors, and, where bridged
    frames pass through iptables, not even each other.  An accept rule in another chain does not
    override a drop, so the lab's rules have to go into these chains.
    """
    items = json.loads(run(["nft", "-j", "list", "chains"]))["nftables"]
    chains = [item["chain"] for item in items if "chain" in item]
    return [
        (chain["family"], chain["table"], chain["name"])
        for chain in chains
        if chain["family"] in {"ip", "inet"}
        and (chain.get("hook"), chain.get("policy")) == ("forward", "drop")
    ]


def _own_rules(config: LabConfig, chain: tuple[str, str, str]) -> list[int]:
    """
    Return the handles of this lab's rules in *chain*.
    """
    items = json.loads(run(["nft", "-j", "list", "chain", *chain]))["nftables"]
    rules = [item["rule"] for item in items if "rule" in item]
    return [rule["handle"] for rule in rules if rule.get("comment") == config.tag]


def _element(config: LabConfig, host: str) -> str:
    return f'{{ "{config.link(host)}" }}'


def _has_bridge(config: LabConfig) -> bool:
    """
    Return True if the lab's bridge exists.

    Raises:
        LabError: Another link has an address in the lab's network, or the bridge's name.
    """
    net = ip_network(config.subnet)
    has_bridge = False
    for link in _ip("address"):
        name = link["ifname"]
        addresses = [a["local"] for a in link["addr_info"] if a["family"] == "inet"]
        if name != config.bridge and any(ip_address(a) in net for a in addresses):
            raise LabError(
                f"the lab's network {config.subnet} is in use",
                why=f"link {name} has an address in it: {', '.join(addresses)}",
                fix="set SLIPWAY_LAB_SUBNET to the start of a free /24, such as 10.97.0",
            )
        if name == config.bridge:
            has_bridge = True
            if set(addresses) - {config.gateway}:
                raise LabError(
                    f"the name of the lab's bridge, {name}, is in use",
                    why=f"a link of this name has the address {', '.join(addresses)}",
                    fix="set SLIPWAY_LAB_BRIDGE to another name",
                )
    return has_bridge


def _ip(what: str) -> list[dict[str, Any]]:
    links: list[dict[str, Any]] = json.loads(run(["ip", "-j", what, "show"]) or "[]")
    return links
