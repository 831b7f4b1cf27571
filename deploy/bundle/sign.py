"""
Signs bundles, and holds signatures against the allowed signers, with OpenSSH's own tool.
"""

import subprocess
import tempfile
from pathlib import Path

from deploy.bundle.store import Bundle
from deploy.errors import PreconditionError
from deploy.host.bundle.manifest import MANIFEST, NAMESPACE

_SIGN_S = 60.0  # the key may be in an agent that asks its owner


def sign_bundle(bundle: Bundle, *, key: Path) -> Bundle:
    """
    Sign the manifest of *bundle* with the private *key*, in place of an earlier signature.

    Raises:
        PreconditionError: The key is missing, or ssh-keygen refuses it.
    """
    fix = "signing.key of the fleet file names it; ssh-keygen -t ed25519 makes one"
    key = key.expanduser()
    if not key.is_file():
        raise PreconditionError(
            f"bundle {bundle.version}: there is no key to sign it with",
            why=f"{key} is not there",
            fix=fix,
        )
    with tempfile.TemporaryDirectory(dir=bundle.directory.parent, prefix=".tmp-") as name:
        copy = Path(name) / MANIFEST
        copy.write_bytes(bundle.manifest_path.read_bytes())
        argv = ["ssh-keygen", "-Y", "sign", "-q", "-f", str(key), "-n", NAMESPACE, str(copy)]
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SIGN_S,
                check=False,
            )
            said = done.stderr.strip()
        except FileNotFoundError:
            said = "ssh-keygen is not installed"
        except subprocess.TimeoutExpired:
            said = f"ssh-keygen did not end within {_SIGN_S:.0f} s"
        made = Path(f"{copy}.sig")
        if not made.is_file():
            raise PreconditionError(
                f"bundle {bundle.version}: it could not be signed with {key}",
                why=" / ".join(said.splitlines()) or "ssh-keygen made no signature",
                fix=fix,
            )
        made.chmod(0o644)
        made.replace(bundle.signature_path)
    return bundle
