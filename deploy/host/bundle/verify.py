"""
Is this the bundle that was signed?  Answered before anything of it is unpacked.

The controller asks the same of its own copy, with the same code, before it connects.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from deploy.host.bundle.manifest import NAMESPACE, Blob, Manifest, parse_manifest
from deploy.host.files import sha256_of
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.system import System
from deploy.host.text import one_line

_SSH_KEYGEN_S = 20.0
_MANIFEST_MAX = 64 << 20


def check_signature(system: System, manifest: Path, signature: Path, signers: Path) -> str:
    """
    Return who of *signers* signed *manifest*.

    Raises:
        HostError: Nobody did, or the signature is for something else.
    """
    if not signers.is_file():
        raise HostError(
            ErrorKind.PRECONDITION,
            "no signer is allowed here",
            f"{signers} is not there",
            "inv provision puts the allowed signers of the fleet file there",
        )
    if not signature.is_file():
        raise unsigned("it has no signature")
    if manifest.stat().st_size > _MANIFEST_MAX:
        raise unsigned("its manifest is larger than any")
    keygen = ["ssh-keygen", "-Y"]
    found = system.run(
        [*keygen, "find-principals", "-f", str(signers), "-s", str(signature)],
        timeout_s=_SSH_KEYGEN_S,
    )
    # One line for each match, with all the names that the key goes by.
    principals = found.stdout.replace(",", " ").split()
    if found.returncode != 0 or not principals:
        raise unsigned(f"no allowed signer has its key: {one_line(found.stderr) or 'no match'}")
    said = ""
    for principal in principals:
        done = system.run(
            [
                *keygen, "verify", "-f", str(signers), "-I", principal,
                "-n", NAMESPACE, "-s", str(signature),
            ],
            timeout_s=_SSH_KEYGEN_S,
            stdin=manifest.read_bytes(),
        )  # fmt: skip
        if done.returncode == 0:
            return principal
        said = one_line(done.stderr or done.stdout)
    raise unsigned(f"its signature does not hold: {said}")


def read_manifest(path: Path, digest: str) -> Manifest:
    """
    Return the manifest at *path*, which is that of the bundle *digest*.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise tampered(f"bundle {digest[:12]}", "its manifest is that of another bundle")
    return parse_manifest(data)


def check_file(path: Path, blob: Blob) -> None:
    """
    Hold the file at *path* against what was signed.

    Raises:
        HostError: It is absent or short (BundleTruncated), or another file (BundleTampered).
    """
    check_size(path, blob)
    found = sha256_of(path)
    if found != blob.sha256:
        raise tampered(blob.path, f"its SHA-256 is {found[:12]}, {blob.sha256[:12]} was signed")


def check_size(path: Path, blob: Blob) -> None:
    """
    Hold the size of the file at *path* against what was signed.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise truncated(blob.path, "it is not there") from None
    if size < blob.size:
        raise truncated(blob.path, f"{size} of {blob.size} bytes are there")
    if size > blob.size:
        raise tampered(blob.path, f"it has {size} bytes, {blob.size} were signed")


def unsigned(why: str) -> HostError:
    return HostError(
        ErrorKind.BUNDLE_UNSIGNED,
        "the bundle has no valid signature",
        why,
        "sign it with a key of the fleet's allowed_signers: inv bundle",
    )


def tampered(name: str, why: str) -> HostError:
    return HostError(
        ErrorKind.BUNDLE_TAMPERED,
        f"{name} is not what was signed",
        why,
        "nothing was unpacked; build the bundle again: inv bundle",
    )


def truncated(name: str, why: str) -> HostError:
    return HostError(
        ErrorKind.BUNDLE_TRUNCATED,
        f"{name} is not whole",
        why,
        "nothing was unpacked; send it again: inv release",
    )
