"""
Resources that a host should have, each comparable with the facts of the host.  Pure.

`operations.py` holds the pyinfra operations of each kind.
"""

import difflib
import hashlib
import hmac
from typing import Annotated, Literal

from pydantic import Field

from deploy.errors import hide_passwords
from deploy.host import layout
from deploy.host.protocol import FactQuery, Facts, PathFacts, VenvBuild, Wheel
from deploy.host.tree import UNCOMPARED
from deploy.provision.apt_packages import Packages
from deploy.provision.apt_sources import AptSources
from deploy.provision.bind_mount import BindMount
from deploy.provision.certificate_resources import Certificate
from deploy.provision.deadman_resources import DeadmanMark, EnabledUnits
from deploy.provision.driver.gpu_state import GpuUnit, waits_for_driver
from deploy.provision.driver.resource import LoadedDriver, NvidiaDriver
from deploy.provision.interpreter_resource import StandalonePython
from deploy.provision.requirements import Frozen, HostRefusal
from deploy.provision.resource import (
    Difference,
    PathResource,
    Resource,
    altered_files,
    attributes,
    occupied,
)
from deploy.provision.slot_resources import Reserve, SlotUnit, Socket
from deploy.provision.unit_resources import EnabledService, UnitsLoaded
from deploy.provision.user_resources import User
from deploy.units import format_size
from deploy.wheelhouse.lock import pins_in

VENV_TIMEOUT_S = 600  # of `build_request`


class Directory(PathResource):
    kind: Literal["directory"] = "directory"
    owner: str = "root"
    group: str = "root"
    mode: str = "0755"

    def refusal(self, facts: Facts) -> HostRefusal | None:
        return occupied(facts, self.path, "directory")

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        if found is None:
            return Difference(change="create directory")
        wrong = attributes(found, "directory", self.owner, self.group, self.mode)
        return Difference(change=", ".join(wrong)) if wrong else None


class File(Resource):
    """
    A small file, replaced atomically.

    Attributes:
        mac_key: Given for a secret: its content never appears in a name, argument, diff or log.
            It is compared by its HMAC under this random key of the run, in hexadecimal.  A plain
            hash would let everyone who sees it test guesses of the secret, at any later time.
        check: Command that must accept the new file before it replaces the old one; `{}` stands
            for its path.
    """

    kind: Literal["file"] = "file"
    path: str
    content: bytes = Field(repr=False)
    owner: str = "root"
    group: str = "root"
    mode: str = "0644"
    mac_key: str | None = Field(default=None, repr=False)
    check: str | None = None

    @property
    def name(self) -> str:
        return self.path

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def mac(self) -> str | None:
        """
        HMAC of the content of a secret; None for any other file.
        """
        if self.mac_key is None:
            return None
        key = bytes.fromhex(self.mac_key)
        return hmac.new(key, self.content, hashlib.sha256).hexdigest()

    @property
    def query(self) -> FactQuery:
        if self.mac_key is not None:
            return FactQuery(secrets={self.path: self.mac_key})
        return FactQuery(paths={self.path: self.sha256})

    def refusal(self, facts: Facts) -> HostRefusal | None:
        return occupied(facts, self.path, "file")

    def difference(self, facts: Facts) -> Difference | None:
        found = facts.paths[self.path]
        if found is None:
            return Difference(change="create", diff=self._diff(""))
        wrong = attributes(found, "file", self.owner, self.group, self.mode)
        if self._has_content(found):
            return Difference(change=", ".join(wrong)) if wrong else None
        diff = self._diff(found.text) if found.text is not None else None
        return Difference(change=", ".join(["new content", *wrong]), diff=diff)

    def _has_content(self, found: PathFacts) -> bool:
        if self.mac_key is not None:
            return found.mac == self.mac
        return found.sha256 == self.sha256

    def _diff(self, old: str) -> str | None:
        if self.mac_key is not None:
            return None
        try:
            new = self.content.decode("utf-8")
        except UnicodeDecodeError:
            return None
        lines = difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), self.path, self.path
        )
        return hide_passwords("".join(lines))  # a host's own file may have a proxy with a login


class Absent(PathResource):
    """
    A file, or a directory with all that is in it, that must not exist.
    """

    kind: Literal["absent"] = "absent"

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
        return FactQuery(paths={self.path: self.sha256} | ({self.link: ""} if self.link else {}))

    def refusal(self, facts: Facts) -> HostRefusal | None:
        own = occupied(facts, self.path, "file")
        return own or (occupied(facts, self.link, "file") if self.link else None)

    def is_placed(self, facts: Facts) -> bool:
        found = facts.paths[self.path]
        if found is None or found.sha256 != self.sha256:
            return False
        return not attributes(found, "file", "root", "root", self.mode)

    def difference(self, facts: Facts) -> Difference | None:
        if not self.is_placed(facts):
            found = facts.paths[self.path]
            wrong = attributes(found, "file", "root", "root", self.mode) if found else []
            why = f": {', '.join(wrong)}" if wrong else ": its content differs" if found else ""
            return Difference(change=f"send {format_size(self.size)}{why}")
        found = facts.paths[self.link] if self.link else None
        if self.link and (found is None or found.target != self.path):
            return Difference(change=f"link to {self.path}")
        return None


