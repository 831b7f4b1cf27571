"""
Bundles on this machine: `.slipway/bundles/<digest>/`, and the weights: `.slipway/blobs/<sha256>`.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import BundleTampered, UsageError
from deploy.host.bundle.manifest import ARCHIVE, MANIFEST, SIGNATURE, Manifest, parse_manifest
from deploy.host.protocol import HostError

_CHUNK = 1 << 20
_PREFIX_MIN = 6


@dataclass(frozen=True, slots=True)
class Bundle:
    """
    A bundle in the store.

    Attributes:
        directory: Holds manifest, archive and, once it is signed, the signature.
        blobs: Holds the weights, by hash.
    """

    digest: str
    manifest: Manifest
    directory: Path
    blobs: Path

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def manifest_path(self) -> Path:
        return self.directory / MANIFEST

    @property
    def signature_path(self) -> Path:
        return self.directory / SIGNATURE

    @property
    def archive_path(self) -> Path:
        return self.directory / ARCHIVE

    @property
    def is_signed(self) -> bool:
        return self.signature_path.is_file()

    def blob(self, sha256: str) -> Path:
        """
        Return where the weights with this hash lie.
        """
        return self.blobs / sha256


class BundleStore:
    """
    Args:
        root: `.slipway` of a checkout; made when the first bundle is added.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._bundles = root / "bundles"
        self._blobs = root / "blobs"

    def add_blob(self, source: Path) -> tuple[str, int]:
        """
        Take in the file *source*, as a link where the disk allows; return its SHA-256 and size.

        Raises:
            BundleTampered: It changed while it was read.
        """
        self._blobs.mkdir(parents=True, exist_ok=True)
        before = source.stat()
        handle, name = tempfile.mkstemp(dir=self._blobs, prefix=".tmp-")
        os.close(handle)
        draft = Path(name)
        try:
            sha256, size = _take(source, draft)
            after = source.stat()
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise BundleTampered(
                    f"{source}: it changed while it was read",
                    why=f"it was {before.st_size} bytes and is {after.st_size}, or was touched",
                    fix="wait until nobody writes to it, then inv bundle",
                )
            draft.replace(self._blobs / sha256)
        finally:
            draft.unlink(missing_ok=True)
        return sha256, size

    def add(self, manifest: Manifest, archive: bytes) -> Bundle:
        """
        Put a bundle into the store, whole or not at all; its blobs are there already.

        The same bundle again keeps its signature and becomes the newest.
        """
        data = manifest.to_bytes()
        digest = hashlib.sha256(data).hexdigest()
        directory = self._bundles / digest
        if _holds(directory, data, archive):
            os.utime(directory)
            return self._open(directory)
        self._bundles.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=self._bundles, prefix=".tmp-"))
        try:
            (draft / MANIFEST).write_bytes(data)
            (draft / ARCHIVE).write_bytes(archive)
            draft.chmod(0o755)
            if directory.exists():
                if (directory / SIGNATURE).exists():
                    shutil.copyfile(directory / SIGNATURE, draft / SIGNATURE)
                shutil.rmtree(directory)  # damaged since it was added
            draft.rename(directory)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return self._open(directory)

    def list(self) -> tuple[Bundle, ...]:
        """
        Return all bundles, newest first.
        """
        if not self._bundles.is_dir():
            return ()
        found = [path for path in self._bundles.iterdir() if not path.name.startswith(".")]
        found.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
        return tuple(self._open(path) for path in found)

    def newest(self) -> Bundle:
        """
        Return the bundle that was built last.

        Raises:
            UsageError: There is none.
        """
        found = self.list()
        if not found:
            raise UsageError(
                "there is no bundle yet",
                why=f"{self._bundles} is empty",
                fix="inv bundle --model PATH --version v1.0.0",
            )
        return found[0]

    def get(self, name: str) -> Bundle:
        """
        Return the bundle with the digest, the beginning of a digest, or the version *name*.

        Raises:
            UsageError: None, or more than one; says which there are.
        """
        bundles = self.list()
        for bundle in bundles:
            if bundle.digest == name:
                return bundle
        found = [b for b in bundles if b.version == name]
        if not found and len(name) >= _PREFIX_MIN:
            found = [b for b in bundles if b.digest.startswith(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(
                f"bundle {name}: there are {len(found)} of that name",
                why="newest first: " + ", ".join(b.digest[:12] for b in found),
                fix=f"name it by the beginning of its digest, such as {found[0].digest[:12]}",
            )
        known = ", ".join(f"{b.version} ({b.digest[:12]})" for b in bundles[:10]) or "none"
        raise UsageError(
            f"bundle {name}: there is none of that name",
            why=f"{self._bundles} has, newest first: {known}",
            fix="name one of these, or build it: inv bundle --model PATH --version VERSION",
        )

    def _open(self, directory: Path) -> Bundle:
        try:
            manifest = parse_manifest((directory / MANIFEST).read_bytes())
        except (OSError, HostError) as error:
            raise BundleTampered(
                f"bundle {directory.name[:12]}: its manifest cannot be read",
                why=error.why if isinstance(error, HostError) else str(error),
                fix=f"delete {directory} and build it again: inv bundle",
            ) from error
        return Bundle(directory.name, manifest, directory, self._blobs)


def _holds(directory: Path, manifest: bytes, archive: bytes) -> bool:
    try:
        found = (directory / MANIFEST).read_bytes(), (directory / ARCHIVE).read_bytes()
    except FileNotFoundError:
        return False
    return found == (manifest, archive)


def _take(source: Path, draft: Path) -> tuple[str, int]:
    """
    Let *draft* be *source*, by link or by copy, and return the SHA-256 and size of what it is.
    """
    draft.unlink()
    try:
        os.link(source.resolve(), draft)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES):
            raise
        return _copy(source, draft)
    found, size = hashlib.sha256(), 0
    with draft.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
            size += len(chunk)
    return found.hexdigest(), size


def _copy(source: Path, draft: Path) -> tuple[str, int]:
    found, size = hashlib.sha256(), 0
    with source.open("rb") as reader, draft.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            found.update(chunk)
            writer.write(chunk)
            size += len(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return found.hexdigest(), size
