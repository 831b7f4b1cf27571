"""
The lab's bridge, its way out, and which hosts are cut off.
"""

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from deploy.errors import LabError
from deploy.lab.commands import attempt, run
from deploy.lab.config import LabConfig

# Forwarding belongs to the whole machine, so its record does too. /run and the setting are both
# gone after a reboot.
IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
IP_FORWARD_WAS = Path("/run/slipway-lab/ip_forward.was")
_TABLE_PREFIX = "slipway_lab_"


def up(config: LabConfig) -> None:
    """
    Make the bridge and the nft tables, whatever of them is already there.

    Raises:
        LabError: The addresses or the bridge's name belong to something else.
    """
    bridge = _claim(config)
    if not bridge:
        run(["ip", "link", "add", config.bridge, "type", "bridge", "forward_delay", "0"])
    run(["ip", "addr", "replace", f"{config.gateway}/24", "dev", config.bridge])
    run(["ip", "link", "set", config.bridge, "up"])
    run(["nft", "-f", "-"], stdin=ruleset(config))
    for chain in _refusing_chains():
        if not _own_rules(config, chain):
            for end in ("iifname", "oifname"):
                rule = [end, config.bridge, "accept", "comment", f'"{config.tag}"']
                run(["nft", "insert", "rule", *chain, *rule])
    if IP_FORWARD.read_text().strip() == "0":
        IP_FORWARD_WAS.parent.mkdir(exist_ok=True)
        IP_FORWARD_WAS.write_text("0\n")  # before the change: `down` must know
        IP_FORWARD.write_text("1\n")


def ruleset(config: LabConfig) -> str:
    """
    Return the lab's nft tables; loading them again changes nothing, cuts included. Pure.

    A cut is a set of links whose frames the bridge drops, both ways: neither side sees its
    carrier go, and the cut outlasts a reboot of the host.
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
    chain from {{ type filter hook prerouting priority -300; }}
    chain to {{ type filter hook postrouting priority -300; }}
}}
flush chain bridge {table} from
flush chain bridge {table} to
add rule bridge {table} from iifname @cut drop
add rule bridge {table} to oifname @cut drop
"""


def down(config: LabConfig) -> None:
    """
    Remove all links, tables and settings of this lab.
    """
    for link in links(config):
        delete_link(link)
    for family in ("ip", "bridge"):
        if (family, config.table) in tables():
            run(["nft", "delete", "table", family, config.table])
    for chain in _refusing_chains():
        for handle in _own_rules(config, chain):
            run(["nft", "delete", "rule", *chain, "handle", str(handle)])
    other_labs = any(name.startswith(_TABLE_PREFIX) for _, name in tables())
    if IP_FORWARD_WAS.exists() and not other_labs:
        IP_FORWARD.write_text(IP_FORWARD_WAS.read_text())
        IP_FORWARD_WAS.unlink()


def links(config: LabConfig) -> tuple[str, ...]:
    """
    Return the names of the lab's links, the hosts' before the bridge.
    """
    names = [link["ifname"] for link in _ip("link")]
    hosts = [name for name in names if name.startswith(config.link_prefix)]
    return (*hosts, *(name for name in names if name == config.bridge))


def delete_link(link: str) -> None:
    """
    Delete *link*, which may be going away by itself: its host is dead.
    """
    attempt(["ip", "link", "del", link])


def tables() -> frozenset[tuple[str, str]]:
    """
    Return (family, name) of every nft table.
    """
    found = json.loads(run(["nft", "-j", "list", "tables"]))["nftables"]
    return frozenset((t["table"]["family"], t["table"]["name"]) for t in found if "table" in t)


def cut(config: LabConfig, host: str) -> None:
    """
    Let no frame reach or leave *host*.
    """
    run(["nft", "add", "element", "bridge", config.table, "cut", _element(config, host)])


def heal(config: LabConfig, host: str) -> None:
    """
    Undo `cut`.
    """
    if host in cut_hosts(config):
        run(["nft", "delete", "element", "bridge", config.table, "cut", _element(config, host)])


def cut_hosts(config: LabConfig) -> frozenset[str]:
    """
    Return the hosts that are cut off.
    """
    ran = attempt(["nft", "-j", "list", "set", "bridge", config.table, "cut"])
    if ran.returncode:
        return frozenset()
    sets = [item["set"] for item in json.loads(ran.stdout)["nftables"] if "set" in item]
    elements = [link for found in sets for link in found.get("elem", [])]
    return frozenset(link.removeprefix(config.link_prefix) for link in elements)


def _refusing_chains() -> list[tuple[str, str, str]]:
    """
    Return (family, table, chain) of the machine's firewall that drops what it forwards.

    Docker and ufw set such a policy. Then hosts reach no mirror, and, where bridged frames pass
    iptables, not even each other; an accept in a chain of ours would not help.
    """
    found = json.loads(run(["nft", "-j", "list", "chains"]))["nftables"]
    chains = [item["chain"] for item in found if "chain" in item]
    return [
        (chain["family"], chain["table"], chain["name"])
        for chain in chains
        if chain["family"] in {"ip", "inet"}
        and (chain.get("hook"), chain.get("policy")) == ("forward", "drop")
    ]


def _own_rules(config: LabConfig, chain: tuple[str, str, str]) -> list[int]:
    """
    Return the handles of the rules that the lab put into *chain*.
    """
    found = json.loads(run(["nft", "-j", "list", "chain", *chain]))["nftables"]
    rules = [item["rule"] for item in found if "rule" in item]
    return [rule["handle"] for rule in rules if rule.get("comment") == config.tag]


def _element(config: LabConfig, host: str) -> str:
    return f'{{ "{config.link(host)}" }}'


def _claim(config: LabConfig) -> bool:
    """
    Return whether the lab's bridge is there; refuse what belongs to somebody else.
    """
    net = ip_network(config.subnet)
    is_there = False
    for link in _ip("address"):
        name = link["ifname"]
        addresses = [a["local"] for a in link["addr_info"] if a["family"] == "inet"]
        if name != config.bridge and any(ip_address(a) in net for a in addresses):
            raise LabError(
                f"the lab's network {config.subnet} is taken",
                why=f"{name} has an address in it: {', '.join(addresses)}",
                fix="set SLIPWAY_LAB_SUBNET to the start of a free /24, such as 10.97.0",
            )
        if name == config.bridge:
            is_there = True
            if set(addresses) - {config.gateway}:
                raise LabError(
                    f"the lab's bridge {name} is taken",
                    why=f"there is a link of that name with the address {', '.join(addresses)}",
                    fix="set SLIPWAY_LAB_BRIDGE to another name",
                )
    return is_there


def _ip(what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(["ip", "-j", what, "show"]) or "[]")
    return found
