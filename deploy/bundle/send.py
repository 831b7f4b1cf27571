"""
Sends a bundle to a host: only the missing files; the host verifies and places them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.bundle.store import Bundle
from deploy.errors import CommandFailed, PreconditionError
from deploy.host import layout
from deploy.host.bundle.manifest import ARCHIVE, MANIFEST, SIGNATURE
from deploy.host.bundle.staging import PART, blob_name, wheel_name
from deploy.host.protocol import StageCommit, Staged, StageMissing, StageNeeds
from deploy.transport.client import HostClient
from deploy.units import format_size

ASK_TIMEOUT_S = 60.0
COMMIT_TIMEOUT_S = 1800.0  # hashes everything and builds a venv
_PUT_S = 60.0  # in addition to the time for the size
_SLOWEST_BYTES_PER_S = 2**20


@dataclass(frozen=True, slots=True)
class Sent:
    """
    A bundle that a host has placed.

    Attributes:
        names: Names of the uploads, in the order of sending.
        size: Bytes sent.
    """

    names: tuple[str, ...]
    size: int
    staged: Staged


def stage(
    bundle: Bundle,
    *,
    client: HostClient,
    wheels: Path,
    progress: Callable[[str], None] = lambda _: None,
    allow_older: bool = False,
) -> Sent:
    """
    Place *bundle* on the host, ready to start; nothing serves it yet.

    Doing it again sends nothing; after a cut connection it continues with the next file.

    Args:
        wheels: Directory with the wheels of its lock.
        allow_older: It may be older than the host's newest good release.

    Raises:
        DiskTooSmall: It does not fit; nothing was sent.
        BundleUnsigned, BundleTampered, BundleTruncated: The host refuses it; nothing was unpacked.
        CommandFailed: The host asks for files that are not in the bundle; nothing was sent.
        PreconditionError: A wheel is not on this machine.
    """
    manifest = bundle.manifest_path.read_text(encoding="ascii")
    needs = client.call(StageMissing(manifest, allow_older), timeout_s=ASK_TIMEOUT_S)
    _refuse_foreign_names(client.host, bundle, needs)
    uploads = _uploads(bundle, needs, wheels)
    total = sum(path.stat().st_size for _, path in uploads)
    if uploads:
        progress(f"sending {len(uploads)} files, {format_size(total)}")
    for name, path in uploads:
        client.transport.put(
            path,
            f"{layout.INCOMING}/{bundle.digest}/{name}{PART}",
            timeout_s=_PUT_S + path.stat().st_size / _SLOWEST_BYTES_PER_S,
        )
    progress("verifying and placing the bundle on the host")
    staged = client.call(StageCommit(bundle.digest, allow_older), timeout_s=COMMIT_TIMEOUT_S)
    return Sent(tuple(name for name, _ in uploads), total, staged)


def _refuse_foreign_names(host: str, bundle: Bundle, needs: StageNeeds) -> None:
    """
    Refuse an answer that asks for anything but parts of *bundle*.

    The names become paths on this machine: a host that was broken into could ask for its keys.
    """
    wheels = {wheel.file for wheel in bundle.manifest.lock.wheels}
    blobs = {file.sha256 for file in bundle.manifest.model.files}
    foreign = sorted({*needs.wheels} - wheels | {*needs.blobs} - blobs)
    if foreign:
        raise CommandFailed(
            f"{host}: the host asks for files that are not in bundle {bundle.version}",
            why=f"nothing was sent; it asks for {', '.join(map(repr, foreign))[:200]}",
            fix=f"find out who changed the host program of {host} before you go on with it",
            host=host,
        )


def _uploads(bundle: Bundle, needs: StageNeeds, wheels: Path) -> list[tuple[str, Path]]:
    """
    Return the files to send, the weights last, so that a refusal comes before them.
    """
    uploads = []
    if needs.bundle:
        uploads += [
            (MANIFEST, bundle.manifest_path),
            (SIGNATURE, bundle.signature_path),
            (ARCHIVE, bundle.archive_path),
        ]
    uploads += [(wheel_name(file), wheels / file) for file in needs.wheels]
    uploads += [(blob_name(sha256), bundle.blob(sha256)) for sha256 in needs.blobs]
    for _, path in uploads:
        if not path.is_file():
            raise PreconditionError(
                f"bundle {bundle.version}: a file is missing on this machine",
                why=f"{path} is missing",
                fix="inv bundle builds, signs and fetches every part",
            )
    return uploads
