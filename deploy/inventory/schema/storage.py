"""
The key `storage`.  Pure.
"""

from deploy.inventory.names import HostDirectory
from deploy.inventory.schema.strict import Strict


class Storage(Strict):
    """
    Where the disk is that slipway's directories on hosts lie on.

    Attributes:
        root: Directory on hosts that /opt/slipway and /var/lib/slipway are bound to; None: they are
            directories of their own.
    """

    root: HostDirectory | None = None
