"""
Verifies signature, hashes and sizes of a bundle before anything of it is unpacked.

The controller verifies its own copy with the same code before it connects.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from deploy.host.bundle.manifest import NAMESPACE, Manifest, parse_manifest
from deploy.host.files import sha256_of
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.system import System
from deploy.host.text import one_line

_SSH_KEYGEN_S = 20.0
_MANIFEST_MAX = 64 << 20


def check_signature(system: System, manifest: Path, signature: Path, signers: Path) -> str:
    """
    Return the principal of the allowed *signers* who signed *manifest*.

    Raises:
        HostError: No allowed signer did, or the signature is for another purpose.
    """
    if not signers.is_file():
        raise HostError(
            ErrorKind.PRECONDITION,
            "no allowed signers are installed",
            f"{signers} is missing",
            "inv provision installs the allowed signers of the fleet file",
        )
    if not signature.is_file():
        raise unsigned("it has no signature")
    if manifest.stat().st_size > _MANIFEST_MAX:
        raise unsigned(f"its manifest has more than {_MANIFEST_MAX} bytes")
    keygen = ["ssh-keygen", "-Y"]
    matches = system.run(
        [*keygen, "find-principals", "-f", str(signers), "-s", str(signature)],
        timeout_s=_SSH_KEYGEN_S,
    )
    # One line for each match, with all principals of the key.
    principals = matches.stdout.replace(",", " ").split()
    if matches.returncode != 0 or not principals:
        raise unsigned(f"no allowed signer has its key: {one_line(matches.stderr) or 'no match'}")
    reason = ""
    for principal in principals:
        completed = system.run(
            [
                *keygen, "verify", "-f", str(signers), "-I", principal,
                "-n", NAMESPACE, "-s", str(signature),
            ],
            timeout_s=_SSH_KEYGEN_S,
            stdin=manifest.read_bytes(),
        )  # fmt: skip
        if completed.returncode == 0:
            return principal
        reason = one_line(completed.stderr or completed.stdout)
    raise unsigned(f"its signature is not valid: {reason}")


def read_manifest(path: Path, digest: str) -> Manifest:
    """
    Return the manifest at *path*, of the bundle *digest*.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise tampered(f"bundle {digest[:12]}", "its manifest is that of another bundle")
    return parse_manifest(data)


def check_file(path: Path, *, name: str, sha256: str, size: int) -> None:
    """
    Compare the file at *path* with the signed hash and size; *name* is for the error.

    Raises:
        HostError: It is missing or short (BundleTruncated), or another file (BundleTampered).
    """
    check_size(path, name=name, size=size)
    actual = sha256_of(path)
    if actual != sha256:
        raise tampered(name, f"its SHA-256 is {actual[:12]}, {sha256[:12]} was signed")


def check_size(path: Path, *, name: str, size: int) -> None:
    """
    Compare the size of the file at *path* with the signed one.
    """
    try:
        actual = path.stat().st_size
    except FileNotFoundError:
        raise truncated(name, "it is missing") from None
    if actual < size:
        raise truncated(name, f"it has {actual} of {size} bytes")
    if actual > size:
        raise tampered(name, f"it has {actual} bytes, {size} were signed")


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
        f"{name} differs from what was signed",
        why,
        "nothing was unpacked; build the bundle again: inv bundle",
    )


def truncated(name: str, why: str) -> HostError:
    return HostError(
        ErrorKind.BUNDLE_TRUNCATED,
        f"{name} is incomplete",
        why,
        "nothing was unpacked; send it again: inv release",
    )
