"""
Resources that a host should have, each comparable with the facts of the host.  Pure.

`operations.py` holds the pyinfra operations of each kind.
"""

import difflib
import hashlib
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from deploy.host import layout
from deploy.host.protocol import FactQuery, Facts, PathFacts
from deploy.provision.requirements import Frozen, HostRefusal
from deploy.units import format_size


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


class Packages(Resource):
    """
    Debian packages, any version; installed without recommendations.
    """

    kind: Literal["packages"] = "packages"
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        return "packages"

    @property
    def query(self) -> FactQuery:
        return FactQuery(packages=self.names)

    def missing(self, facts: Facts) -> tuple[str, ...]:
        return tuple(name for name in self.names if facts.packages[name] is None)

    def difference(self, facts: Facts) -> Difference | None:
        missing = self.missing(facts)
        return Difference(change=f"install {', '.join(missing)}") if missing else None


class User(Resource):
    """
    A system user without login, with a group of the same name.
    """

    kind: Literal["user"] = "user"
    user: str
    home: str = "/nonexistent"
    shell: str = "/usr/sbin/nologin"

    @property
    def name(self) -> str:
        return f"user {self.user}"

    @property
    def query(self) -> FactQuery:
        return FactQuery(users=(self.user,))

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.users[self.user]
        if found is None:
            return Difference(change="create")
        wrong = []
        if found.group != self.user:
            wrong.append(f"group {found.group} → {self.user}")
        if found.shell != self.shell:
            wrong.append(f"shell {found.shell} → {self.shell}")
        return Difference(change=", ".join(wrong)) if wrong else None


class Directory(Resource):
    kind: Literal["directory"] = "directory"
    path: str
    owner: str = "root"
    group: str = "root"
    mode: str = "0755"

    @property
    def name(self) -> str:
        return self.path

    @property
    def query(self) -> FactQuery:
        return FactQuery(paths={self.path: ""})

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        if found is None:
            return Difference(change="create directory")
        wrong = _attributes(found, "directory", self.owner, self.group, self.mode)
        return Difference(change=", ".join(wrong)) if wrong else None


class File(Resource):
    """
    A small file, replaced atomically.

    Attributes:
        secret: The content never appears in a name, argument, diff or log.
        check: Command that must accept the new file before it replaces the old one; `{}` stands
            for its path.
    """

    kind: Literal["file"] = "file"
    path: str
    content: bytes = Field(repr=False)
    owner: str = "root"
    group: str = "root"
    mode: str = "0644"
    secret: bool = False
    check: str | None = None

    @property
    def name(self) -> str:
        return self.path

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def query(self) -> FactQuery:
        secret = (self.path,) if self.secret else ()
        return FactQuery(paths={self.path: self.sha256}, secret=secret)

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        if found is None:
            return Difference(change="create", diff=self._diff(""))
        wrong = _attributes(found, "file", self.owner, self.group, self.mode)
        if found.sha256 == self.sha256:
            return Difference(change=", ".join(wrong)) if wrong else None
        diff = self._diff(found.text) if found.text is not None else None
        return Difference(change=", ".join(["new content", *wrong]), diff=diff)

    def _diff(self, old: str) -> str | None:
        if self.secret:
            return None
        try:
            new = self.content.decode("utf-8")
        except UnicodeDecodeError:
            return None
        lines = difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), self.path, self.path
        )
        return "".join(lines)


class Absent(Resource):
    """
    A file that must not exist.
    """

    kind: Literal["absent"] = "absent"
    path: str

    @property
    def name(self) -> str:
        return self.path

    @property
    def query(self) -> FactQuery:
        return FactQuery(paths={self.path: ""})

    def difference(self, facts: Facts) -> Difference | None:
        return Difference(change="remove") if facts.paths[self.path] is not None else None


class Upload(Resource):
    """
    A large file with its hash in its name; sent when absent, and verified on arrival.

    Attributes:
        source: Path on this machine.
        link: Symlink to it, the path that other programs use.
    """

    kind: Literal["upload"] = "upload"
    path: str
    source: str
    sha256: str
    size: int
    mode: str = "0644"
    link: str | None = None

    @property
    def name(self) -> str:
        return self.link or self.path

    @property
    def query(self) -> FactQuery:
        # Only a verified file gets the name with the hash, so comparing the size is enough.
        return FactQuery(paths={self.path: ""} | ({self.link: ""} if self.link else {}))

    def is_placed(self, facts: Facts) -> bool:
        found = facts.paths[self.path]
        return (
            found is not None
            and (found.type, found.size, found.mode) == ("file", self.size, self.mode)
            and found.owner == "root"
        )

    def difference(self, facts: Facts) -> Difference | None:
        if not self.is_placed(facts):
            return Difference(change=f"send {format_size(self.size)}")
        found = facts.paths[self.link] if self.link else None
        if self.link and (found is None or found.target != self.path):
            return Difference(change=f"link to {self.path}")
        return None


