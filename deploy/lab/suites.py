"""
The releases of distributions that lab hosts can run.
"""

from dataclasses import dataclass
from pathlib import Path

_KEYRINGS = Path("/usr/share/keyrings")


@dataclass(frozen=True, slots=True)
class Distribution:
    """
    Attributes:
        name: ID of /etc/os-release.
        origin: Origin that apt reads in the archive's Release files.
        components: Components of the archive that hosts may use.
        keyring: Keys that sign the archive.
        keyring_package: Debian package of *keyring*.
        script: debootstrap's script for releases that this debootstrap does not know.
    """

    name: str
    origin: str
    components: frozenset[str]
    keyring: Path
    keyring_package: str
    script: str


DEBIAN = Distribution(
    name="debian",
    origin="Debian",
    components=frozenset({"main", "contrib", "non-free", "non-free-firmware"}),
    keyring=_KEYRINGS / "debian-archive-keyring.gpg",
    keyring_package="debian-archive-keyring",
    script="sid",
)
UBUNTU = Distribution(
    name="ubuntu",
    origin="Ubuntu",
    components=frozenset({"main", "universe", "restricted", "multiverse"}),
    keyring=_KEYRINGS / "ubuntu-archive-keyring.gpg",
    keyring_package="ubuntu-keyring",
    script="gutsy",
)

DEFAULT_SUITE = "bookworm"
SUITES = {
    "bookworm": ("Debian 12", DEBIAN),
    "trixie": ("Debian 13", DEBIAN),
    "jammy": ("Ubuntu 22.04", UBUNTU),
    "noble": ("Ubuntu 24.04", UBUNTU),
    "resolute": ("Ubuntu 26.04", UBUNTU),
}


def title(suite: str) -> str:
    """
    Return the distribution and its release, such as "Debian 12".
    """
    return SUITES[suite][0]


def distribution(suite: str) -> Distribution:
    return SUITES[suite][1]
