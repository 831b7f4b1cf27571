"""
Stages a bundle: verifies all uploads first, then places them.

A release directory exists only when everything that it links to exists.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.host.bundle import manifest as manifests
from deploy.host.bundle import venv
from deploy.host.bundle.archive import archive_size, check_archive, read_one, unpack
from deploy.host.bundle.manifest import (
    ARCHIVE,
    MANIFEST,
    SIGNATURE,
    Manifest,
    ModelFile,
    parse_manifest,
)
from deploy.host.bundle.verify import check_file, check_signature, read_manifest
from deploy.host.disk import check_space
from deploy.host.files import (
    UNFINISHED,
    leftovers,
    locked,
    remove,
    sync_directory,
    sync_filesystem,
)
from deploy.host.journaled import Operation, journaled
from deploy.host.protocol import (
    Call,
    ErrorKind,
    HostError,
    StageCommit,
    Staged,
    StageMissing,
    StageNeeds,
)
from deploy.host.system import System
from deploy.host.text import one_line

PART = ".part"  # of every upload: nothing in INCOMING has been verified
_LOCK_S = 900.0  # another staging of this host may be building a venv
_COMPILE_S = 60.0


def blob_name(sha256: str) -> str:
    """
    Return the name of a model file among the uploads.
    """
    return f"blob-{sha256}"


def wheel_name(file: str) -> str:
    """
    Return the name of a wheel among the uploads.
    """
    return f"wheel-{file}"


def missing(system: System, _call: Call, request: StageMissing) -> StageNeeds:
    """
    Return what this host lacks of a bundle, and make the directory for its uploads.

    Raises:
        HostError: The bundle does not fit.
    """
    wanted = parse_manifest(request.manifest.encode())
    layout = system.layout
    incoming = layout.incoming / wanted.digest
    lacks_bundle = not layout.release(wanted.digest).is_dir()
    lacks_venv = not venv.is_complete(system, wanted.lock.digest)
    blobs = {s: n for s, n in wanted.weights.items() if not _has(layout.blobs / s, n)}
    wheels = [
        w for w in wanted.lock.wheels if lacks_venv and not _has(layout.wheelhouse / w.file, w.size)
    ]
    # Whole files of a cut upload are not sent again; they are verified like all others.
    send_blobs = sorted(s for s, n in blobs.items() if not _is_sent(incoming, blob_name(s), n))
    send_wheels = [w for w in wheels if not _is_sent(incoming, wheel_name(w.file), w.size)]
    need_opt = sum(b.size for b in wanted.files) if lacks_bundle else 0
    if lacks_venv:
        need_opt += venv.UNPACKED_TIMES * sum(w.size for w in wanted.lock.wheels)
    need_state = archive_size(wanted.files) if lacks_bundle else 0
    need_state += sum(blobs[sha256] for sha256 in send_blobs) + sum(w.size for w in send_wheels)
    space = check_space(system, {layout.opt: need_opt, layout.state: need_state})
    _prepare(incoming)
    return StageNeeds(
        bundle=lacks_bundle,
        venv=lacks_venv,
        blobs=tuple(send_blobs),
        wheels=tuple(w.file for w in send_wheels),
        need_bytes=space.need_bytes,
        free_bytes=space.free_bytes,
    )


def commit(system: System, call: Call, request: StageCommit) -> Staged:
    """
    Verify the uploads of a bundle, then place them.
    """
    digest = request.bundle
    with (
        journaled(system, call, request.VERB, {"bundle": digest}) as op,
        locked(system, system.layout.stage_lock, _LOCK_S),
    ):
        result = _commit(system, op, digest, system.layout.incoming / digest)
        op.result = result
    return result


def _commit(system: System, op: Operation, digest: str, incoming: Path) -> Staged:
    began_s = system.steady_s()
    layout = system.layout
    is_placed = layout.release(digest).is_dir()
    source, suffix = (layout.release(digest), "") if is_placed else (incoming, PART)
    manifest, signature = source / f"{MANIFEST}{suffix}", source / f"{SIGNATURE}{suffix}"
    if not manifest.is_file():
        raise HostError(
            ErrorKind.BUNDLE_TRUNCATED,
            f"bundle {digest[:12]} was not uploaded",
            f"{manifest} is missing",
            "inv release sends it",
        )
    _keep_to_root(incoming)
    signer = check_signature(system, manifest, signature, layout.allowed_signers)
    wanted = read_manifest(manifest, digest)
    lacks_venv = not venv.is_complete(system, wanted.lock.digest)
    blobs = [b for b in _distinct(wanted.model.files) if not _has(layout.blobs / b.sha256, b.size)]
    wheels = [
        w for w in wanted.lock.wheels if lacks_venv and not _has(layout.wheelhouse / w.file, w.size)
    ]
    # Everything is verified before anything is placed.
    archive = incoming / f"{ARCHIVE}{PART}"
    if not is_placed:
        with _deleted_if_tampered(archive):
            check_archive(archive, wanted.files)
    for blob in blobs:
        path = incoming / f"{blob_name(blob.sha256)}{PART}"
        with _deleted_if_tampered(path):
            check_file(path, name=blob.path, sha256=blob.sha256, size=blob.size)
    for wheel in wheels:
        path = incoming / f"{wheel_name(wheel.file)}{PART}"
        with _deleted_if_tampered(path):
            check_file(path, name=wheel.file, sha256=wheel.sha256, size=wheel.size)

    _place(incoming, {blob_name(b.sha256): layout.blobs / b.sha256 for b in blobs})
    _place(incoming, {wheel_name(w.file): layout.wheelhouse / w.file for w in wheels})
    _place_model(system, wanted)
    if lacks_venv:
        text = _lock_text(source, wanted, is_placed, archive)
        venv.build(system, text, wanted.lock.digest, wanted.lock.python, wanted.lock.wheels)
    if not is_placed:
        draft = _draft_release(system, wanted, manifest, signature, archive)
        with op.locked():
            draft.rename(layout.release(digest))
            sync_directory(layout.releases)
    remove(incoming)
    return Staged(
        bundle=digest,
        version=wanted.version,
        signer=signer,
        placed_bundle=not is_placed,
        placed_blobs=len(blobs),
        placed_wheels=len(wheels),
        venv_built=lacks_venv,
        took_s=round(system.steady_s() - began_s, 3),
    )


def _place(incoming: Path, targets: dict[str, Path]) -> None:
    for name, target in targets.items():
        part = incoming / f"{name}{PART}"
        part.chmod(0o644)
        if os.geteuid() == 0:
            os.chown(part, 0, 0)
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        try:
            part.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(part, target)  # /opt is on another file system
        sync_directory(target.parent)


def _copy(part: Path, target: Path) -> None:
    draft = target.with_name(f"{UNFINISHED}{target.name}")
    shutil.copyfile(part, draft)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(target)


def _place_model(system: System, wanted: Manifest) -> None:
    models = system.layout.models
    final = models / wanted.model.digest
    if final.is_dir():
        return
    models.mkdir(parents=True, exist_ok=True)
    for path in leftovers(models):
        remove(path)
    draft = models / f"{UNFINISHED}{wanted.model.digest}"
    for blob in wanted.model.files:
        target = draft / blob.path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(system.layout.blobs / blob.sha256, target)
    sync_directory(draft)
    draft.rename(final)
    sync_directory(models)


def _draft_release(
    system: System, wanted: Manifest, manifest: Path, signature: Path, archive: Path
) -> Path:
    layout = system.layout
    layout.releases.mkdir(parents=True, exist_ok=True)
    for path in leftovers(layout.releases):
        remove(path)
    draft = layout.releases / f"{UNFINISHED}{wanted.digest}"
    draft.mkdir(mode=0o755)
    unpack(archive, wanted.files, draft)
    shutil.copyfile(manifest, draft / MANIFEST)
    shutil.copyfile(signature, draft / SIGNATURE)
    (draft / manifests.VENV_LINK).symlink_to(layout.venvs / wanted.lock.digest)
    (draft / manifests.MODEL_LINK).symlink_to(layout.models / wanted.model.digest)
    _compile(system, draft)
    sync_filesystem(layout.releases)
    return draft


def _compile(system: System, draft: Path) -> None:
    python = draft / manifests.VENV_LINK / "bin" / "python"
    # -s and -p: bytecode records the final path of its source.
    final = system.layout.release(draft.name[len(UNFINISHED) :])
    completed = system.run(
        [
            str(python), "-I", "-m", "compileall", "-q",
            "-s", str(draft), "-p", str(final), str(draft / "runtime"),
        ],
        timeout_s=_COMPILE_S,
    )  # fmt: skip
    if completed.returncode != 0:
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            "the runtime of the bundle does not compile",
            one_line(completed.stdout + completed.stderr),
            "correct it and build the bundle again: inv bundle",
        )


def _lock_text(source: Path, wanted: Manifest, is_placed: bool, archive: Path) -> str:
    if not is_placed:
        return read_one(archive, wanted.files, manifests.LOCK_FILE).decode()
    path = source / manifests.LOCK_FILE
    lock = next(file for file in wanted.files if file.path == manifests.LOCK_FILE)
    check_file(path, name=lock.path, sha256=lock.sha256, size=lock.size)
    return path.read_text()


@contextmanager
def _deleted_if_tampered(path: Path) -> Iterator[None]:
    # It has the right size, so `missing` would not ask for it again.
    try:
        yield
    except HostError as error:
        if error.kind is ErrorKind.BUNDLE_TAMPERED:
            remove(path)
        raise


def _prepare(incoming: Path) -> None:
    incoming.mkdir(parents=True, exist_ok=True)
    # Uploads come from the user who called sudo.
    if os.geteuid() == 0:
        os.chown(incoming, int(os.environ.get("SUDO_UID", "0")), -1)
    incoming.chmod(0o700)


def _keep_to_root(incoming: Path) -> None:
    if incoming.is_dir() and os.geteuid() == 0:
        os.chown(incoming, 0, -1)


def _has(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _is_sent(incoming: Path, name: str, size: int) -> bool:
    return _has(incoming / f"{name}{PART}", size)


def _distinct(files: tuple[ModelFile, ...]) -> list[ModelFile]:
    return list({file.sha256: file for file in files}.values())
