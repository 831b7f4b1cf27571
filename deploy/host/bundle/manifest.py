"""
The manifest of a bundle: every file with its hash.  Written on the controller, read on both sides.

The digest of a bundle is the SHA-256 of the manifest's bytes; the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from deploy.host.codec import OneOf, Pattern, decode, encode
from deploy.host.protocol import Digest, ErrorKind, HostError, Wheel

FORMAT = 2
# Bundles of older releases, without fleet and counter: a host keeps those that it has.
OLD_FORMAT = 1
MANIFEST, SIGNATURE, ARCHIVE = "manifest.json", "manifest.json.sig", "files.tar"
LOCK_FILE, GOLDEN_FILE = "requirements.lock", "golden.jsonl"
MODEL_LINK, VENV_LINK = "model", "venv"
RESERVED = frozenset({MANIFEST, SIGNATURE, ARCHIVE, MODEL_LINK, VENV_LINK})
ARCHIVE_MAX = 256 << 20  # bytes of all archived files: hosts read them into memory
ARCHIVED_PATH_MAX = 100  # characters: the room in a ustar header
MODES = ("0644", "0755")
NAMESPACE = "slipway-bundle"  # of the signature: one for another purpose is not valid
FLEET = r"[A-Za-z0-9_][A-Za-z0-9._+@ -]{0,99}"  # stem of the name of a fleet file
VERSION = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}"

_NAME = r"\.?[A-Za-z0-9_][A-Za-z0-9._+@-]{0,99}"
_PATH = rf"(?=.{{1,200}}\Z){_NAME}(?:/{_NAME})*"

Version = Annotated[str, Pattern(VERSION, "letters, digits, . _ + -, 64 at most")]
SafePath = Annotated[str, Pattern(_PATH, "a relative path of plain characters")]
PythonVersion = Annotated[str, Pattern(r"3\.\d{1,2}", "a Python version such as 3.11")]
NonEmpty = Annotated[str, Pattern(r"(?s).+", "text that is not empty")]


@dataclass(frozen=True)
class ArchivedFile:
    """
    A file of the archive: code, configuration, golden prompts, lock.

    Attributes:
        size: In bytes.
        mode: Permission bits in octal.
    """

    path: SafePath
    sha256: Digest
    size: int
    mode: Annotated[str, OneOf(MODES)] = MODES[0]


@dataclass(frozen=True)
class ModelFile:
    """
    A file of the model; it is sent and stored by its hash.

    Attributes:
        size: In bytes.
    """

    path: SafePath
    sha256: Digest
    size: int


@dataclass(frozen=True)
class LockPart:
    """
    The environment.

    Attributes:
        digest: SHA-256 of requirements.lock.
    """

    digest: Digest
    python: PythonVersion
    wheels: tuple[Wheel, ...]


@dataclass(frozen=True)
class ModelPart:
    """
    The weights.

    Attributes:
        digest: SHA-256 of the canonical form of `files`.
    """

    digest: Digest
    files: tuple[ModelFile, ...]


@dataclass(frozen=True)
class Manifest:
    """
    Attributes:
        row: Row of the version matrix that the bundle was built for.
        model_name: Name of the model in the OpenAI routes.
        identity: Signer that the builder claims to be; the signature proves it.
        files: Content of the archive.
        fleet: Fleet that it was built for; "" in the old format.
        counter: Grows with each bundle of a fleet, so that a host can tell an older one: seconds
            since 1970 when it was built, or more; 0 in the old format.
    """

    version: Version
    row: str
    model_name: str
    identity: NonEmpty
    lock: LockPart
    model: ModelPart
    files: tuple[ArchivedFile, ...]
    fleet: str = ""
    counter: int = 0
    format: int = FORMAT

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def weights(self) -> dict[str, int]:
        """
        Return the size of each distinct model file, by hash.
        """
        return {file.sha256: file.size for file in self.model.files}

    def document(self) -> dict[str, Any]:
        """
        Return the manifest as plain JSON values.
        """
        document: dict[str, Any] = encode(self)
        if self.format == OLD_FORMAT:
            del document["fleet"], document["counter"]
        return document

    def to_bytes(self) -> bytes:
        """
        Return the canonical form.
        """
        return canonical(self.document())


def canonical(document: Any) -> bytes:
    """
    Return *document* as JSON in canonical form: sorted keys, no spaces, ASCII, one line end.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode() + b"\n"


def is_safe_path(path: str) -> bool:
    """
    Return whether *path* is relative, in normal form, and made of plain characters.
    """
    return re.fullmatch(_PATH, path) is not None


def model_digest(files: Iterable[ModelFile]) -> str:
    """
    Return the digest of the model that consists of *files*.
    """
    return hashlib.sha256(canonical([encode(file) for file in files])).hexdigest()


def parse_manifest(data: bytes) -> Manifest:
    """
    Return the manifest in *data*.

    Raises:
        HostError: The manifest is not of this format, or contradicts itself.
    """
    try:
        document = json.loads(data)
        if isinstance(document, dict) and document.get("format") not in (FORMAT, OLD_FORMAT):
            raise HostError(
                ErrorKind.PRECONDITION,
                "the bundle is of another format",
                f"format {document.get('format')!r}; this program reads {OLD_FORMAT} and {FORMAT}",
                "inv provision installs the host program of this version",
            )
        manifest = decode(Manifest, document, "manifest")
        check_manifest(manifest)
        if manifest.to_bytes() != data:
            raise ValueError("it is not in canonical form")
    except (ValueError, RecursionError) as error:
        raise HostError(
            ErrorKind.BUNDLE_TAMPERED,
            "the manifest is not valid",
            str(error)[:500],
            "build the bundle again: inv bundle",
        ) from None
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """
    Check *manifest* against the format, and its parts against each other.

    Raises:
        ValueError: Names the first contradiction.
    """
    decode(Manifest, manifest.document(), "manifest")
    if manifest.format == FORMAT:
        if not re.fullmatch(FLEET, manifest.fleet):
            raise ValueError(
                "fleet: should be the name of a fleet file: letters, digits, spaces and . _ + @ -"
                f"; got {manifest.fleet[:200]!r}"
            )
        if not manifest.counter:
            raise ValueError("counter: should be 1 or more")
    _check_distinct("model.files", (file.path for file in manifest.model.files))
    _check_distinct("files", (file.path for file in manifest.files))
    check_wheels(manifest.lock.wheels)
    if sum(file.size for file in manifest.files) > ARCHIVE_MAX:
        raise ValueError(f"files: they have more than {ARCHIVE_MAX} bytes")
    for file in manifest.files:
        if file.path.split("/")[0] in RESERVED:
            raise ValueError(f"files: {file.path} is a reserved name")
        if len(file.path) > ARCHIVED_PATH_MAX:
            raise ValueError(f"files: {file.path} has more than {ARCHIVED_PATH_MAX} characters")
    if model_digest(manifest.model.files) != manifest.model.digest:
        raise ValueError("model.digest is not that of model.files")
    locks = [file.sha256 for file in manifest.files if file.path == LOCK_FILE]
    if locks != [manifest.lock.digest]:
        raise ValueError(f"lock.digest is not that of {LOCK_FILE}")


def check_wheels(wheels: Iterable[Wheel]) -> None:
    """
    Refuse wheels that are listed twice.

    Raises:
        ValueError: Names the first.
    """
    _check_distinct("wheels", (wheel.file for wheel in wheels))


def _check_distinct(where: str, names: Iterable[str]) -> None:
    known: set[str] = set()
    for name in names:
        if name in known:
            raise ValueError(f"{where}: {name} is listed twice")
        known.add(name)
