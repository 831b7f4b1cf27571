"""
Standalone Pythons from the mirror of a fleet, checked by hash.
"""

import hashlib
import http.client
import tempfile
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploy.errors import CommandFailed, InventoryError
from deploy.inventory.schema import PythonMirror
from deploy.private_files import private_directory
from deploy.versions.interpreters import load_interpreters
from deploy.versions.matrix import Row
from deploy.wheelhouse.fetch import DEFAULT_CACHE, local_path

_LARGEST_BYTES = 512 << 20
_CHUNK = 1 << 20
_TIMEOUT_S = 60.0  # without a byte


@dataclass(frozen=True, slots=True)
class InterpreterPin:
    """
    Attributes:
        python: "3.13".
        release: "3.13.15".
        path: File in the mirror.
        sha256: Of the archive.
    """

    python: str
    release: str
    path: str
    sha256: str

    @property
    def line(self) -> str:
        """
        Line of a lock that has the environment made with this Python.
        """
        return f"# interpreter: {self.release} sha256:{self.sha256}"


def interpreter_of(mirror: PythonMirror, row: Row) -> InterpreterPin | None:
    """
    Return the Python that the hosts of *row* get; None: that of their distribution.

    Raises:
        InventoryError: No archive has the Python of the row.
    """
    if not mirror.is_on:
        return None
    pins = [
        *(InterpreterPin(p.python, p.release, p.path, p.sha256) for p in load_interpreters()),
        *(InterpreterPin(a.python, a.release, a.path, a.sha256) for a in mirror.archives),
    ]
    known = {pin.python: pin for pin in pins}  # the fleet's own are later
    if row.python not in known:
        raise InventoryError(
            f"row {row.name}: mirrors.python has no Python {row.python}",
            why=f"archives are known for {', '.join(known)}",
            fix="add its archive to mirrors.python.archives, or use a row with another Python",
        )
    return known[row.python]


def ensure_archive(
    pin: InterpreterPin, mirror: PythonMirror, *, cache: Path = DEFAULT_CACHE
) -> Path:
    """
    Return the archive of *pin* in *cache*; copy it from *mirror* unless it is there.

    Raises:
        CommandFailed: The mirror does not have it, or it has another hash.
    """
    folder = private_directory(local_path(cache).resolve())
    path = folder / f"python-{pin.sha256}.tar.gz"
    if path.is_file():
        return path  # only an archive with this hash gets the name; hosts verify it again
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as name:
        draft = Path(name) / "archive"
        with draft.open("wb") as target:
            place, sha256 = _copy(pin, mirror, target)
        if sha256 != pin.sha256:
            raise _refused(pin, f"{place} has the SHA-256 {sha256}, not {pin.sha256}")
        draft.replace(path)
    return path


def archive_places(pin: InterpreterPin, mirror: PythonMirror) -> list[Path | str]:
    """
    Return the file and the URL where *mirror* may have the archive of *pin*.
    """
    places: list[Path | str] = []
    if mirror.folder is not None:
        places.append(mirror.folder / pin.path)
    if mirror.url is not None:
        places.append(f"{mirror.url.rstrip('/')}/{urllib.parse.quote(pin.path)}")
    return places


def _copy(pin: InterpreterPin, mirror: PythonMirror, target: IO[bytes]) -> tuple[str, str]:
    """
    Copy the archive into *target*; return where it was, and its SHA-256.
    """
    places = archive_places(pin, mirror)
    place = next((one for one in places if isinstance(one, Path) and one.exists()), places[-1])
    digest, size = hashlib.sha256(), 0
    try:
        with _open(place) as source:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if size > _LARGEST_BYTES:
                    raise _refused(pin, f"{place} is larger than {_LARGEST_BYTES >> 20} MiB")
                digest.update(chunk)
                target.write(chunk)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _refused(pin, f"{place}: {error}") from None
    return str(place), digest.hexdigest()


def _open(place: Path | str) -> IO[bytes]:
    if isinstance(place, str):
        opened: IO[bytes] = urllib.request.urlopen(place, timeout=_TIMEOUT_S)  # noqa: S310
        return opened
    if place.exists() and not place.is_file():  # opening a pipe could wait for ever
        raise ValueError("not a regular file")
    return place.open("rb")


def _refused(pin: InterpreterPin, why: str) -> CommandFailed:
    return CommandFailed(
        f"Python {pin.release} could not be fetched from mirrors.python",
        why=why,
        fix=f"put {pin.path} with the SHA-256 {pin.sha256} into the mirror, or name another "
        "archive in mirrors.python.archives",
    )
