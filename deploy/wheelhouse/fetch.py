"""
Downloads the wheels of a row into the cache, with this machine's pip configuration.
"""

import fcntl
import hashlib
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from deploy.errors import CommandFailed, InventoryError, UsageError
from deploy.private_files import FILE_MODE, open_private, private_directory, write_private
from deploy.units import format_size
from deploy.versions.matrix import Row
from deploy.wheelhouse.lock import CachedWheel, Lock, digest_of, hashes_in, lock_text, pins_in

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
DEFAULT_CACHE = Path("~/.cache/slipway/wheels")
_BLOCK_BYTES = 4096  # of a file system
FETCH_TIMEOUT_S = 3600.0  # a CUDA row is 2.6 GiB: enough for 0.8 MB/s

# Hosts are x86_64; the oldest glibc of a supported distribution is Ubuntu 22.04's, 2.35.  pip does
# not derive older tags from newer ones.
_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(35, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """
    A wheel as the index of its lock lists it.

    Attributes:
        unpacked: See `CachedWheel`; 0: an older version of slipway wrote the index.
    """

    file: str
    sha256: str
    size: int
    mtime_ns: int
    unpacked: int = 0


_INDEX = TypeAdapter(list[_Entry])


def ensure_lock(
    row: Row,
    *,
    interpreter: str | None = None,
    cache: Path = DEFAULT_CACHE,
    progress: Callable[[str], None],
    requirements: Path = REQUIREMENTS,
) -> Lock:
    """
    Return the lock of *row*; download the wheels that *cache* lacks.

    Args:
        interpreter: Line of the lock that names a standalone Python; None: the host's own.

    Raises:
        InventoryError: The row has no valid lock file.
        CommandFailed: pip could not download a wheel, or its hash differs.
    """
    text = _text_of(row, requirements, interpreter)
    digest = digest_of(text)
    cache = private_directory(local_path(cache).resolve())
    index = cache / f"{digest}.json"
    with _locked(cache / ".lock"):
        wheels = _known(index, cache, hashes_in(text))
        if wheels is None:
            wheels = _from_cache(text, row.python, cache)
        if wheels is None:
            progress(f"fetching {pins_in(text)} wheels of {row.name}")
            wheels = _fetch(text, row.python, cache)
            progress(f"fetched {format_size(sum(w.size for w in wheels))} of wheels")
        _remember(index, wheels)
    return Lock(digest=digest, text=text, python=row.python, wheels=wheels)


def cached_lock(
    row: Row,
    *,
    interpreter: str | None = None,
    cache: Path = DEFAULT_CACHE,
    requirements: Path = REQUIREMENTS,
) -> Lock | None:
    """
    Return the lock of *row*; None: *cache* lacks some of its wheels.  Downloads nothing.

    Raises:
        InventoryError: The row has no valid lock file.
    """
    text = _text_of(row, requirements, interpreter)
    digest = digest_of(text)
    cache = local_path(cache).resolve()
    wheels = _known(cache / f"{digest}.json", cache, hashes_in(text))
    if wheels is None:
        return None
    return Lock(digest=digest, text=text, python=row.python, wheels=wheels)


def unfetched_lock(
    row: Row, *, interpreter: str | None = None, requirements: Path = REQUIREMENTS
) -> Lock:
    """
    Return the lock of *row* without its wheels; downloads nothing.

    Raises:
        InventoryError: The row has no valid lock file.
    """
    text = _text_of(row, requirements, interpreter)
    return Lock(digest=digest_of(text), text=text, python=row.python, wheels=(), is_fetched=False)


def lock_digest(
    row: Row, *, interpreter: str | None = None, requirements: Path = REQUIREMENTS
) -> str:
    """
    Return the digest of the lock of *row*; downloads nothing.

    Raises:
        InventoryError: The row has no valid lock file.
    """
    return digest_of(_text_of(row, requirements, interpreter))


def _text_of(row: Row, requirements: Path, interpreter: str | None) -> str:
    if row.lock is None:
        raise InventoryError(
            f"row {row.name}: it cannot be provisioned yet",
            why=f"requirements/ has no lock for torch {row.version}",
            fix="use a row with a lock (`inv matrix` marks them), or make one: write "
            f"requirements/torch-{row.build}.in, name the lock in deploy/versions/matrix.yml, then "
            "python -m deploy.wheelhouse.renew",
        )
    torch = (requirements / row.lock).read_text(encoding="utf-8")
    version = row.wheel or row.version
    try:
        runtime = (requirements / row.runtime_lock).read_text(encoding="utf-8")
        text = lock_text(runtime, torch)
        if not any(line.startswith(f"torch=={version} ") for line in text.splitlines()):
            raise ValueError(f"{row.lock} does not pin torch=={version}")
    except ValueError as error:
        raise InventoryError(
            f"row {row.name}: its lock is not usable",
            why=str(error),
            fix="make the lock files of requirements/ again; their first lines say how",
        ) from None
    if row.wheel is not None:
        # `==` ignores the local version: of 2.13.0 and 2.13.0+cpu in one directory pip takes the
        # latter, whose hash is then refused.
        text = re.sub(r"^torch==", "torch===", text, count=1, flags=re.MULTILINE)
    # Another Python is another environment with another digest, also where the pins are the same.
    if interpreter is None and row.name != row.family:
        interpreter = f"# python: {row.python}"
    return text if interpreter is None else f"{interpreter}\n{text}"


def _from_cache(text: str, python: str, cache: Path) -> tuple[CachedWheel, ...] | None:
    """
    Return the wheels of *text* where other rows have fetched them all; None: some are missing.
    """
    if not any(cache.glob("*.whl")):
        return None
    try:
        return _fetch(text, python, cache, "--no-index", "--find-links", str(cache))
    except CommandFailed:
        return None


def _fetch(text: str, python: str, cache: Path, *options: str) -> tuple[CachedWheel, ...]:
    # On the file system of the cache, so that a wheel is moved there atomically.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as name:
        folder = Path(name)
        lock = folder / "requirements.lock"
        lock.write_text(text, encoding="utf-8")
        abi = "cp" + python.replace(".", "")
        argv = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--only-binary", ":all:", "--require-hashes", "--implementation", "cp"),
            *("--python-version", python, "--abi", abi, "--abi", "abi3", "--abi", "none"),
            *(option for platform in _PLATFORMS for option in ("--platform", platform)),
            *options,
            *("--dest", str(folder), "--requirement", str(lock)),
        ]
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise _refused(f"pip did not end within {FETCH_TIMEOUT_S:.0f} s") from None
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise _refused(" / ".join(lines[-4:]) or f"pip exited {done.returncode}")
        return tuple(_keep(path, cache / path.name) for path in sorted(folder.glob("*.whl")))


