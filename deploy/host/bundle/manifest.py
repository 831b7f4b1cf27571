"""
The manifest of a bundle, as the host reads it; checked before anything in it is believed.

`deploy/bundle/manifest.py` writes it.  The digest of a bundle is the SHA-256 of these bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from deploy.host.protocol import ErrorKind, HostError

FORMAT = 1
MANIFEST, SIGNATURE, ARCHIVE = "manifest.json", "manifest.json.sig", "files.tar"
LOCK_FILE, GOLDEN_FILE = "requirements.lock", "golden.jsonl"
MODEL_LINK, VENV_LINK = "model", "venv"
RESERVED = frozenset({MANIFEST, SIGNATURE, ARCHIVE, MODEL_LINK, VENV_LINK})
ARCHIVED_PATH_MAX = 100  # characters: what a ustar header has room for
MODES = ("0644", "0755")
NAMESPACE = "slipway-bundle"  # of the signature: one for another purpose is none

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@-]{0,99}|\.[A-Za-z0-9_][A-Za-z0-9._+@-]{0,99}")
_WHEEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,199}\.whl")


class Blob(NamedTuple):
    """
    A file by its contents; `path` is where it lies in the bundle, the model or the wheelhouse.
    """

    path: str
    sha256: str
    size: int
    mode: str = "0644"


class Manifest(NamedTuple):
    """
    Attributes:
        files: What is in the archive: code, configuration, golden prompts, lock.
    """

    digest: str
    version: str
    identity: str
    python: str
    lock_digest: str
    wheels: tuple[Blob, ...]
    model_digest: str
    model: tuple[Blob, ...]
    files: tuple[Blob, ...]

    @property
    def weights(self) -> dict[str, int]:
        """
        Return the size of each distinct model file, by hash.
        """
        return {blob.sha256: blob.size for blob in self.model}


def canonical(document: Any) -> bytes:
    """
    Return the one way to write *document*: sorted keys, no spaces, ASCII, a line end.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode() + b"\n"


def is_safe_path(path: object) -> bool:
    """
    Whether *path* is relative, in normal form, and made of plain characters.
    """
    return isinstance(path, str) and len(path) <= 200 and all(map(_PART.fullmatch, path.split("/")))


def parse_manifest(data: bytes) -> Manifest:
    """
    Return the manifest that *data* holds.

    Raises:
        HostError: It is not a manifest of this format, or one that leads out of its directory.
    """
    try:
        found = json.loads(data)
        if found.get("format") != FORMAT:
            raise HostError(
                ErrorKind.PRECONDITION,
                "the bundle is of another format",
                f"format {found.get('format')!r}; this host program reads {FORMAT}",
                "inv provision installs the host program of this version",
            )
        manifest = _manifest(found, hashlib.sha256(data).hexdigest())
        if canonical(found) != data:
            raise ValueError("it is not in canonical form")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HostError(
            ErrorKind.BUNDLE_TAMPERED,
            "the manifest is not one",
            str(error) or type(error).__name__,
            "inv bundle makes it again",
        ) from None
    return manifest


def _manifest(found: dict[str, Any], digest: str) -> Manifest:
    lock, model = found["lock"], found["model"]
    model_files = tuple(_blob(entry) for entry in model["files"])
    _distinct(blob.path for blob in model_files)
    files = tuple(_blob(entry, entry["mode"]) for entry in found["files"])
    _distinct(blob.path for blob in files)
    for blob in files:
        if blob.path.split("/")[0] in RESERVED:
            raise ValueError(f"files: {blob.path} is a name of slipway's own")
        if len(blob.path) > ARCHIVED_PATH_MAX:
            raise ValueError(f"files: {blob.path} is longer than an archive can say")
    wheels = tuple(_wheel(entry) for entry in lock["wheels"])
    _distinct(blob.path for blob in wheels)
    model_digest = hashlib.sha256(canonical(model["files"])).hexdigest()
    if model_digest != model["digest"]:
        raise ValueError("model.digest is not that of model.files")
    locks = [blob.sha256 for blob in files if blob.path == LOCK_FILE]
    if locks != [lock["digest"]]:
        raise ValueError(f"lock.digest is not that of {LOCK_FILE}")
    for name, text in (("version", found["version"]), ("identity", found["identity"])):
        if not isinstance(text, str) or not text:
            raise ValueError(f"{name} is {text!r}")
    if not re.fullmatch(r"3\.\d{1,2}", lock["python"]):
        raise ValueError(f"lock.python is {lock['python']!r}")
    return Manifest(
        digest=digest,
        version=found["version"],
        identity=found["identity"],
        python=lock["python"],
        lock_digest=lock["digest"],
        wheels=wheels,
        model_digest=model_digest,
        model=model_files,
        files=files,
    )


def _blob(entry: dict[str, Any], mode: str = "0644") -> Blob:
    path, sha256, size = entry["path"], entry["sha256"], entry["size"]
    if not is_safe_path(path):
        raise ValueError(f"{path!r} is not a path inside of the bundle")
    if mode not in MODES:
        raise ValueError(f"{path}: mode {mode!r}")
    return Blob(path, _sha256(path, sha256), _size(path, size), mode)


def _wheel(entry: dict[str, Any]) -> Blob:
    name = entry["file"]
    if not isinstance(name, str) or not _WHEEL.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a wheel")
    return Blob(name, _sha256(name, entry["sha256"]), _size(name, entry["size"]))


def _sha256(path: str, value: object) -> str:
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return value
    raise ValueError(f"{path}: sha256 is {value!r}")


def _size(path: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(f"{path}: size is {value!r}")


def _distinct(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{name} is listed twice")
        seen.add(name)


def check_wheel_names(names: Iterable[str]) -> None:
    """
    Refuse names that are not plain wheel names, or are listed twice.

    Raises:
        ValueError: Names the first.
    """
    names = tuple(names)
    for name in names:
        if not _WHEEL.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a wheel")
    _distinct(names)
