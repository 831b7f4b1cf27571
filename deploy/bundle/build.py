"""
Builds a bundle from a model, a version and the runtime of this checkout, reproducibly.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from deploy.bundle.model import CONFIG, check_model, model_name, read_golden
from deploy.bundle.store import Bundle, BundleStore
from deploy.errors import PreconditionError, UsageError
from deploy.host.bundle.archive import build_archive, list_files
from deploy.host.bundle.manifest import (
    GOLDEN_FILE,
    LOCK_FILE,
    LockPart,
    Manifest,
    ModelFile,
    ModelPart,
    check_manifest,
    model_digest,
)
from deploy.host.names import MODEL_NAME, VERSION, Name
from deploy.host.protocol import Wheel
from runtime.contract import CONFIG_FILE
from runtime.contract.engine_options import OPTIONS

# Keys of the runtime's configuration that a release may set for itself; the rest is the host's.
OVERRIDES = tuple(
    sorted(
        [
            *(name for name, each in OPTIONS.items() if each.rules.release_may_override),
            *("cors_origins", "drain_timeout_s", "max_queue_requests", "model_name"),
            "request_timeout_s",
            "tool_parser",
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
    The part of `deploy.wheelhouse.Lock` that a bundle needs.
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
    fleet: str,
    now_s: int,
    runtime_dir: Path,
    store: BundleStore,
    overrides: Mapping[str, Any] | None = None,
) -> Bundle:
    """
    Build the bundle in *store* and return it, unsigned unless it existed.

    Args:
        fleet: Name of the fleet whose hosts may take it.
        now_s: Seconds since 1970.  It becomes the counter, unless the store has this bundle
            already, or one with a higher counter.
        overrides: Keys of the runtime's configuration that this release sets for itself.

    Raises:
        ModelPathError: *model* is missing, not readable or not a model.
        UsageError: *version* or *overrides* is not valid.
        PreconditionError: *runtime_dir* has no runtime.
    """
    check_version(version)
    own = _check_overrides(overrides or {})
    names = check_model(model)
    own.setdefault("model_name", model_name(model))
    _check_name(MODEL_NAME, str(own["model_name"]), f"set _name_or_path in {model / CONFIG}")
    contents = _runtime(runtime_dir)
    contents[CONFIG_FILE] = _yaml({"version": version, **own})
    contents[GOLDEN_FILE] = read_golden(model)
    contents[LOCK_FILE] = lock.text.encode()
    files = []
    for name in names:
        sha256, size = store.add_blob(model, name)
        files.append(ModelFile(path=name, sha256=sha256, size=size))
    wheels = sorted(lock.wheels, key=lambda wheel: wheel.file)
    manifest = Manifest(
        version=version,
        row=row_name,
        model_name=str(own["model_name"]),
        identity=identity,
        lock=LockPart(
            digest=lock.digest,
            python=lock.python,
            wheels=tuple(Wheel(w.file, w.sha256, w.size) for w in wheels),
        ),
        model=ModelPart(digest=model_digest(files), files=tuple(files)),
        files=list_files(contents),
        fleet=fleet,
        counter=now_s,
    )
    manifest = dataclasses.replace(manifest, counter=_counter(manifest, store))
    try:
        check_manifest(manifest)
    except ValueError as error:
        raise UsageError(
            f"bundle {version}: the manifest would not be valid",
            why=str(error),
            fix="rename the file, or correct the lock",
        ) from error
    return store.add(manifest, build_archive(contents))


def _counter(manifest: Manifest, store: BundleStore) -> int:
    """
    Return the counter of the bundle of *manifest*, which has the present time as counter.
    """
    stored = [bundle.manifest for bundle in store.list() if bundle.manifest.fleet == manifest.fleet]
    for other in stored:
        if dataclasses.replace(manifest, counter=other.counter) == other:
            return other.counter
    return max([manifest.counter, *(other.counter + 1 for other in stored)])


def check_version(version: str) -> None:
    """
    Refuse a *version* that could not be a label, a header or part of a path.

    Raises:
        UsageError: Says what a version is.
    """
    _check_name(VERSION, version, "--version v1.3.0")


def _check_name(kind: Name, text: str, fix: str) -> None:
    try:
        kind.parse(text)
    except ValueError as error:
        raise UsageError(
            f"{kind.kind} {text[:80]!r}: not valid",
            why=f"it becomes a label and a header: {error}",
            fix=fix,
        ) from None


def _check_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    for key in overrides:
        if key not in OVERRIDES:
            near = difflib.get_close_matches(key, OVERRIDES, n=1)
            raise UsageError(
                f"configuration {key!r}: a release cannot set it",
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
            f"{directory}: no runtime to bundle",
            why="__init__.py is missing",
            fix="run it in a complete checkout",
        )
    return contents


def _yaml(document: Mapping[str, Any]) -> bytes:
    text = yaml.safe_dump(dict(document), sort_keys=True, default_flow_style=False)
    return text.encode()
