"""
What a bundle is made of: every file with its hash, and nothing that changes by itself.  Pure.

The digest of a bundle is the SHA-256 of these bytes, so that the same inputs are the same bundle.
`deploy/host/bundle/manifest.py` reads it on the host; a test holds the two against each other.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deploy.host.bundle.manifest import ARCHIVED_PATH_MAX, canonical, is_safe_path

VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


def _safe(path: str) -> str:
    if not is_safe_path(path):
        raise ValueError(f"should be a relative path of plain characters, got {path!r}")
    return path


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
SafePath = Annotated[str, AfterValidator(_safe)]
Size = Annotated[int, Field(ge=0)]


class Noun(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class File(Noun):
    """
    A file of the archive: code, configuration, golden prompts, lock.
    """

    path: Annotated[SafePath, Field(max_length=ARCHIVED_PATH_MAX)]
    sha256: Sha256
    size: Size  # bytes
    mode: Literal["0644", "0755"]


class ModelFile(Noun):
    """
    A file of the model; it travels by itself, as a blob, and is never copied twice.
    """

    path: SafePath
    sha256: Sha256
    size: Size  # bytes


class WheelFile(Noun):
    file: SafePath
    sha256: Sha256
    size: Size  # bytes


class LockPart(Noun):
    """
    The venv: digest of requirements.lock, Python, wheels.
    """

    digest: Sha256
    python: str
    wheels: tuple[WheelFile, ...]


class ModelPart(Noun):
    """
    The weights: digest of the canonical form of `files`.
    """

    digest: Sha256
    files: tuple[ModelFile, ...]


class Manifest(Noun):
    """
    The whole.

    Attributes:
        row: Row of the version matrix that it was built for.
        model_name: What the OpenAI routes call the model.
        identity: Who says that it is theirs; the signature proves it.
    """

    format: Literal[1] = 1
    version: Annotated[str, Field(pattern=f"^{VERSION.pattern}$")]
    row: str
    model_name: str
    identity: str
    lock: LockPart
    model: ModelPart
    files: tuple[File, ...]

    def to_bytes(self) -> bytes:
        """
        Return the one way to write it.
        """
        return canonical(self.document())

    def document(self) -> dict[str, Any]:
        """
        Return it as plain JSON values.
        """
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def model_bytes(self) -> int:
        """
        Return the bytes of the weights, each distinct file once.
        """
        return sum({file.sha256: file.size for file in self.model.files}.values())


def model_digest(files: Sequence[ModelFile]) -> str:
    """
    Return what names the model that *files* are.
    """
    return hashlib.sha256(canonical([file.model_dump(mode="json") for file in files])).hexdigest()


def parse_manifest(data: bytes) -> Manifest:
    """
    Return the manifest that *data* holds.

    Raises:
        pydantic.ValidationError: It is not one of this format.
    """
    return Manifest.model_validate_json(data)
