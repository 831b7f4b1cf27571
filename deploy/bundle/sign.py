"""
Signs bundles with ssh-keygen.
"""

import subprocess
import tempfile
from pathlib import Path

from deploy.bundle.store import Bundle
from deploy.errors import PreconditionError
from deploy.host.bundle.manifest import MANIFEST, NAMESPACE

_WITH_AGENT = (
    "run it on a terminal, which asks for the passphrase; or load the key with ssh-add {key}, and "
    "let signing.key name {key}.pub"
)
_SIGN_S = 60.0  # an SSH agent may ask its owner


def sign_bundle(bundle: Bundle, *, key: Path) -> Bundle:
    """
    Sign the manifest of *bundle* with the private *key*; replaces an earlier signature.

    Raises:
        PreconditionError: The key is missing, or ssh-keygen fails.
    """
    fix = "signing.key of the fleet file names it; ssh-keygen -t ed25519 makes one"
    key = key.expanduser()
    if not key.is_file():
        raise PreconditionError(
            f"bundle {bundle.version}: the signing key is missing",
            why=f"{key} does not exist",
            fix=fix,
        )
    with tempfile.TemporaryDirectory(dir=bundle.directory.parent, prefix=".tmp-") as name:
        copy = Path(name) / MANIFEST
        copy.write_bytes(bundle.manifest_path.read_bytes())
        argv = ["ssh-keygen", "-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, str(copy)]
        try:
            completed = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SIGN_S,
                check=False,
            )
            message = completed.stderr.strip()
        except FileNotFoundError:
            message = "ssh-keygen is not installed"
        except subprocess.TimeoutExpired:
            message = f"ssh-keygen did not end within {_SIGN_S:.0f} s"
        signature = Path(f"{copy}.sig")
        if not signature.is_file():
            raise PreconditionError(
                f"bundle {bundle.version}: signing with {key} failed",
                why=" / ".join(message.splitlines()) or "ssh-keygen wrote no signature",
                fix=_WITH_AGENT.format(key=key) if "passphrase" in message else fix,
            )
        signature.chmod(0o600)
        signature.replace(bundle.signature_path)
    return bundle