class WheelFile(Frozen):
    file: str
    sha256: str
    size: int
    source: str  # on this machine


class Venv(Resource):
    """
    The Python environment of a lock.  Missing wheels are sent; the host program builds it.
    """

    kind: Literal["venv"] = "venv"
    digest: str
    text: str = Field(repr=False)
    python: str
    wheels: tuple[WheelFile, ...]

    @property
    def name(self) -> str:
        return f"venv {self.digest[:12]}"

    @property
    def path(self) -> str:
        return f"{layout.VENVS}/{self.digest}"

    @property
    def complete(self) -> str:
        return f"{self.path}/.complete"

    @property
    def query(self) -> FactQuery:
        return FactQuery(
            paths={self.complete: "", self.path: ""},
            listings=(layout.WHEELHOUSE,),
            room=(layout.OPT,),
        )

    def missing(self, facts: Facts) -> tuple[WheelFile, ...]:
        if facts.paths[self.complete] is not None:
            return ()
        sizes = facts.listings[layout.WHEELHOUSE]
        return tuple(wheel for wheel in self.wheels if sizes.get(wheel.file) != wheel.size)

    def refusal(self, facts: Facts) -> HostRefusal | None:
        if facts.paths[self.complete] is not None:
            return None
        # An environment takes four times the size of its wheels, bytecode included.
        sent = sum(wheel.size for wheel in self.missing(facts))
        need = sent + 4 * sum(wheel.size for wheel in self.wheels)
        if facts.room[layout.OPT] >= need:
            return None
        return HostRefusal(
            error="DiskTooSmall",
            why=f"{layout.OPT} has {format_size(facts.room[layout.OPT])} free, "
            f"the Python environment takes {format_size(need)}",
            fix=f"free space on the file system of {layout.OPT}",
        )

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        if facts.paths[self.complete] is not None and found is not None:
            # Older host programs left it readable for all users.
            wrong = _attributes(found, "directory", "root", layout.USER, "0750")
            return Difference(change=", ".join(wrong)) if wrong else None
        missing = self.missing(facts)
        sent = f"send {len(missing)} wheels ({format_size(sum(w.size for w in missing))}), "
        return Difference(change=(sent if missing else "") + f"build {len(self.wheels)} packages")


class UnitsLoaded(Resource):
    """
    systemd has loaded the current unit files.
    """

    kind: Literal["units_read"] = "units_read"
    units: tuple[str, ...]

    @property
    def name(self) -> str:
        return "systemd"

    @property
    def query(self) -> FactQuery:
        return FactQuery(units=self.units)

    def difference(self, facts: Facts) -> Difference | None:
        stale = [u for u in self.units if facts.units[u].stale or facts.units[u].load != "loaded"]
        return Difference(change=f"reload {', '.join(stale)}") if stale else None


class EnabledService(Resource):
    """
    A service that is enabled, active, and runs with the configuration on the disk.

    Attributes:
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
        return FactQuery(units=(self.unit,), haproxy=True)

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.units[self.unit]
        wrong = []
        if found.enabled != "enabled":
            wrong.append("enable")
        if found.active != "active":
            wrong.append("start")
        elif facts.haproxy != self.description:
            wrong.append("reload")
        return Difference(change=", ".join(wrong)) if wrong else None


AnyResource = Annotated[
    Packages | User | Directory | File | Absent | Upload | Venv | UnitsLoaded | EnabledService,
    Field(discriminator="kind"),
]


def _attributes(found: PathFacts, type_: str, owner: str, group: str, mode: str) -> list[str]:
    if found.type != type_:
        return [f"{found.type} → {type_}"]
    wrong = []
    if (found.owner, found.group) != (owner, group):
        wrong.append(f"owner {found.owner}:{found.group} → {owner}:{group}")
    if found.mode != mode:
        wrong.append(f"mode {found.mode} → {mode}")
    return wrong
