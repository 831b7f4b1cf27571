"""
Resources of the host's own way back: units that run or will run at boot, and the passed test.
"""

import hashlib
from typing import Literal

from deploy.host.protocol import FactQuery, Facts
from deploy.provision.requirements import HostRefusal
from deploy.provision.resource import Difference, PathResource, Resource, attributes, occupied
from deploy.provision.unit_resources import loading, masked, unremovable


class EnabledUnits(Resource):
    """
    Units that systemd has loaded as they are on the disk, with a timer that runs.

    Attributes:
        timer: The timer.
        enabled: Units that start at boot.
        units: All units.
    """

    kind: Literal["enabled_units"] = "enabled_units"
    timer: str
    enabled: tuple[str, ...]
    units: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.timer

    @property
    def query(self) -> FactQuery:
        return FactQuery(units=self.units)

    def refusal(self, facts: Facts) -> HostRefusal | None:
        return masked(facts, self.units) or unremovable(facts, self.units)

    def difference(self, facts: Facts) -> Difference | None:
        wrong = loading(facts, self.units)
        disabled = [unit for unit in self.enabled if facts.units[unit].enabled != "enabled"]
        if disabled:
            wrong.append(f"enable {', '.join(disabled)}")
        if facts.units[self.timer].active != "active":
            wrong.append("start")
        return Difference(change=", ".join(wrong)) if wrong else None


class DeadmanMark(PathResource):
    """
    The mark of a host whose own way back was tested with the present program and units.

    Attributes:
        mark: Its content, which the host program writes when the test has passed.
    """

    kind: Literal["deadman_mark"] = "deadman_mark"
    mark: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.mark).hexdigest()

    @property
    def query(self) -> FactQuery:
        return FactQuery(paths={self.path: self.sha256})

    def refusal(self, facts: Facts) -> HostRefusal | None:
        return occupied(facts, self.path, "file")

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        if found is None:
            return Difference(change="test the host's own way back")
        if found.sha256 != self.sha256 or attributes(found, "file", "root", "root", "0644"):
            return Difference(change="test the host's own way back again: it has changed")
        return None
