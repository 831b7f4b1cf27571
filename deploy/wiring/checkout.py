"""
What lies in this checkout: the fleet files, the bundle store.
"""

from pathlib import Path

from deploy.bundle.store import BundleStore
from deploy.inventory.load import load_fleet
from deploy.inventory.schema import Fleet
from deploy.transport.client_config import with_client_config
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import DEFAULT_CACHE, local_path

ROOT = Path(__file__).parents[2]


def store() -> BundleStore:
    """
    Return the store of this checkout.
    """
    return BundleStore(ROOT / ".slipway")


def wheels() -> Path:
    """
    Return the directory of the wheels that were fetched to this machine.

    Raises:
        UsageError: The user has no home directory.
    """
    return local_path(DEFAULT_CACHE).resolve()


def fleet(name: str, limit: str | None = None) -> Fleet:
    """
    Return the fleet called *name*, or the hosts of it that *limit* selects.

    Raises:
        InventoryError: The file is missing or wrong, or ~/.ssh/config is, where it counts.
        UnknownHost: *limit* selects nothing.
    """
    rows = {row.name: row.needs_gpu for row in load_matrix().rows}
    return with_client_config(load_fleet(name, root=ROOT, limit=limit, known_rows=rows))
