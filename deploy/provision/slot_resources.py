"""
Resources of the slots: their units, the sockets of earlier ones, the space for a full disk.
"""

from typing import Literal

from deploy.host.protocol import FactQuery, Facts
from deploy.provision.requirements import HostRefusal
from deploy.provision.resource import Difference, PathResource, Resource, attributes, occupied
from deploy.units import format_size


class Socket(PathResource):
    """
    A socket that, if there is one, belongs to *owner* alone.  Its directory belongs to root.
    """

    kind: Literal["socket"] = "socket"
    owner: str
    mode: str = "0600"

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        # "other" is what is neither file nor directory nor link: of those only sockets stand here.
        if found is None or found.type != "other":
            return None
        wrong = attributes(found, "other", self.owner, found.group, self.mode)
        return Difference(change=", ".join(wrong)) if wrong else None


class SlotUnit(Resource):
    """
    The unit of a slot: where it should run, it runs and can be reached.

    It should run while it is enabled, which only the start and the stop of a release change.

    Attributes:
        socket: Path at which HAProxy reaches it.
        start_s: Time limit of its start.
    """

    kind: Literal["slot_unit"] = "slot_unit"
    unit: str
    socket: str
    start_s: int

    @property
    def name(self) -> str:
        return self.unit

    @property
    def query(self) -> FactQuery:
        return FactQuery(units=(self.unit,), paths={self.socket: ""})

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.units[self.unit]
        if found.enabled != "enabled":
            return None
        if found.active == "failed":
            return Difference(change="start: systemd has given up on it")
        if found.active == "inactive":
            return Difference(change="start: it is enabled and does not run")
        if found.active == "active" and facts.paths[self.socket] is None:
            return Difference(change="restart: its socket was removed")
        return None


class Reserve(PathResource):
    """
    A file of allocated blocks, which the host program gives back bit by bit on a full disk.
    """

    kind: Literal["reserve"] = "reserve"
    size: int

    def refusal(self, facts: Facts) -> HostRefusal | None:
        return occupied(facts, self.path, "file")

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        if found is None or found.size != self.size:
            left = format_size(found.size) if found is not None else "nothing"
            return Difference(change=f"reserve {format_size(self.size)}: {left} is left of it")
        wrong = attributes(found, "file", "root", "root", "0600")
        return Difference(change=", ".join(wrong)) if wrong else None
