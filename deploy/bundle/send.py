"""
Brings a bundle to a host: asks what it lacks, sends that, lets the host verify and place it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from deploy.bundle.store import Bundle
from deploy.errors import PreconditionError
from deploy.host.bundle.manifest import ARCHIVE, MANIFEST, SIGNATURE
from deploy.host.bundle.staging import PART, blob_name, wheel_name
from deploy.units import format_size

ASK_TIMEOUT_S = 60.0
COMMIT_TIMEOUT_S = 1800.0  # hashes everything and builds a venv
_PUT_S = 60.0  # beside what the size takes
_SLOWEST_BYTES_PER_S = 2**20


class Tool(Protocol):
    """
    The host tool of one host.
    """

    def call(
        self, verb: str, args: dict[str, Any] | None = None, *, timeout_s: float
    ) -> dict[str, Any]: ...


class Putter(Protocol):
    """
    What carries files to that host.
    """

    def put(self, local: Path, remote: str, *, timeout_s: float, mode: int = 0o644) -> None: ...


def stage(
    bundle: Bundle,
    *,
    tool: Tool,
    transport: Putter,
    wheels: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """
    Let the host have *bundle*, ready to start; return what was sent.

    Nothing serves it yet.  Doing it again sends nothing; a cut upload goes on with the next file.

    Args:
        wheels: Directory with the wheels of its lock.

    Returns:
        files, bytes: Sent.
        sent: Names of those files.
        committed: What the host says of it (stage.commit).

    Raises:
        DiskTooSmall: It does not fit; nothing was sent.
        BundleUnsigned, BundleTampered, BundleTruncated: The host refuses it; nothing was unpacked.
        PreconditionError: A wheel is not on this machine.
    """
    manifest = bundle.manifest.document()
    lacks = tool.call(
        "stage.missing", {"manifest": manifest, "prepare": True}, timeout_s=ASK_TIMEOUT_S
    )
    uploads = _uploads(bundle, lacks, wheels)
    total = sum(path.stat().st_size for _, path in uploads)
    if uploads:
        progress(f"sending {len(uploads)} files, {format_size(total)}")
    for name, path in uploads:
        size = path.stat().st_size
        transport.put(
            path,
            f"{lacks['incoming']}/{name}{PART}",
            timeout_s=_PUT_S + size / _SLOWEST_BYTES_PER_S,
        )
    progress("the host verifies and places it")
    committed = tool.call(
        "stage.commit",
        {"bundle": bundle.digest, "incoming": bundle.digest},
        timeout_s=COMMIT_TIMEOUT_S,
    )
    return {
        "files": len(uploads),
        "bytes": total,
        "sent": [name for name, _ in uploads],
        "committed": committed,
    }


def _uploads(bundle: Bundle, lacks: dict[str, Any], wheels: Path) -> list[tuple[str, Path]]:
    """
    Return what to send, largest last: a refusal comes before the weights have travelled.
    """
    found = []
    if lacks["bundle"]:
        found += [
            (MANIFEST, bundle.manifest_path),
            (SIGNATURE, bundle.signature_path),
            (ARCHIVE, bundle.archive_path),
        ]
    found += [(wheel_name(file), wheels / file) for file in lacks["wheels"]]
    found += [(blob_name(sha256), bundle.blob(sha256)) for sha256 in lacks["blobs"]]
    for _, path in found:
        if not path.is_file():
            raise PreconditionError(
                f"bundle {bundle.version}: a part of it is not on this machine",
                why=f"{path} is not there",
                fix="inv bundle builds, signs and fetches what it needs",
            )
    return found
