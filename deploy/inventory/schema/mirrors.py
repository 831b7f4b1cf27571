"""
The key `mirrors`.  Pure.
"""

from typing import Self

from pydantic import Field, model_validator

from deploy.inventory.names import (
    ArchiveUrl,
    Component,
    FilePath,
    Keyring,
    MirrorPath,
    MirrorUrl,
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
        signed_by: Keyring on the hosts; None: any key that apt on the host trusts.
    """

    uris: tuple[ArchiveUrl, ...] = Field(min_length=1)
    suites: tuple[Suite, ...] = Field(min_length=1)
    components: tuple[Component, ...] = Field(min_length=1)
    signed_by: Keyring | None = None


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
    """

    apt: tuple[AptSource, ...] = ()  # replaces the distribution's sources
    apt_proxy: ProxyUrl | None = None
    python: PythonMirror = PythonMirror()
