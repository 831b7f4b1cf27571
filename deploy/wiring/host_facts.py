"""
Reads the facts of one host for the version matrix.
"""

from deploy.errors import UnknownHost
from deploy.foreign_text import listed, visible
from deploy.versions.catalog import Catalog
from deploy.versions.host_output import COMMAND, OUTPUT_MAX, parse_host
from deploy.versions.resolution import HostFacts
from deploy.wiring import checkout
from deploy.wiring.hosts import connect

_TIMEOUT_S = 20.0


def read_host(catalog: Catalog, fleet: str, name: str) -> HostFacts:
    """
    Return what the host *name* of *fleet* says about itself; changes nothing on it.

    Raises:
        UnknownHost: The fleet has no such host.
        InventoryError: The fleet file is missing or wrong.
        TransportError: The host did not answer.
    """
    of = checkout.fleet(fleet)
    names = [host.name for host in of.hosts]
    if name not in names:
        raise UnknownHost(
            f"--host {visible(name, limit=80)}: not in fleet {of.name}",
            why=f"it has {listed(names)}",
            fix=f"inv matrix --host {names[0]}",
        )
    with connect(of) as on:
        done = on.transports[name].run(
            COMMAND, timeout_s=_TIMEOUT_S, check=False, output_max=OUTPUT_MAX
        )
    return parse_host(catalog, done.stdout)
