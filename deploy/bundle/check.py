"""
Is the bundle in the store the one that was signed?  Asked before any connection.

The code is that of the host (`deploy.host.bundle.verify`): both refuse the same.
"""

from pathlib import Path

from deploy.bundle.store import Bundle
from deploy.errors import DeployError
from deploy.host.bundle.archive import check_archive
from deploy.host.bundle.manifest import Blob
from deploy.host.bundle.verify import check_file, check_signature, read_manifest
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.system import System
from deploy.transport.client import ERRORS


def check_bundle(bundle: Bundle, *, allowed_signers: Path) -> str:
    """
    Return who signed *bundle*; every file of it is as it was then.

    Raises:
        BundleUnsigned: No allowed signer did.
        BundleTampered: A file is not the one that was signed.
        BundleTruncated: A file is shorter, or gone.
        PreconditionError: *allowed_signers* is missing.
    """
    signers = allowed_signers.expanduser()
    try:
        manifest = read_manifest(bundle.manifest_path, bundle.digest)
        signer = check_signature(System(), bundle.manifest_path, bundle.signature_path, signers)
        check_archive(bundle.archive_path, manifest.files)
        for file in manifest.model:
            named = Blob(f"model/{file.path}", file.sha256, file.size)
            check_file(bundle.blob(file.sha256), named)
    except HostError as error:
        raise _here(bundle, error) from None
    return signer


def _here(bundle: Bundle, error: HostError) -> DeployError:
    fix = error.fix
    if error.kind in {ErrorKind.BUNDLE_TAMPERED, ErrorKind.BUNDLE_TRUNCATED}:
        fix = "build it again: inv bundle; no host was touched"
    what = f"bundle {bundle.version} ({bundle.digest[:12]}): {error.what}"
    return ERRORS[error.kind](what, why=error.why, fix=fix)
