"""
Package sources of a host: a `.sources` file that may take the place of the distribution's.  Pure.
"""

import hashlib
from typing import Literal

from deploy.foreign_text import visible
from deploy.host import layout
from deploy.host.protocol import FactQuery, Facts
from deploy.provision.distributions import Distribution, distribution_of_suite, distributions
from deploy.provision.requirements import Frozen, HostRefusal
from deploy.provision.resource import Difference, Resource, attributes
from deploy.templating import render

# Sources of the distribution, in all formats that it has had.
DISTRIBUTION_SOURCES = (
    f"{layout.APT}/sources.list",
    f"{layout.APT_SOURCES}/debian.sources",
    f"{layout.APT_SOURCES}/ubuntu.sources",
)
_ONE_LINE = f"{layout.APT_SOURCES}/slipway.list"  # of earlier versions of slipway
_OTHER_FLEET = (
    "correct the source in the fleet file; hosts with different distributions need fleet files of "
    "their own"
)
_ANY = "-"  # a hash that no file has, so that the host answers with the text


class OsRelease(Frozen):
    """
    What a host says that it runs; both empty where it says nothing.
    """

    os_id: str
    codename: str

    @property
    def text(self) -> str:
        return visible(" ".join(filter(None, (self.os_id, self.codename))) or "an unknown system")


class Archive(Frozen):
    """
    One stanza of a `.sources` file.

    Attributes:
        named: What an operator calls it: `mirrors.apt[0]`.
        distribution, suites, archive, components: As for `inventory.schema.AptSource`; suites
            `("/",)` without components are a flat archive.
    """

    named: str
    uris: tuple[str, ...]
    distribution: str | None = None
    suites: tuple[str, ...] | None = None
    archive: str = "main"
    components: tuple[str, ...] | None = None
    signed_by: str | None = None

    def on(self, own: Distribution | None) -> "Archive":
        """
        Return it with the suites and components of *own* where it names none.
        """
        filled: dict[str, tuple[str, ...]] = {}
        if self.suites is None and own is not None:
            filled["suites"] = (own.security,) if self.archive == "security" else own.suites
        if self.components is None and own is not None:
            filled["components"] = own.components
        return self.model_copy(update=filled)

    def unfit(self, host: OsRelease) -> str | None:
        """
        Return why it is not for *host*; None: it may be.
        """
        where = f"{self.named} ({', '.join(self.uris)})"
        if self.distribution is not None and self.distribution != host.os_id:
            return f"{where} is for {self.distribution}; the host runs {host.text}"
        for suite in self.suites or ():
            other = distribution_of_suite(suite)
            if other is not None and other.codename != host.codename:
                return f"{where}: suite {suite} is of {other.release}; the host runs {host.text}"
        names_none = self.suites is None or self.components is None
        if names_none and host.codename not in distributions():
            return f"{where} names no suites or no components, and {host.text} is unknown"
        return None


class AptSources(Resource):
    """
    Sources that apt has read before they are placed.

    Attributes:
        label: Name of the file: `slipway-LABEL.sources`, or `slipway.sources` without one.
        sources: None of them: the file goes, and what it took the place of comes back.
        replaces: Files whose place they take; each is kept as a copy.
    """

    kind: Literal["apt_sources"] = "apt_sources"
    label: str = ""
    sources: tuple[Archive, ...]
    replaces: tuple[str, ...] = DISTRIBUTION_SOURCES

    @property
    def name(self) -> str:
        return f"package sources {self.label}".rstrip()

    @property
    def path(self) -> str:
        return f"{layout.APT_SOURCES}/{'-'.join(filter(None, ('slipway', self.label)))}.sources"

    @property
    def copies(self) -> dict[str, str]:
        """
        The copy of each file of `replaces`.
        """
        return {path: f"{layout.APT_REPLACED}{path}" for path in self.replaces}

    @property
    def obsolete(self) -> tuple[str, ...]:
        """
        Files that go without a copy.
        """
        return () if self.label else (_ONE_LINE,)

    @property
    def query(self) -> FactQuery:
        others = (*self.replaces, *self.copies.values(), *self.obsolete)
        return FactQuery(paths={self.path: _ANY, **dict.fromkeys(others, "")})

    def text(self, host: OsRelease) -> str:
        """
        Return the file of a host that `unfit` accepts.
        """
        own = distributions().get(host.codename)
        return render("slipway.sources", sources=[source.on(own) for source in self.sources])

    def unfit(self, host: OsRelease) -> HostRefusal | None:
        """
        Return the source that is for another distribution than that of *host*; None: all fit.
        """
        for source in self.sources:
            why = source.unfit(host)
            if why is not None:
                return HostRefusal(error="PreconditionError", why=why, fix=_OTHER_FLEET)
        return None

    def refusal(self, facts: Facts) -> HostRefusal | None:
        if self.sources:
            return self.unfit(os_release_of(facts))
        copies = self.copies
        own = [path for path in (self.path, *self.obsolete) if facts.paths[path] is not None]
        if not own or any(facts.paths[path] for path in self.replaces):
            return None
        if not copies or any(facts.paths[copy] is not None for copy in copies.values()):
            return None
        return HostRefusal(
            error="PreconditionError",
            why=f"mirrors.apt is gone from the fleet file, and no copy of the sources that "
            f"{own[0]} replaced is on the host: an earlier version of slipway kept none",
            fix=f"write {copies and next(iter(copies))} on the host, or set mirrors.apt again",
        )

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        there = [path for path in self.replaces if facts.paths[path] is not None]
        obsolete = [path for path in self.obsolete if facts.paths[path] is not None]
        if not self.sources:
            if found is None:
                return Difference(change=f"remove {', '.join(obsolete)}") if obsolete else None
            back = [path for path, copy in self.copies.items() if facts.paths[copy] is not None]
            parts = [*(f"restore {one}" for one in back), "remove"]
            parts += [f"remove {path}" for path in obsolete]
            return Difference(change=", ".join(parts))
        parts = []
        if found is None:
            parts.append("create")
        else:
            text = self.text(os_release_of(facts)).encode()
            if found.sha256 != hashlib.sha256(text).hexdigest():
                parts.append("new content")
            parts += attributes(found, "file", "root", "root", "0644")
        parts += [f"replace {path}" for path in there]
        parts += [f"remove {path}" for path in obsolete]
        return Difference(change=", ".join(parts)) if parts else None


def os_release_of(facts: Facts) -> OsRelease:
    return OsRelease(os_id=facts.os_id, codename=facts.codename)


def parse_os_release(text: str) -> OsRelease:
    """
    Return what *text*, of os-release(5), says.
    """
    parts = (line.partition("=") for line in text.splitlines())
    values = {key.strip(): value.strip().strip("\"'") for key, _, value in parts}
    return OsRelease(os_id=values.get("ID", ""), codename=values.get("VERSION_CODENAME", ""))
