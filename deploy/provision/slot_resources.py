"""
Resources of the slots: the sockets of earlier ones, and the space that is kept for a full disk.
"""

from typing import Literal

from deploy.host.protocol import Facts
from deploy.provision.resource import Difference, PathResource, attributes
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


class Reserve(PathResource):
    """
    A file of allocated blocks, which the host program gives back bit by bit on a full disk.
    """

    kind: Literal["reserve"] = "reserve"
    size: int

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        if found is None or found.size != self.size:
            left = format_size(found.size) if found is not None else "nothing"
            return Difference(change=f"reserve {format_size(self.size)}: {left} is left of it")
        wrong = attributes(found, "file", "root", "root", "0600")
        return Difference(change=", ".join(wrong)) if wrong else None
