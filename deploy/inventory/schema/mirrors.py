"""
The key `mirrors`.  Pure.
"""

from pydantic import Field

from deploy.inventory.names import ArchiveUrl, Component, Keyring, ProxyUrl, Suite
from deploy.inventory.schema.strict import Strict


class AptSource(Strict):
    """
    One stanza of a `.sources` file.  `trusted` cannot be said: apt checks every signature.

    Attributes:
        signed_by: Keyring on the hosts; None: any key that apt on the host trusts.
    """

    uris: tuple[ArchiveUrl, ...] = Field(min_length=1)
    suites: tuple[Suite, ...] = Field(min_length=1)
    components: tuple[Component, ...] = Field(min_length=1)
    signed_by: Keyring | None = None


class Mirrors(Strict):
    """
    Package sources of hosts.  None keeps a host's own configuration.
    """

    apt: tuple[AptSource, ...] = ()  # replaces the distribution's sources
    apt_proxy: ProxyUrl | None = None
