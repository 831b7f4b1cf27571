"""
How the leases of hosts are taken that provisioning is about to change.
"""

from collections.abc import Mapping, Sequence

from deploy.host.protocol import Facts
from deploy.inventory.schema import Host
from deploy.leases.keeper import LeaseClient
from deploy.leases.owner import actor
from deploy.provision.bare_lease import BareClient
from deploy.provision.fed_client import FedClient
from deploy.provision.survey import Survey

PURPOSE = "provision"  # what the lease says it is held for


def lease_clients(
    hosts: Sequence[Host],
    survey: Survey,
    facts: Mapping[str, Facts | None],
    packed_program: bytes,
) -> dict[str, LeaseClient]:
    """
    Return the client of each host, by name, over the connection of *survey*.

    That is another connection than the worker's: a renewal waits for no change.

    Args:
        facts: By host; None: the host has no Python.
    """
    who, clients = actor(), {}
    for host in hosts:
        transport, sudo = survey.transport(host.name), host.ssh.user != "root"
        client: LeaseClient = (
            BareClient(transport, sudo=sudo)
            if facts[host.name] is None
            else FedClient(transport, actor=who, sudo=sudo, packed_program=packed_program)
        )
        clients[host.name] = client
    return clients
