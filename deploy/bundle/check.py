"""
Is the bundle in the store the one that was signed?  Asked before any connection.

The code is that of the host (`deploy.host.bundle.verify`): both refuse the same.
"""

from pathlib import Path

from deploy import errors
from deploy.bundle.store import Bundle
from deploy.errors import DeployError
from deploy.host.bundle.archive import check_archive
from deploy.host.bundle.manifest import Blob
from deploy.host.bundle.verify import check_file, check_signature, read_manifest
from deploy.host.rpc import HostError
from deploy.host.system import Runner


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
        signer = check_signature(Runner(), bundle.manifest_path, bundle.signature_path, signers)
        check_archive(bundle.archive_path, manifest.files)
        for file in manifest.model:
            named = Blob(f"model/{file.path}", file.sha256, file.size)
            check_file(bundle.blob(file.sha256), named)
    except HostError as error:
        raise _here(bundle, error) from None
    return signer


def _here(bundle: Bundle, error: HostError) -> DeployError:
    kind: type[DeployError] = getattr(errors, error.kind)
    fix = error.fix
    if error.kind in {"BundleTampered", "BundleTruncated"}:
        fix = "build it again: inv bundle; no host was touched"
    what = f"bundle {bundle.version} ({bundle.digest[:12]}): {error.what}"
    return kind(what, why=error.why, fix=fix)
