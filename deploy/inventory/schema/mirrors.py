"""
The key `mirrors`.  Pure.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from deploy.inventory.names import (
    ArchiveUrl,
    Component,
    FilePath,
    Keyring,
    ProxyException,
    ProxyUrl,
    Suite,
)
from deploy.inventory.schema.strict import Strict


class AptSource(Strict):
    """
    One stanza of a `.sources` file.  `trusted` cannot be said: apt checks every signature.

    Attributes:
        distribution: That of the archive; a host with another one is refused.
        suites: None: those that the host's release of `distribution` has.
        archive: Which of the distribution's archives it is; read where `suites` is None.
        components: None: those that the distribution's installer enables.
        signed_by: Keyring on the hosts; None: any key that apt on the host trusts.
    """

    uris: tuple[ArchiveUrl, ...] = Field(min_length=1)
    distribution: Literal["debian", "ubuntu"] | None = None
    suites: tuple[Suite, ...] | None = Field(default=None, min_length=1)
    archive: Literal["main", "security"] = "main"
    components: tuple[Component, ...] | None = Field(default=None, min_length=1)
    signed_by: Keyring | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.suites is None and self.distribution is None:
            raise ValueError("should have suites, or distribution: debian or ubuntu")
        if self.suites is not None and self.archive != "main":
            raise ValueError("should have suites or archive: security, not both")
        return self


class Mirrors(Strict):
    """
    Package sources of hosts.  None keeps a host's own configuration.

    Attributes:
        no_proxy: Hosts, and domains with a dot in front, that are reached without the proxy.
        ca_bundle: PEM file of the authorities that apt trusts for the archives of `apt`, in place
            of those of the host.
    """

    apt: tuple[AptSource, ...] = ()  # replaces the distribution's sources
    apt_proxy: ProxyUrl | None = None
    no_proxy: tuple[ProxyException, ...] = ()
    ca_bundle: FilePath | None = None
