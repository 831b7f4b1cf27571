"""
Resources of the slots: the sockets of earlier ones, and the space that is kept for a full disk.
"""

from typing import Literal

from deploy.host.protocol import FactQuery, Facts
from deploy.provision.resource import Difference, Resource, attributes
from deploy.units import format_size


class Socket(Resource):
    """
    A socket that, if there is one, belongs to *owner* alone.  Its directory belongs to root.
    """

    kind: Literal["socket"] = "socket"
    path: str
    owner: str
    mode: str = "0600"

    @property
    def name(self) -> str:
        return self.path

    @property
    def query(self) -> FactQuery:
        return FactQuery(paths={self.path: ""})

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        # "other" is what is neither file nor directory nor link: of those only sockets stand here.
        if found is None or found.type != "other":
            return None
        wrong = attributes(found, "other", self.owner, found.group, self.mode)
        return Difference(change=", ".join(wrong)) if wrong else None


class Reserve(Resource):
    """
    A file of allocated blocks, which the host program gives back bit by bit on a full disk.
    """

    kind: Literal["reserve"] = "reserve"
    path: str
    size: int

    @property
    def name(self) -> str:
        return self.path

    @property
    def query(self) -> FactQuery:
        return FactQuery(paths={self.path: ""})

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        if found is None or found.size != self.size:
            left = format_size(found.size) if found is not None else "nothing"
            return Difference(change=f"reserve {format_size(self.size)}: {left} is left of it")
        wrong = attributes(found, "file", "root", "root", "0600")
        return Difference(change=", ".join(wrong)) if wrong else None
