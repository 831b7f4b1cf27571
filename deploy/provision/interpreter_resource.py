"""
A standalone Python on a host: the archive is sent, the host program unpacks it.
"""

from typing import Literal

from deploy.host import layout
from deploy.host.protocol import FactQuery, Facts
from deploy.provision.requirements import HostRefusal
from deploy.provision.resource import Difference, Resource, altered_files, attributes
from deploy.units import format_size

# An archive of 30 MiB unpacks to 110 MiB: python-build-standalone, install_only_stripped.
_UNPACKED_TIMES = 5


class StandalonePython(Resource):
    """
    Attributes:
        python: Minor version, such as "3.11".
        release: Such as "3.11.16".
        sha256: Of the archive, which names its directory.
        source: The archive on this machine; None: it is fetched once a host needs it.
        size: Of the archive in bytes; 0 where it is not fetched.
        disk: Path whose file system holds it.
    """

    kind: Literal["standalone_python"] = "standalone_python"
    python: str
    release: str
    sha256: str
    source: str | None = None
    size: int = 0
    disk: str = layout.OPT

    @property
    def name(self) -> str:
        return f"Python {self.release}"

    @property
    def path(self) -> str:
        return f"{layout.PYTHONS}/{self.sha256}"

    @property
    def program(self) -> str:
        return f"{self.path}/bin/python{self.python}"

    @property
    def upload(self) -> str:
        """
        Path of the archive among the uploads.
        """
        return f"{layout.INCOMING}/{layout.python_upload(self.sha256)}"

    @property
    def query(self) -> FactQuery:
        return FactQuery(paths={self.program: ""}, venvs=(self.path,), room=(self.disk,))

    def damage(self, facts: Facts) -> str | None:
        """
        Return why it must be placed, or placed again; None if it is as in its archive.
        """
        # Only a verified archive gets the name with the hash, whole or not at all.
        program, tree = facts.paths[self.program], facts.venvs[self.path]
        if program is None or tree is None:
            return "it is not there"
        wrong = attributes(program, "file", "root", "root", "0755")
        if wrong:
            return f"its program: {', '.join(wrong)}"
        return altered_files(tree)

    def difference(self, facts: Facts) -> Difference | None:
        damage = self.damage(facts)
        if damage is None:
            return None
        why = f"{damage}: " if facts.venvs[self.path] is not None else ""
        if self.source is None:
            return Difference(change=f"{why}fetch it from mirrors.python, send and unpack it")
        return Difference(change=f"{why}send {format_size(self.size)} and unpack it")

    def refusal(self, facts: Facts) -> HostRefusal | None:
        if self.source is None or self.difference(facts) is None:
            return None
        need = self.size * _UNPACKED_TIMES
        if facts.room[self.disk] >= need:
            return None
        return HostRefusal(
            error="DiskTooSmall",
            why=f"{self.disk} has {format_size(facts.room[self.disk])} free, "
            f"{self.name} takes {format_size(need)}",
            fix=f"free space on the file system of {self.disk}",
        )