def _keep(path: Path, target: Path) -> CachedWheel:
    """
    Move the wheel *path* to *target*, unless that is the same file: indexes of other rows list it
    with its modification time.
    """
    wheel = _hash_wheel(path)
    if target.is_symlink() or not target.is_file() or _sha256(target) != wheel.sha256:
        path.chmod(FILE_MODE)
        path.replace(target)
    return replace(wheel, path=target)


def local_path(path: Path) -> Path:
    """
    Return *path* with the home directory of this user in place of ~.

    Raises:
        UsageError: The user has no home directory.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{path}: this user has no home directory",
            why=str(error),
            fix="set HOME to a directory of this user",
        ) from None


def _refused(why: str) -> CommandFailed:
    return CommandFailed(
        "the wheels of the runtime could not be fetched",
        why=why,
        fix="check this machine's pip configuration (pip config list): index, find-links, network",
    )


def _hash_wheel(path: Path) -> CachedWheel:
    size, unpacked = path.stat().st_size, unpacked_bytes(path)
    return CachedWheel(path.name, _sha256(path), size, path, unpacked)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpacked_bytes(wheel: Path) -> int:
    """
    Return the bytes that the files of *wheel* take on a disk, from its zip directory.

    Bytecode of a module is as large as its source at most.

    Raises:
        CommandFailed: It is no zip file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            files = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise _refused(f"{wheel.name} is no wheel: {error}") from None
    sizes = [file.file_size for file in files]
    sizes += [file.file_size for file in files if file.filename.endswith(".py")]
    return sum(-(-size // _BLOCK_BYTES) * _BLOCK_BYTES for size in sizes)


def _known(index: Path, cache: Path, hashes: frozenset[str]) -> tuple[CachedWheel, ...] | None:
    """
    Return the wheels in *index*, or None if a file has changed since it was hashed.

    Only wheels in the cache itself whose hash is one of *hashes*, those of the lock, are returned.
    Compares size and modification time, not the content: hashing hundreds of megabytes would take
    seconds, and every host verifies the hash of what it receives.
    """
    try:
        listed = _INDEX.validate_json(index.read_bytes())
    except (OSError, ValidationError):
        return None
    wheels = []
    for entry in listed:
        path = cache / entry.file
        if path.parent != cache or entry.sha256 not in hashes:
            return None
        try:
            status = path.lstat()
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        if (status.st_size, status.st_mtime_ns) != (entry.size, entry.mtime_ns):
            return None
        unpacked = entry.unpacked or unpacked_bytes(path)
        wheels.append(CachedWheel(entry.file, entry.sha256, entry.size, path, unpacked))
    return tuple(wheels)


def _remember(index: Path, wheels: tuple[CachedWheel, ...]) -> None:
    listed = [
        _Entry(wheel.file, wheel.sha256, wheel.size, wheel.path.stat().st_mtime_ns, wheel.unpacked)
        for wheel in wheels
    ]
    write_private(index, _INDEX.dump_json(listed, indent=1))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # Of two runs at once, one downloads.
    with open_private(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
