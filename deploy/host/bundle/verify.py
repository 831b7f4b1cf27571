"""
Verifies signature, hashes and sizes of a bundle before anything of it is unpacked.

The controller verifies its own copy with the same code before it connects.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from deploy.host.bundle.manifest import NAMESPACE, Manifest, parse_manifest
from deploy.host.files import sha256_of
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.system import System
from deploy.host.text import one_line
from deploy.host.trusted_files import MANIFEST_MAX, SIGNATURE_MAX, read_below

_SSH_KEYGEN_S = 20.0
_IDENTITY = re.compile(r"[^\s*?!,\"'\x00-\x20\x7f-\x9f-][^\s*?!,\"'\x00-\x20\x7f-\x9f]{0,254}")


def read_signed_manifest(
    system: System,
    directory: Path,
    digest: str,
    signers: Path,
    *,
    manifest_name: str,
    signature_name: str,
) -> Manifest:
    """
    Return the manifest of the bundle *digest*, after verifying its signature.

    Raises:
        HostError: It is missing, of another bundle, or not signed by an allowed signer.
    """
    try:
        data = read_below(directory, manifest_name, MANIFEST_MAX)
    except FileNotFoundError:
        raise HostError(
            ErrorKind.BUNDLE_TRUNCATED,
            f"bundle {digest[:12]} was not uploaded",
            f"{directory / manifest_name} is missing",
            "inv release sends it",
        ) from None
    except OSError as error:
        raise unsigned(f"its manifest cannot be read: {error}") from None
    if not signers.is_file():
        raise HostError(
            ErrorKind.PRECONDITION,
            "no allowed signers are installed",
            f"{signers} is missing",
            "inv provision installs the allowed signers of the fleet file",
        )
    if hashlib.sha256(data).hexdigest() != digest:
        # Unsigned is the worse news; a manifest with a valid signature is of another bundle.
        try:
            other = parse_manifest(data)
        except HostError as error:
            raise unsigned(f"its manifest is not valid: {error.why}") from None
        check_signature(system, data, other.identity, directory / signature_name, signers)
        raise tampered(f"bundle {digest[:12]}", "its manifest is that of another bundle")
    manifest = parse_manifest(data)
    check_signature(system, data, manifest.identity, directory / signature_name, signers)
    return manifest


def check_signature(
    system: System, manifest: bytes, identity: str, signature: Path, signers: Path
) -> None:
    """
    Check that *identity*, the signer that the manifest names, signed *manifest*.

    ssh-keygen decides: the identity must match the principals of a line in *signers* (negated
    patterns exclude it), whose key, options, namespaces and times must fit.

    Source: ssh-keygen(1), ALLOWED SIGNERS.

    Raises:
        HostError: It did not, or the signature is for another purpose.
    """
    if not _IDENTITY.fullmatch(identity):
        # ssh-keygen would match a pattern with itself, past a negated one.
        raise unsigned(f"its signer {identity[:100]!r} is not one identity")
    try:
        read_below(signature.parent, signature.name, SIGNATURE_MAX)
    except FileNotFoundError:
        raise unsigned("it has no signature") from None
    except OSError as error:
        raise unsigned(f"its signature cannot be read: {error}") from None
    completed = system.run(
        [
            "ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", identity,
            "-n", NAMESPACE, "-s", str(signature),
        ],
        timeout_s=_SSH_KEYGEN_S,
        stdin=manifest,
    )  # fmt: skip
    if completed.returncode != 0:
        reason = one_line(completed.stderr or completed.stdout) or "ssh-keygen refuses it"
        raise unsigned(f"{identity} is not allowed to sign it, or did not: {reason}")


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
