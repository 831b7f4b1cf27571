"""
Debian packages of a host: which, which versions, what is held.  Pure.

`apt_runner.py` brings a host there, in one transaction that outlives the connection.
"""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from deploy.host.protocol import FactQuery, Facts
from deploy.provision.requirements import Frozen
from deploy.provision.resource import Difference, Resource

# Source: Debian policy, 5.6.1 "Source" and 5.6.12 "Version".
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}")
_VERSION = re.compile(r"(?:[0-9]{1,9}:)?[0-9][A-Za-z0-9.+~-]{0,99}")


def _of(pattern: "re.Pattern[str]", what: str) -> AfterValidator:
    def check(text: str) -> str:
        if pattern.fullmatch(text) is None:
            raise ValueError(f"should be {what}")
        return text

    return AfterValidator(check)


PackageName = Annotated[str, _of(_NAME, "the name of a package")]
PackageVersion = Annotated[str, _of(_VERSION, "the version of a package")]
WantedPackage = Annotated[
    str, _of(re.compile(f"{_NAME.pattern}(?:={_VERSION.pattern})?"), "NAME or NAME=VERSION")
]


class AptTransaction(Frozen):
    """
    One change of packages, in one unit of systemd: apt does all of it or stops with an error.

    Attributes:
        install: `NAME`, or `NAME=VERSION` for one version, also an older one.
        remove: Installed packages that go.  Without any, apt may remove no package at all.
        unhold: Held packages that are changed; they are in `hold` again where they stay held.
        hold: Packages that upgrades leave alone afterwards.
        proxy: For what packages fetch themselves; apt has its own configuration.
        no_proxy: Hosts that are reached without it.
    """

    install: tuple[WantedPackage, ...] = ()
    remove: tuple[PackageName, ...] = ()
    unhold: tuple[PackageName, ...] = ()
    hold: tuple[PackageName, ...] = ()
    proxy: str | None = None
    no_proxy: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """
        Arguments of `apt_on_host.sh run`.
        """
        lists = (("i", self.install), ("r", self.remove), ("u", self.unhold), ("h", self.hold))
        words = [f"-{letter}{name}" for letter, names in lists for name in names]
        if self.proxy is not None:
            words.append(f"-p{self.proxy}")
        if self.no_proxy:
            words.append(f"-n{','.join(self.no_proxy)}")
        return tuple(words)


class Packages(Resource):
    """
    Debian packages, installed without recommendations.  They change in one `AptTransaction`.

    Attributes:
        label: Distinguishes the packages of one concern from those of another.
        names: Installed, in any version but for those in `versions`.
        versions: Exact versions, by name.
        held: Held afterwards, so that no upgrade changes them.  May name packages that are not in
            `names`, such as metapackages of the kernel; those that are not installed are skipped.
        absent: Removed in the same transaction.
        proxy, no_proxy: As for `AptTransaction`.
    """

    kind: Literal["packages"] = "packages"
    label: str = ""
    names: tuple[PackageName, ...]
    versions: dict[PackageName, PackageVersion] = Field(default_factory=dict)
    held: tuple[PackageName, ...] = ()
    absent: tuple[PackageName, ...] = ()
    proxy: str | None = None
    no_proxy: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _belong_together(self) -> "Packages":
        if unknown := sorted({*self.versions} - {*self.names}):
            raise ValueError(f"versions of packages that are not installed: {', '.join(unknown)}")
        if both := sorted({*self.names, *self.held} & {*self.absent}):
            raise ValueError(f"wanted and absent: {', '.join(both)}")
        return self

    @property
    def name(self) -> str:
        return f"packages {self.label}".rstrip()

    @property
    def query(self) -> FactQuery:
        return FactQuery(packages=(*self.names, *self.held, *self.absent))

    def missing(self, facts: Facts) -> tuple[str, ...]:
        """
        Return the packages that are not installed, or in another version.
        """
        return tuple(
            name
            for name in self.names
            if facts.packages[name] is None
            or facts.packages[name] != self.versions.get(name, facts.packages[name])
        )

    def transaction(self, facts: Facts | None) -> AptTransaction:
        """
        Return the change that a host with *facts* needs; None: a host without Python.
        """
        changing = self.missing(facts) if facts else self.names
        installed = {name for name in self.held if facts and facts.packages[name] is not None}
        is_held = {*facts.held} if facts else set()
        return AptTransaction(
            install=tuple(self._wanted(name) for name in changing),
            remove=tuple(name for name in self.absent if facts and facts.packages[name]),
            unhold=tuple(name for name in self.held if name in is_held and name in changing),
            hold=tuple(
                name
                for name in self.held
                if name in changing or (name in installed and name not in is_held)
            ),
            proxy=self.proxy,
            no_proxy=self.no_proxy,
        )

    def difference(self, facts: Facts) -> Difference | None:
        wanted = self.transaction(facts)
        changes = [self._change(name, facts) for name in self.missing(facts)]
        parts = [f"install {', '.join(changes)}"] if changes else []
        if wanted.remove:
            parts.append(f"remove {', '.join(wanted.remove)}")
        if holds := [name for name in wanted.hold if name not in facts.held]:
            parts.append(f"hold {', '.join(holds)}")
        return Difference(change="; ".join(parts)) if parts else None

    def _wanted(self, name: str) -> str:
        return f"{name}={self.versions[name]}" if name in self.versions else name

    def _change(self, name: str, facts: Facts) -> str:
        if name not in self.versions:
            return name
        present = facts.packages[name]
        return f"{name} {present} → {self.versions[name]}" if present else self._wanted(name)
