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

from deploy.host import layout as paths
from deploy.host.bundle import manifest as manifests
from deploy.host.bundle import venv
from deploy.host.bundle.admission import check_admitted
from deploy.host.bundle.archive import archive_size, check_archive, read_one, unpack
from deploy.host.bundle.bytecode import compile_runtime
from deploy.host.bundle.manifest import (
    ARCHIVE,
    MANIFEST,
    SIGNATURE,
    Manifest,
    ModelFile,
    parse_manifest,
)
from deploy.host.bundle.takeover import DIRECTORY_MODE, FILE_MODE, close_to_group
from deploy.host.bundle.verify import check_file, read_signed_manifest
from deploy.host.disk import check_space
from deploy.host.files import (
    UNFINISHED,
    leftovers,
    locked,
    remove,
    sync_directory,
    sync_filesystem,
    write_atomic,
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
from deploy.host.trusted_files import LIST_MAX, MANIFEST_MAX, SIGNATURE_MAX, open_plain, read_below

PART = ".part"  # of every upload: nothing in INCOMING has been verified
_CHUNK = 1 << 20
_LOCK_S = 900.0  # another staging of this host may be building a venv


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
        HostError: The bundle does not fit, or is not for this host.
    """
    wanted = parse_manifest(request.manifest.encode())
    layout = system.layout
    incoming = layout.incoming / wanted.digest
    is_placed = layout.release(wanted.digest).is_dir()
    check_admitted(system, wanted, is_placed=is_placed, allow_older=request.allow_older)
    # Signed anew since, by a signer that is still allowed: the signature is sent again.
    lacks_bundle = not is_placed or not _is_still_signed(system, wanted.digest)
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
    digest, allow_older = request.bundle, request.allow_older
    args = {"bundle": digest, **({"allow_older": True} if allow_older else {})}
    with (
        journaled(system, call, request.VERB, args) as op,
        locked(system, system.layout.stage_lock, _LOCK_S),
    ):
        result = _commit(system, op, digest, system.layout.incoming / digest, allow_older)
        op.result = result
    return result


def _commit(
    system: System, op: Operation, digest: str, incoming: Path, allow_older: bool
) -> Staged:
    began_s = system.steady_s()
    layout = system.layout
    is_placed = layout.release(digest).is_dir()
    _keep_to_root(incoming)
    wanted = _signed_manifest(system, digest, incoming, is_placed)
    check_admitted(system, wanted, is_placed=is_placed, allow_older=allow_older)
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

    venv.close_older(system)
    runtime, builders = (system.account(name).gid for name in (paths.USER, paths.BUILD_USER))
    to_blobs = {blob_name(b.sha256): layout.blobs / b.sha256 for b in blobs}
    to_wheelhouse = {wheel_name(w.file): layout.wheelhouse / w.file for w in wheels}
    venv.make_directory(system, layout.models)
    _place(system, incoming, to_blobs, runtime)
    _place(system, incoming, to_wheelhouse, builders)
    _place_model(system, wanted)
    if lacks_venv:
        text = _lock_text(system, wanted, is_placed, archive)
        venv.build(system, text, wanted.lock.digest, wanted.lock.python, wanted.lock.wheels)
    if not is_placed:
        draft = _draft_release(system, wanted, incoming, archive)
        with op.locked():
            draft.rename(layout.release(digest))
            sync_directory(layout.releases)
    remove(incoming)
    return Staged(
        bundle=digest,
        version=wanted.version,
        signer=wanted.identity,
        placed_bundle=not is_placed,
        placed_blobs=len(blobs),
        placed_wheels=len(wheels),
        venv_built=lacks_venv,
        took_s=round(system.steady_s() - began_s, 3),
    )


def _signed_manifest(system: System, digest: str, incoming: Path, is_placed: bool) -> Manifest:
    """
    Return the manifest of the bundle: as placed, or as uploaded.

    A placed bundle that was signed anew, since its signer is not allowed any more, gets the new
    signature.
    """
    layout = system.layout
    release = layout.release(digest)
    signers = layout.allowed_signers
    if is_placed:
        placed = {"manifest_name": MANIFEST, "signature_name": SIGNATURE}
        try:
            return read_signed_manifest(system, release, digest, signers, **placed)
        except HostError:
            if not (incoming / f"{SIGNATURE}{PART}").is_file():
                raise
    sent = {"manifest_name": f"{MANIFEST}{PART}", "signature_name": f"{SIGNATURE}{PART}"}
    manifest = read_signed_manifest(system, incoming, digest, signers, **sent)
    if is_placed:
        signature = read_below(incoming, f"{SIGNATURE}{PART}", SIGNATURE_MAX)
        write_atomic(release / SIGNATURE, signature, FILE_MODE)
        os.chown(release / SIGNATURE, os.geteuid(), system.account(paths.USER).gid)
    return manifest


def _is_still_signed(system: System, digest: str) -> bool:
    placed = {"manifest_name": MANIFEST, "signature_name": SIGNATURE}
    layout = system.layout
    try:
        read_signed_manifest(
            system, layout.release(digest), digest, layout.allowed_signers, **placed
        )
    except HostError:
        return False
    return True


def _place(system: System, incoming: Path, targets: dict[str, Path], gid: int) -> None:
    for name, target in targets.items():
        part = incoming / f"{name}{PART}"
        descriptor = open_plain(part)
        try:
            os.fchown(descriptor, os.geteuid(), gid)
            os.fchmod(descriptor, FILE_MODE)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        venv.make_directory(system, target.parent)
        try:
            part.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(part, target, gid)  # /opt is on another file system
        sync_directory(target.parent)


def _copy(part: Path, target: Path, gid: int) -> None:
    draft = target.with_name(f"{UNFINISHED}{target.name}")
    remove(draft)
    with os.fdopen(open_plain(part), "rb") as source, draft.open("xb") as copy:
        shutil.copyfileobj(source, copy, _CHUNK)
        os.fchown(copy.fileno(), os.geteuid(), gid)
        os.fchmod(copy.fileno(), FILE_MODE)
        copy.flush()
        os.fsync(copy.fileno())
    draft.replace(target)


def _place_model(system: System, wanted: Manifest) -> None:
    models = system.layout.models
    final = models / wanted.model.digest
    if final.is_dir():
        return
    for path in leftovers(models):
        remove(path)
    draft = models / f"{UNFINISHED}{wanted.model.digest}"
    for blob in wanted.model.files:
        target = draft / blob.path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(system.layout.blobs / blob.sha256, target)
    close_to_group(draft, system.account(paths.USER).gid)
    sync_directory(draft)
    draft.rename(final)
    sync_directory(models)


def _draft_release(system: System, wanted: Manifest, incoming: Path, archive: Path) -> Path:
    layout = system.layout
    venv.make_directory(system, layout.releases)
    for path in leftovers(layout.releases):
        remove(path)
    draft = layout.releases / f"{UNFINISHED}{wanted.digest}"
    draft.mkdir(mode=DIRECTORY_MODE)
    unpack(archive, wanted.files, draft)
    for name, limit in ((MANIFEST, MANIFEST_MAX), (SIGNATURE, SIGNATURE_MAX)):
        (draft / name).write_bytes(read_below(incoming, f"{name}{PART}", limit))
    (draft / manifests.VENV_LINK).symlink_to(layout.venvs / wanted.lock.digest)
    (draft / manifests.MODEL_LINK).symlink_to(layout.models / wanted.model.digest)
    compile_runtime(system, draft, layout.release(wanted.digest), wanted)
    close_to_group(draft, system.account(paths.USER).gid)
    sync_filesystem(layout.releases)
    return draft


def _lock_text(system: System, wanted: Manifest, is_placed: bool, archive: Path) -> str:
    if not is_placed:
        return read_one(archive, wanted.files, manifests.LOCK_FILE).decode()
    release = system.layout.release(wanted.digest)
    lock = next(file for file in wanted.files if file.path == manifests.LOCK_FILE)
    check_file(release / lock.path, name=lock.path, sha256=lock.sha256, size=lock.size)
    return read_below(release, lock.path, LIST_MAX).decode()


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
        return path.lstat().st_size == size
    except FileNotFoundError:
        return False


def _is_sent(incoming: Path, name: str, size: int) -> bool:
    return _has(incoming / f"{name}{PART}", size)


def _distinct(files: tuple[ModelFile, ...]) -> list[ModelFile]:
    return list({file.sha256: file for file in files}.values())
