"""
Resources of systemd: units that are loaded as they were placed, and a service that runs.

A unit of slipway has one file, below `layout.UNITS`.  Other files that systemd reads for it change
what was placed: they are removed.  What the distribution or an administrator sets for all units of
a type (`service.d`) stays.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from deploy.host import layout
from deploy.host.protocol import FactQuery, Facts
from deploy.host.slots import systemd
from deploy.provision.requirements import HostRefusal
from deploy.provision.resource import Difference, Resource

_SHIPPED = ("/usr/lib/systemd/", "/lib/systemd/")
_NAMED_MAX = 3  # files that a change names
_OF_A_TYPE = ("service.d", "timer.d", "mount.d", "slice.d")
# Written by the host program: it makes room for the serving slot while another one loads.
_CPU_WEIGHT = re.compile(r"/run/systemd/system\.control/slipway-runtime@[a-z]+\.service\.d/[^/]+")


class UnitsLoaded(Resource):
    """
    systemd has loaded the units from the files that were placed, and from no others.
    """

    kind: Literal["units_read"] = "units_read"
    units: tuple[str, ...]

    @property
    def name(self) -> str:
        return "systemd"

    @property
    def query(self) -> FactQuery:
        return FactQuery(units=self.units)

    def refusal(self, facts: Facts) -> HostRefusal | None:
        return masked(facts, self.units) or unremovable(facts, self.units)

    def difference(self, facts: Facts) -> Difference | None:
        wrong = loading(facts, self.units)
        return Difference(change=", ".join(wrong)) if wrong else None


class EnabledService(Resource):
    """
    A service that is enabled, active, and runs with the configuration on the disk.

    Attributes:
        socket: Its runtime socket.
        description: Description that the running HAProxy must report.
    """

    kind: Literal["service"] = "service"
    unit: str
    socket: str
    description: str

    @property
    def name(self) -> str:
        return self.unit

    @property
    def query(self) -> FactQuery:
        return FactQuery(units=(self.unit,), paths={self.socket: ""}, haproxy=True)

    def refusal(self, facts: Facts) -> HostRefusal | None:
        return masked(facts, (self.unit,)) or self._overridden(facts)

    def _overridden(self, facts: Facts) -> HostRefusal | None:
        """
        Return the refusal of a host where the distribution's unit is not what systemd runs.
        """
        files = foreign_drop_ins(facts, self.unit)
        fragment = facts.units[self.unit].fragment
        if fragment and not fragment.startswith(_SHIPPED):
            files = (fragment, *files)
        if not files:
            return None
        return HostRefusal(
            error="PreconditionError",
            why=f"{self.unit} is changed by {_listed(files)}, which slipway did not place",
            fix=f"on the host: systemctl revert {self.unit}; then: inv provision",
        )

    def has_lost_socket(self, facts: Facts) -> bool:
        """
        True if it runs without the path of its socket, which a reload never binds again.

        A service that is only too busy to answer still has the path: it is not restarted.
        """
        return facts.units[self.unit].active == "active" and facts.paths[self.socket] is None

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.units[self.unit]
        wrong = []
        if found.stale:
            wrong.append("reload its unit file")
        if found.enabled != "enabled":
            wrong.append("enable")
        if found.active != "active":
            wrong.append("start")
        elif self.has_lost_socket(facts):
            wrong.append(f"restart, because {self.socket} is gone")
        elif facts.haproxy != self.description:
            wrong.append("reload")
        return Difference(change=", ".join(wrong)) if wrong else None


def masked(facts: Facts, units: Iterable[str]) -> HostRefusal | None:
    """
    Return the refusal of a host on which somebody forbade one of *units* to start.
    """
    names = [unit for unit in units if facts.units[unit].load == "masked"]
    if not names:
        return None
    return HostRefusal(
        error="PreconditionError",
        why=f"masked for systemd, so it can never start: {', '.join(names)}",
        fix=f"on the host: {systemd.unmask_command(*names)}",
    )


def loading(facts: Facts, units: Iterable[str]) -> list[str]:
    """
    Return what must be done for systemd to have loaded *units* as they were placed.
    """
    wrong = []
    if foreign := foreign_files(facts, units):
        wrong.append(f"remove {_listed(foreign)}")
    stale = [unit for unit in units if _is_stale(facts, unit)]
    if stale:
        wrong.append(f"reload {', '.join(stale)}")
    return wrong


def foreign_files(facts: Facts, units: Iterable[str]) -> tuple[str, ...]:
    """
    Return the files that change what was placed of *units*, and that may be removed.
    """
    found = (path for unit in units for path in _foreign(facts, unit) if _is_of(path, unit))
    return tuple(dict.fromkeys(found))


def unremovable(facts: Facts, units: Iterable[str]) -> HostRefusal | None:
    """
    Return the refusal of a host where a file that is not of *units* alone changes one of them.
    """
    others = [(u, path) for u in units for path in _foreign(facts, u) if not _is_of(path, u)]
    if not others:
        return None
    unit, path = others[0]
    return HostRefusal(
        error="PreconditionError",
        why=f"{unit} is changed by {path}, which slipway did not place",
        fix="remove that file on the host, then: systemctl daemon-reload; inv provision",
    )


def foreign_drop_ins(facts: Facts, unit: str) -> tuple[str, ...]:
    """
    Return the drop-ins of *unit* alone that the distribution did not ship.
    """
    return tuple(
        path
        for path in facts.units[unit].drop_ins
        if not path.startswith(_SHIPPED)
        and posixpath.basename(posixpath.dirname(path)) not in _OF_A_TYPE
        and not _CPU_WEIGHT.fullmatch(path)
    )


def _listed(files: Sequence[str]) -> str:
    more = len(files) - _NAMED_MAX
    return ", ".join(files[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")


def _foreign(facts: Facts, unit: str) -> tuple[str, ...]:
    fragment = facts.units[unit].fragment
    # A shipped unit of that name gives way to the one that was placed.
    if not fragment or fragment == _own(unit) or fragment.startswith(_SHIPPED):
        return foreign_drop_ins(facts, unit)
    return (fragment, *foreign_drop_ins(facts, unit))


def _is_stale(facts: Facts, unit: str) -> bool:
    found = facts.units[unit]
    return found.stale or found.load != "loaded" or found.fragment.startswith(_SHIPPED)


def _own(unit: str) -> str:
    return f"{layout.UNITS}/{_template(unit)}"


def _template(unit: str) -> str:
    """
    Return the name of the file of *unit*: that of its template, where it is an instance.
    """
    return re.sub(r"@.*\.", "@.", unit)


def _is_of(path: str, unit: str) -> bool:
    """
    Return whether *path*, which a host reported, is a file of *unit* or of its template alone.
    """
    names = "|".join(re.escape(name) for name in {unit, _template(unit)})
    pattern = rf"/(?:etc|run)/systemd/[a-z.]+/(?:{names})(?:\.d/[A-Za-z0-9_@:.-]+)?"
    return re.fullmatch(pattern, path) is not None and "/../" not in path
