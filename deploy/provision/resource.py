"""
What every resource of a host has: a name, a query for its facts, and its difference from them.
"""

from pydantic import ConfigDict

from deploy.host.protocol import FactQuery, Facts, PathFacts
from deploy.provision.requirements import Frozen, HostRefusal


class Difference(Frozen):
    """
    What would change; `diff` is the unified diff of a text without secrets.
    """

    change: str
    diff: str | None = None


class Resource(Frozen):
    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64"
    )

    @property
    def name(self) -> str:
        """
        Name for operators; unique on a host.
        """
        raise NotImplementedError

    @property
    def query(self) -> FactQuery:
        """
        Query for the facts that it is compared with.
        """
        raise NotImplementedError

    def difference(self, facts: Facts) -> Difference | None:
        """
        Return what would change on a host with *facts*; None if nothing.
        """
        raise NotImplementedError

    def refusal(self, facts: Facts) -> HostRefusal | None:
        """
        Return why the change is impossible; checked before anything is changed.
        """
        return None


class PathResource(Resource):
    """
    What stands at one path, compared without its content.
    """

    path: str

    @property
    def name(self) -> str:
        return self.path

    @property
    def query(self) -> FactQuery:
        return FactQuery(paths={self.path: ""})


def masked(facts: Facts, units: tuple[str, ...]) -> HostRefusal | None:
    """
    Return the refusal of a host on which somebody forbade one of *units* to start.
    """
    found = [unit for unit in units if facts.units[unit].load == "masked"]
    if not found:
        return None
    return HostRefusal(
        error="PreconditionError",
        why=f"masked for systemd, so it can never start: {', '.join(found)}",
        fix=f"on the host: systemctl unmask {' '.join(found)}",
    )


def attributes(found: PathFacts, type_: str, owner: str, group: str, mode: str) -> list[str]:
    """
    Return each attribute of a path that differs, with its value and the wanted one.
    """
    if found.type != type_:
        return [f"{found.type} → {type_}"]
    wrong = []
    if (found.owner, found.group) != (owner, group):
        wrong.append(f"owner {found.owner}:{found.group} → {owner}:{group}")
    if found.mode != mode:
        wrong.append(f"mode {found.mode} → {mode}")
    return wrong
