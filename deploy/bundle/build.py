"""
A model, a version and the runtime of this checkout to one bundle, the same bytes each time.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml
from pydantic import ValidationError

from deploy.bundle.archive import archived, listed
from deploy.bundle.manifest import (
    VERSION,
    LockPart,
    Manifest,
    ModelFile,
    ModelPart,
    WheelFile,
    model_digest,
)
from deploy.bundle.model import check_model, model_name
from deploy.bundle.store import Bundle, BundleStore
from deploy.errors import PreconditionError, UsageError
from deploy.remote.manifest import GOLDEN_FILE, LOCK_FILE
from runtime.contract import CONFIG_FILE
from runtime.contract.engine_options import OPTIONS

# Keys of the runtime's configuration that a release may set for itself; the rest is the host's.
OVERRIDES = tuple(
    sorted(
        [
            *(name for name, each in OPTIONS.items() if each.rules.release_may_override),
            *("cors_origins", "drain_timeout_s", "max_queue_requests", "model_name"),
            "request_timeout_s",
        ]
    )
)


class WheelLike(Protocol):
    @property
    def file(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def size(self) -> int: ...


class LockLike(Protocol):
    """
    What a bundle needs to know of `deploy.wheelhouse.Lock`.
    """

    @property
    def digest(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def python(self) -> str: ...
    @property
    def wheels(self) -> Sequence[WheelLike]: ...


def build_bundle(
    *,
    model: Path,
    version: str,
    row_name: str,
    lock: LockLike,
    identity: str,
    runtime_dir: Path,
    store: BundleStore,
    overrides: Mapping[str, Any] | None = None,
) -> Bundle:
    """
    Build the bundle, put it into *store* and return it, unsigned unless it was there already.

    Args:
        overrides: Keys of the runtime's configuration that this release sets for itself.

    Raises:
        ModelPathError: *model* is not there, may not be read, or is not a model.
        UsageError: *version* or *overrides* is not possible.
        PreconditionError: *runtime_dir* has no runtime.
    """
    _check_version(version)
    own = _check_overrides(overrides or {})
    names = check_model(model)
    own.setdefault("model_name", model_name(model))
    contents = _runtime(runtime_dir)
    contents[CONFIG_FILE] = _yaml({"version": version, **own})
    contents[GOLDEN_FILE] = (model / GOLDEN_FILE).read_bytes()
    contents[LOCK_FILE] = lock.text.encode()
    files = []
    for name in names:
        sha256, size = store.add_blob(model / name)
        files.append(ModelFile(path=name, sha256=sha256, size=size))
    wheels = sorted(lock.wheels, key=lambda wheel: wheel.file)
    try:
        manifest = Manifest(
            version=version,
            row=row_name,
            model_name=str(own["model_name"]),
            identity=identity,
            lock=LockPart(
                digest=lock.digest,
                python=lock.python,
                wheels=tuple(WheelFile(file=w.file, sha256=w.sha256, size=w.size) for w in wheels),
            ),
            model=ModelPart(digest=model_digest(files), files=tuple(files)),
            files=listed(contents),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"bundle {version}: {'.'.join(map(str, first['loc']))} is not possible",
            why=first["msg"],
            fix="rename the file, or mend the lock",
        ) from error
    return store.add(manifest, archived(contents))


def _check_version(version: str) -> None:
    if not VERSION.fullmatch(version):
        raise UsageError(
            f"version {version!r}: not possible",
            why="it becomes a label and a header: letters, digits, . _ + -, 64 at most, "
            "a letter or digit first",
            fix="--version v1.3.0",
        )


def _check_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    for key in overrides:
        if key not in OVERRIDES:
            near = difflib.get_close_matches(key, OVERRIDES, n=1)
            raise UsageError(
                f"configuration {key!r}: a release can't set it",
                why=f"it may set {', '.join(OVERRIDES)}",
                fix=f"did you mean {near[0]}?" if near else "set it in the fleet file",
            )
    return dict(overrides)


def _runtime(directory: Path) -> dict[str, bytes]:
    contents = {}
    for path in sorted(directory.rglob("*.py")):
        inside = path.relative_to(directory)
        contents[f"runtime/{inside.as_posix()}"] = path.read_bytes()
    if "runtime/__init__.py" not in contents:
        raise PreconditionError(
            f"{directory}: there is no runtime to bundle",
            why="it has no __init__.py",
            fix="run it in a whole checkout",
        )
    return contents


def _yaml(document: Mapping[str, Any]) -> bytes:
    text = yaml.safe_dump(dict(document), sort_keys=True, default_flow_style=False)
    return text.encode()