class WheelFile(Frozen):
    """
    Attributes:
        source: Path on this machine.
        unpacked: Bytes that its files take on a disk.
    """

    file: str
    sha256: str
    size: int
    source: str
    unpacked: int


class Venv(Resource):
    """
    The Python environment of a lock.  Missing wheels are sent; the host program builds it.

    Attributes:
        wheels: None: this machine lacks them.  They are fetched once a host needs them.
        disk: Path whose file system holds it.
        torch: Version and build of torch that it has, such as "2.13.0+cu130".
    """

    kind: Literal["venv"] = "venv"
    digest: str
    text: str = Field(repr=False)
    python: str
    wheels: tuple[WheelFile, ...] | None
    disk: str = layout.OPT
    torch: str | None = None

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
            venvs=(self.path,),
            listings=(layout.WHEELHOUSE,),
            room=(self.disk,),
        )

    @property
    def mark(self) -> str:
        """
        Path of the file that is there until its torch has computed on all GPUs.
        """
        return f"{self.path}/{UNCOMPARED}"

    @property
    def build_request(self) -> VenvBuild:
        """
        The request that builds it, and compares its torch on the GPUs where that is owed.
        """
        wheels = self.wheels or ()
        return VenvBuild(
            lock=self.text,
            digest=self.digest,
            python=self.python,
            wheels=tuple(Wheel(file=w.file, sha256=w.sha256, size=w.size) for w in wheels),
            torch=self.torch,
        )

    def damage(self, facts: Facts) -> str | None:
        """
        Return why it must be built, or built again; None if it is as it was built.
        """
        found, place = facts.venvs[self.path], facts.paths[self.path]
        if found is None or place is None or facts.paths[self.complete] is None:
            return "it is not there"
        if place.type != "directory":
            return f"{self.path} is no directory"
        if altered := altered_files(found):
            return altered
        return f"its Python does not run: {found.problem}" if found.problem else None

    def missing(self, facts: Facts) -> tuple[WheelFile, ...]:
        if self.damage(facts) is None:
            return ()
        sizes = facts.listings[layout.WHEELHOUSE]
        return tuple(wheel for wheel in self.wheels or () if sizes.get(wheel.file) != wheel.size)

    def refusal(self, facts: Facts) -> HostRefusal | None:
        if self.damage(facts) is None or self.wheels is None:
            return None
        sent = sum(wheel.size for wheel in self.missing(facts))
        need = sent + sum(wheel.unpacked for wheel in self.wheels)
        if facts.room[self.disk] >= need:
            return None
        return HostRefusal(
            error="DiskTooSmall",
            why=f"{self.disk} has {format_size(facts.room[self.disk])} free, "
            f"the Python environment takes {format_size(need)}",
            fix=f"free space on the file system of {self.disk}, or set storage.root",
        )

    def difference(self, facts: Facts) -> Difference | None:
        damage, found = self.damage(facts), facts.paths[self.path]
        if damage is None and found is not None:
            # Older host programs left it readable for all users.
            wrong = attributes(found, "directory", "root", layout.USER, "0750")
            return Difference(change=", ".join(wrong)) if wrong else None
        why = f"{damage}: " if facts.paths[self.complete] is not None else ""
        if self.wheels is None:
            count = pins_in(self.text)
            return Difference(
                change=f"{why}fetch the wheels of {count} packages, send and build them"
            )
        missing = self.missing(facts)
        sent = f"send {len(missing)} wheels ({format_size(sum(w.size for w in missing))}), "
        build = f"build {len(self.wheels)} packages"
        return Difference(change=f"{why}{sent if missing else ''}{build}")


class ComparedTorch(Resource):
    """
    The torch of an environment has computed on the GPUs what the CPU computes.

    An environment is compared when it is built.  Where no GPU could be used then, it is marked, and
    compared once the driver and nvidia_uvm are loaded.  GPUs without free memory are no difference:
    a host whose slots fill them is as pinned, and is compared again in its next boot, before slots
    start.
    """

    kind: Literal["compared_torch"] = "compared_torch"
    venv: Venv

    @property
    def name(self) -> str:
        return f"torch of {self.venv.name} on the GPUs"

    @property
    def query(self) -> FactQuery:
        return FactQuery(venvs=(self.venv.path,))

    def difference(self, facts: Facts) -> Difference | None:
        if not self.is_owed(facts):
            return None
        if not facts.gpus or not facts.uvm or waits_for_driver(facts):
            return None  # no program can use CUDA; nvidia_uvm is loaded by the unit of the GPUs
        return Difference(change="compare a product with the CPU's")

    def is_owed(self, facts: Facts) -> bool:
        """
        Return whether it is to be compared, as soon as programs can use CUDA.
        """
        found = facts.venvs[self.venv.path]
        return found is not None and found.uncompared


AnyResource = Annotated[
    Packages
    | AptSources
    | User
    | Directory
    | BindMount
    | Socket
    | Reserve
    | File
    | Certificate
    | Absent
    | Upload
    | StandalonePython
    | Venv
    | ComparedTorch
    | UnitsLoaded
    | SlotUnit
    | EnabledService
    | EnabledUnits
    | DeadmanMark
    | NvidiaDriver
    | LoadedDriver
    | GpuUnit,
    Field(discriminator="kind"),
]
