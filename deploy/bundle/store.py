"""
The store: bundles in `.slipway/bundles/<digest>/`, weights in `.slipway/blobs/<sha256>`.
"""

import builtins
import errno
import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deploy.bundle.model import open_model_file
from deploy.errors import BundleTampered, UsageError
from deploy.host.bundle.manifest import (
    ARCHIVE,
    MANIFEST,
    OLD_FORMAT,
    SIGNATURE,
    Manifest,
    parse_manifest,
)
from deploy.host.protocol import HostError
from deploy.private_files import FILE_MODE, private_directory, write_private

_CHUNK = 1 << 20
_PREFIX_MIN = 6
_MANIFEST_MAX = 64 << 20  # bytes
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Another file system, a file of another user, or a machine without /proc.
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.ENOENT)


@dataclass(frozen=True, slots=True)
class Bundle:
    """
    A bundle in the store.

    Attributes:
        directory: Has the manifest, the archive and, after signing, the signature.
        blobs: Directory of the weights, by hash.
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

    def blob(self, sha256: str) -> Path:
        """
        Return the path of the weights with this hash.
        """
        return self.blobs / sha256


class BundleStore:
    """
    Args:
        root: `.slipway` of a checkout; created when the first bundle is added.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._bundles = root / "bundles"
        self._blobs = root / "blobs"

    def add_blob(self, model: Path, name: str) -> tuple[str, int]:
        """
        Add the plain file *name* of *model*, as a hard link if possible; return SHA-256 and size.

        Raises:
            BundleTampered: It changed while it was read.
            ModelPathError: It is a link, or cannot be read.
        """
        private_directory(self._blobs)
        source = model / name
        descriptor = open_model_file(model, name)
        before = os.fstat(descriptor)
        handle, name = tempfile.mkstemp(dir=self._blobs, prefix=".tmp-")
        os.close(handle)
        draft = Path(name)
        try:
            sha256, size = _take(descriptor, draft)
            after = os.fstat(descriptor)
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise BundleTampered(
                    f"{source}: it changed while it was read",
                    why=f"it had {before.st_size} bytes and has {after.st_size}, or was touched",
                    fix="wait until no process writes to it, then inv bundle",
                )
            draft.replace(self._blobs / sha256)
        finally:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
        return sha256, size

    def add(self, manifest: Manifest, archive: bytes) -> Bundle:
        """
        Add a bundle, whole or not at all; its blobs exist already.

        Adding it again keeps its signature and makes it the newest.
        """
        data = manifest.to_bytes()
        digest = hashlib.sha256(data).hexdigest()
        directory = self._bundles / digest
        if _holds(directory, data, archive):
            os.utime(directory)
            return self._open(directory)
        private_directory(self._bundles)
        draft = Path(tempfile.mkdtemp(dir=self._bundles, prefix=".tmp-"))
        try:
            write_private(draft / MANIFEST, data)
            write_private(draft / ARCHIVE, archive)
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

        Raises:
            BundleTampered: One of them is not what its name says, or the store can't be read.
        """
        try:
            if not self._bundles.is_dir():
                return ()
            # An entry with another name is no bundle, and its name is not ours to print.
            directories = [path for path in self._bundles.iterdir() if _DIGEST.fullmatch(path.name)]
            directories.sort(key=lambda path: (path.lstat().st_mtime_ns, path.name), reverse=True)
        except OSError as error:
            raise BundleTampered(
                f"{self._bundles}: the bundles cannot be read",
                why=error.strerror or str(error),
                fix=f"give the user who runs this command read permission on {self._bundles}",
            ) from error
        return tuple(self._open(path) for path in directories)

    def newest(self, fleet: str) -> Bundle:
        """
        Return the newest bundle for *fleet*.

        Raises:
            UsageError: The store has none.
        """
        bundles = self._for(fleet)
        if not bundles:
            raise UsageError(
                f"the store has no bundle for fleet {fleet}",
                why=f"{self._bundles} has {len(self.list())} bundles, for other fleets",
                fix="inv bundle --model PATH --version v1.0.0",
            )
        return bundles[0]

    def get(self, name: str, fleet: str) -> Bundle:
        """
        Return the bundle for *fleet* whose digest, start of the digest, or version is *name*.

        Of bundles with one version, those in the old format do not count where another is.

        Raises:
            UsageError: None, or more than one; says which there are.
        """
        bundles = self._for(fleet)
        for bundle in bundles:
            if bundle.digest == name:
                return bundle
        matches = [b for b in bundles if b.version == name]
        matches = [b for b in matches if b.manifest.format != OLD_FORMAT] or matches
        if not matches and len(name) >= _PREFIX_MIN:
            matches = [b for b in bundles if b.digest.startswith(name)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UsageError(
                f"bundle {name}: {len(matches)} bundles have that name",
                why="newest first: " + ", ".join(b.digest[:12] for b in matches),
                fix=f"use the start of its digest, such as {matches[0].digest[:12]}",
            )
        known = ", ".join(f"{b.version} ({b.digest[:12]})" for b in bundles[:10]) or "none"
        raise UsageError(
            f"bundle {name}: not found",
            why=f"{self._bundles} has for fleet {fleet}, newest first: {known}",
            fix="use one of these, or build it: inv bundle --model PATH --version VERSION",
        )

    def versions(self, fleet: str) -> dict[str, str]:
        """
        Return the versions of the bundles that hosts of *fleet* may have, by digest.
        """
        return {bundle.digest: bundle.version for bundle in self._for(fleet)}

    def _for(self, fleet: str) -> builtins.list[Bundle]:
        """
        Return the bundles that hosts of *fleet* may have, newest first.
        """
        # The old format names no fleet: hosts that have such a bundle may start it.
        return [b for b in self.list() if b.manifest.fleet in (fleet, "")]

    def _open(self, directory: Path) -> Bundle:
        """
        Return the bundle in *directory*, whose name is the hash of its manifest.

        Raises:
            BundleTampered: The manifest is another one or no manifest, or a file is a link.
        """
        try:
            manifest = parse_manifest(_read_manifest(directory))
        except (OSError, ValueError, RecursionError, HostError) as error:
            raise BundleTampered(
                f"bundle {directory.name[:12]}: its manifest cannot be read",
                why=error.why if isinstance(error, HostError) else str(error),
                fix=f"delete {directory} and build it again: inv bundle",
            ) from error
        return Bundle(directory.name, manifest, directory, self._blobs)


def _read_manifest(directory: Path) -> bytes:
    """
    Return the manifest in *directory*.

    Raises:
        ValueError: It is not the one that the directory is named for, or a file is a link.
    """
    for path in (directory, *(directory / name for name in (MANIFEST, ARCHIVE, SIGNATURE))):
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link")
    path = directory / MANIFEST
    if not path.is_file() or path.stat().st_size > _MANIFEST_MAX:
        raise ValueError(f"{path} is not a file of at most {_MANIFEST_MAX} bytes")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != directory.name:
        raise ValueError("its manifest is that of another bundle")
    return data


def _holds(directory: Path, manifest: bytes, archive: bytes) -> bool:
    """
    Return whether *directory* has these files; one that can't be read counts as damaged.
    """
    for name, data in ((MANIFEST, manifest), (ARCHIVE, archive)):
        path = directory / name
        try:
            if not path.is_file() or path.read_bytes() != data:  # a pipe would be waited for
                return False
        except OSError:
            return False
    return True


def _take(descriptor: int, draft: Path) -> tuple[str, int]:
    """
    Link or copy the open file to *draft*, and return its SHA-256 and size.
    """
    draft.unlink()
    try:
        # The file that was opened, whatever is at its path by now.
        # Python follows it only where a directory is given, which an absolute path ignores.
        os.link(f"/proc/self/fd/{descriptor}", draft, src_dir_fd=descriptor)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return _copy(descriptor, draft)
    digest, size = hashlib.sha256(), 0
    with draft.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def _copy(descriptor: int, draft: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with os.fdopen(os.dup(descriptor), "rb") as reader, draft.open("xb") as writer:
        os.fchmod(writer.fileno(), FILE_MODE)
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
            size += len(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest(), size
