"""
A host as JSON values, for a process of our own that connects to it.  Pure.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.inventory.names import parse_jumps
from deploy.inventory.schema import Hop, Host, Ssh


def host_document(host: Host) -> dict[str, Any]:
    """
    Return the name, address and SSH settings of *host*.
    """
    ssh = host.ssh.model_dump(mode="json")
    route = [hop.model_dump(mode="json") for hop in host.route]
    return {"name": host.name, "address": host.address, "ssh": ssh, "route": route}


def host_of(document: Mapping[str, Any]) -> Host:
    """
    Return the host of `host_document`, as the transport takes it; it has no groups, row or vars.
    """
    ssh = dict(document["ssh"])
    ssh |= {key: Path(ssh[key]) if ssh[key] else None for key in ("key", "known_hosts")}
    ssh["jump"] = parse_jumps(ssh["jump"]) if ssh["jump"] else None
    # Validated when the fleet file was read; by now durations are plain seconds.
    return Host.model_construct(
        name=document["name"],
        address=document["address"],
        groups=(),
        row="",
        ssh=Ssh.model_construct(**ssh),
        vars={},
        route=tuple(Hop.model_validate(hop) for hop in document["route"]),
    )
