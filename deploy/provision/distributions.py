"""
What the suites of the archives are called, of the distributions that hosts may have.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from deploy.versions.catalog import load_catalog


@dataclass(frozen=True, slots=True)
class Distribution:
    """
    Attributes:
        name: As in a fleet file, and `ID` of os-release(5).
        release: For messages: "Debian 12".
        codename: `VERSION_CODENAME` of os-release(5), and the first part of its suites.
        security: Suite of security updates.
        has_security_archive: That suite is in an archive of its own.
        components: Those that the installer enables, but for source packages.
    """

    name: str
    release: str
    codename: str
    security: str
    has_security_archive: bool
    components: tuple[str, ...]

    @property
    def suites(self) -> tuple[str, ...]:
        """
        Suites of the main archive.
        """
        own = (self.codename, f"{self.codename}-updates")
        return own if self.has_security_archive else (*own, self.security)


# Source of both: /etc/apt/sources.list.d of the official cloud images, read 2026-11-26.
def _debian(release: str, codename: str) -> Distribution:
    components = ("main", "non-free-firmware")
    return Distribution("debian", release, codename, f"{codename}-security", True, components)


def _ubuntu(release: str, codename: str) -> Distribution:
    components = ("main", "restricted", "universe", "multiverse")
    return Distribution("ubuntu", release, codename, f"{codename}-security", False, components)


@cache
def distributions() -> Mapping[str, Distribution]:
    """
    Return the distributions of the catalog by codename.
    """
    return MappingProxyType(
        {
            row.codename: (_debian if row.name.startswith("debian") else _ubuntu)(
                row.title, row.codename
            )
            for row in load_catalog().distributions
        }
    )


def distribution_of_suite(suite: str) -> Distribution | None:
    """
    Return the distribution that *suite* belongs to, such as `bookworm-updates` or
    `bookworm/updates`; None: unknown.
    """
    return distributions().get(suite.partition("/")[0].partition("-")[0])
