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
    MirrorPath,
    MirrorUrl,
    ProxyException,
    ProxyUrl,
    PythonRelease,
    Sha256,
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


class PythonArchive(Strict):
    """
    A standalone Python that replaces the one that slipway pins.

    Attributes:
        path: File in the mirror.
    """

    release: PythonRelease
    path: MirrorPath
    sha256: Sha256

    @property
    def python(self) -> str:
        """
        Its minor version, such as "3.13".
        """
        return self.release.rpartition(".")[0]


class PythonMirror(Strict):
    """
    Where standalone Pythons come from: a folder of this machine, and a URL for what it lacks.
    Neither: hosts use the Python of their distribution.
    """

    folder: FilePath | None = None
    url: MirrorUrl | None = None
    archives: tuple[PythonArchive, ...] = ()

    @property
    def is_on(self) -> bool:
        return self.folder is not None or self.url is not None

    @model_validator(mode="after")
    def _archives_of_a_place(self) -> Self:
        if self.archives and not self.is_on:
            raise ValueError("archives needs folder or url")
        pythons = [archive.python for archive in self.archives]
        if len(set(pythons)) != len(pythons):
            raise ValueError("archives should have one entry for each Python")
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
    python: PythonMirror = PythonMirror()
