"""
A directory that systemd binds to another one.
"""

import shlex
from typing import Literal

from deploy.host import layout
from deploy.host.protocol import FactQuery, Facts
from deploy.provision.requirements import HostRefusal
from deploy.provision.resource import Difference, Resource
from deploy.provision.unit_resources import masked

_LOCK_S = 10


class BindMount(Resource):
    """
    A mount unit that is loaded, enabled and active.

    Attributes:
        what: The directory that is bound to *where*.
    """

    kind: Literal["bind_mount"] = "bind_mount"
    unit: str
    where: str
    what: str

    @property
    def name(self) -> str:
        return self.unit

    @property
    def query(self) -> FactQuery:
        return FactQuery(units=(self.unit,))

    def refusal(self, facts: Facts) -> HostRefusal | None:
        return masked(facts, (self.unit,))

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.units[self.unit]
        wrong = []
        if found.stale or found.load != "loaded":
            wrong.append("reload")
        if found.enabled != "enabled":
            wrong.append("enable")
        if found.active != "active":
            wrong.append(f"mount {self.where}")
        return Difference(change=", ".join(wrong)) if wrong else None

    @property
    def command(self) -> str:
        """
        The command that mounts it, and takes the lease of the run along.
        """
        enable = shlex.join(["systemctl", "enable", "--quiet", "--now", self.unit])
        mount = f"systemctl daemon-reload && {enable}"
        return f"{_take_lease_along(self.what)} && {mount}" if self.where == layout.STATE else mount


def _take_lease_along(what: str) -> str:
    """
    Return the command that copies the lease in force to the disk, under the host's lock.

    The lock is held until the shell ends, after the mount: no renewal is hidden by it.  A journal
    that is on the disk already stays; that of a host without data has the lease alone.
    """
    lease, journal = (_copy(path, what) for path in (layout.LEASE, layout.JOURNAL))
    has_journal = f"[ -e {shlex.quote(_below(layout.JOURNAL, what))} ]"
    return (
        f"umask 077; mkdir -p {layout.STATE} && exec 9>>{layout.LOCK} && flock -w {_LOCK_S} 9 && "
        f"{{ [ {layout.STATE} -ef {shlex.quote(what)} ] || "
        f"{{ {lease} && {{ {has_journal} || {journal}; }}; }}; }}"
    )


def _copy(path: str, what: str) -> str:
    to = shlex.quote(_below(path, what))
    return (
        f"{{ [ ! -e {path} ] || {{ cp -a {path} {to}.new && sync {to}.new && "
        f"mv -fT {to}.new {to}; }}; }}"
    )


def _below(path: str, what: str) -> str:
    return f"{what}{path.removeprefix(layout.STATE)}"
