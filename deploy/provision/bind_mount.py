"""
A directory that systemd binds to another one.
"""

from typing import Literal

from deploy.host.protocol import FactQuery, Facts
from deploy.provision.requirements import HostRefusal
from deploy.provision.resource import Difference, Resource
from deploy.provision.unit_resources import masked


class BindMount(Resource):
    """
    A mount unit that is loaded, enabled and active.
    """

    kind: Literal["bind_mount"] = "bind_mount"
    unit: str
    where: str

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
