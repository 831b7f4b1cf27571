"""
What every resource of a host has: a name, a query for its facts, and its difference from them.
"""

from pydantic import ConfigDict

from deploy.host.protocol import FactQuery, Facts, PathFacts, VenvFacts
from deploy.provision.requirements import Frozen, HostRefusal

_NAMED_MAX = 3  # altered files


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


def occupied(facts: Facts, path: str, wanted: str) -> HostRefusal | None:
    """
    Return the refusal of a host on which something stands where a *wanted* one is placed.

    A file or link in place of a file is replaced; anything else may be of use to somebody.

    Args:
        wanted: "file" or "directory".
    """
    found = facts.paths[path]
    if found is None or found.type == wanted or (wanted == "file" and found.type != "directory"):
        return None
    if found.type == "link":
        return HostRefusal(
            error="PreconditionError",
            why=f"{path} is a link to {found.target}; slipway needs a directory there",
            fix=f"on the host, mount that directory in place of the link: rm {path}; "
            f"mkdir {path}; mount --bind DIRECTORY {path}; the same in /etc/fstab",
        )
    what = "a directory" if found.type == "directory" else "no directory"
    return HostRefusal(
        error="PreconditionError",
        why=f"{path} is {what}; slipway places a {wanted} there",
        fix=f"on the host, move it away: mv {path} {path}.old; then: inv provision",
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


def altered_files(tree: VenvFacts) -> str | None:
    """
    Return in what the files of *tree* are not as they were recorded; None if all are.
    """
    if not tree.is_recorded:
        return "its files were not recorded"
    if not tree.altered_count:
        return None
    names = ", ".join(tree.altered[:_NAMED_MAX])
    return f"{tree.altered_count} of its files are not as recorded ({names})"
