"""
Verifies a bundle of the store before any connection, with the code of the host program.
"""

import hashlib
from pathlib import Path

from deploy.bundle.store import Bundle
from deploy.errors import DeployError
from deploy.host.bundle.archive import check_archive
from deploy.host.bundle.manifest import MANIFEST, SIGNATURE
from deploy.host.bundle.verify import check_file, read_signed_manifest, tampered
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.system import System
from deploy.host.trusted_files import MANIFEST_MAX, read_below
from deploy.transport.answers import ERRORS


def check_bundle(bundle: Bundle, *, allowed_signers: Path) -> str:
    """
    Verify every file of *bundle* and return its signer.

    Raises:
        BundleUnsigned: No allowed signer signed it.
        BundleTampered: A file differs from the signed one.
        BundleTruncated: A file is shorter than the signed one, or missing.
        PreconditionError: *allowed_signers* is missing.
    """
    signers = allowed_signers.expanduser()
    try:
        manifest_bytes = read_below(bundle.directory, MANIFEST, MANIFEST_MAX)
        if hashlib.sha256(manifest_bytes).hexdigest() != bundle.digest:
            raise tampered(f"bundle {bundle.digest[:12]}", "its manifest is that of another bundle")
        manifest = read_signed_manifest(
            System(),
            bundle.directory,
            bundle.digest,
            signers,
            manifest_name=MANIFEST,
            signature_name=SIGNATURE,
        )
        check_archive(bundle.archive_path, manifest.files)
        for file in manifest.model.files:
            check_file(
                bundle.blob(file.sha256),
                name=f"model/{file.path}",
                sha256=file.sha256,
                size=file.size,
            )
    except HostError as error:
        raise _named_for(bundle, error) from None
    except OSError as error:  # such as a link in the store, or a file of another user
        unreadable = tampered(f"{error.filename}", f"it cannot be read: {error.strerror}")
        raise _named_for(bundle, unreadable) from error
    return manifest.identity


def _named_for(bundle: Bundle, error: HostError) -> DeployError:
    fix = error.fix
    if error.kind in {ErrorKind.BUNDLE_TAMPERED, ErrorKind.BUNDLE_TRUNCATED}:
        fix = "build it again: inv bundle; no host was touched"
    what = f"bundle {bundle.version} ({bundle.digest[:12]}): {error.what}"
    return ERRORS[error.kind](what, why=error.why, fix=fix)
