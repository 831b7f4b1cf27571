"""
Debian packages of a host, and the transaction that changes them.  Pure.

`apt_runner.py` brings a host there, in one transaction that outlives the connection.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator

from deploy.host.protocol import FactQuery, Facts
from deploy.provision.requirements import Frozen
from deploy.provision.resource import Difference, Resource

# Source: Debian policy, 5.6.1 "Source" and 5.6.12 "Version".
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}")
_VERSION = re.compile(r"(?:[0-9]{1,9}:)?[0-9][A-Za-z0-9.+~-]{0,99}")


# What has the program python3, as a link and as a file.
PYTHON_PACKAGES = ("python3-minimal", "python3.*-minimal")


def _of(pattern: "re.Pattern[str]", what: str) -> AfterValidator:
    def check(text: str) -> str:
        if pattern.fullmatch(text) is None:
            raise ValueError(f"should be {what}")
        return text

    return AfterValidator(check)


PackageName = Annotated[str, _of(_NAME, "the name of a package")]
WantedPackage = Annotated[
    str, _of(re.compile(f"{_NAME.pattern}(?:={_VERSION.pattern})?"), "NAME or NAME=VERSION")
]


PackagePattern = Annotated[
    str, _of(re.compile(r"[a-z0-9][a-z0-9+.*-]{1,99}"), "a pattern of names of packages")
]


class AptTransaction(Frozen):
    """
    One change of packages, in one unit of systemd: apt does all of it or stops with an error.

    Attributes:
        install: `NAME`, or `NAME=VERSION` for one version, also an older one.
        remove: Installed packages that go.  Without any, apt may remove no package at all.
        unhold: Held packages that are changed; they are in `hold` again where they stay held.
        hold: Packages that upgrades leave alone afterwards.
        again: Installed packages whose files are unpacked again, by dpkg's patterns.
        proxy: For what packages fetch themselves; apt has its own configuration.
        no_proxy: Hosts that are reached without it.
    """

    install: tuple[WantedPackage, ...] = ()
    remove: tuple[PackageName, ...] = ()
    unhold: tuple[PackageName, ...] = ()
    hold: tuple[PackageName, ...] = ()
    again: tuple[PackagePattern, ...] = ()
    proxy: str | None = None
    no_proxy: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """
        Arguments of `apt_on_host.sh run`.
        """
        lists = (
            *(("i", self.install), ("r", self.remove), ("u", self.unhold), ("h", self.hold)),
            ("x", self.again),
        )
        words = [f"-{letter}{name}" for letter, names in lists for name in names]
        if self.proxy is not None:
            words.append(f"-p{self.proxy}")
        if self.no_proxy:
            words.append(f"-n{','.join(self.no_proxy)}")
        return tuple(words)


class Packages(Resource):
    """
    Debian packages, any version; installed without recommendations, in one `AptTransaction`.

    Attributes:
        proxy, no_proxy: As for `AptTransaction`.
    """

    kind: Literal["packages"] = "packages"
    names: tuple[PackageName, ...]
    proxy: str | None = None
    no_proxy: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "packages"

    @property
    def query(self) -> FactQuery:
        return FactQuery(packages=self.names)

    def missing(self, facts: Facts) -> tuple[str, ...]:
        return tuple(name for name in self.names if facts.packages[name] is None)

    def transaction(self, facts: Facts | None) -> AptTransaction:
        """
        Return the change that a host with *facts* needs; None: a host without Python.
        """
        install = self.missing(facts) if facts else self.names
        return AptTransaction(install=install, proxy=self.proxy, no_proxy=self.no_proxy)

    @property
    def restored_python(self) -> AptTransaction:
        """
        Return the change that unpacks the files of the distribution's Python again.
        """
        return AptTransaction(again=PYTHON_PACKAGES, proxy=self.proxy, no_proxy=self.no_proxy)

    def difference(self, facts: Facts) -> Difference | None:
        missing = self.missing(facts)
        return Difference(change=f"install {', '.join(missing)}") if missing else None
