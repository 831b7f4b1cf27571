"""
What every host of a fleet should have.
"""

import secrets
from collections.abc import Callable, Mapping

from deploy.inventory.schema import Fleet
from deploy.provision.concerns import plan_resources
from deploy.provision.resource_set import ResourceSet
from deploy.provision.spec import HostSpec, find_uv, read_allowed_signers, resolve_tokens
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import ensure_lock


def resource_sets(
    fleet: Fleet,
    host_program: bytes,
    env: Mapping[str, str],
    progress: Callable[[str], None],
) -> dict[str, ResourceSet]:
    """
    Return the resources of every host by name, and fetch the wheels that the cache lacks.

    Raises:
        InventoryError: A row, secret or file of the fleet is missing.
        CommandFailed: The wheels could not be fetched.
    """
    matrix = load_matrix()
    rows = {name: matrix.row(name) for name in sorted({host.row for host in fleet.hosts})}
    tokens = resolve_tokens(fleet, env)
    signers = read_allowed_signers(fleet)
    uv = find_uv()
    locks = {name: ensure_lock(row, progress=progress) for name, row in rows.items()}
    by_row = {
        name: plan_resources(
            HostSpec(
                fleet=fleet.name,
                row=row,
                lock=locks[name],
                service=fleet.service,
                release=fleet.release,
                mirrors=fleet.mirrors,
                api_tokens=tokens,
                allowed_signers=signers,
                host_program=host_program,
                uv=uv,
                mac_key=secrets.token_hex(32),
            )
        )
        for name, row in rows.items()
    }
    return {host.name: by_row[host.row] for host in fleet.hosts}
