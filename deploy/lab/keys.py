"""
SSH keys of the lab: the operator's, each host's, and the key that signs bundles.

They are generated before a host boots.  known_hosts is therefore complete, and strict host-key
checking holds from the first connection on.
"""

import shutil
from pathlib import Path

from deploy.lab.commands import run
from deploy.lab.config import LabConfig

SIGNER = "lab@slipway"
SIGNATURE_NAMESPACE = "slipway-bundle"


def user_key(config: LabConfig) -> Path:
    return config.keys / "id_ed25519"


def known_hosts(config: LabConfig) -> Path:
    return config.keys / "known_hosts"


def host_key(config: LabConfig, host: str) -> Path:
    return config.keys / "hosts" / host


def ensure_keys(config: LabConfig, hosts: tuple[str, ...], *, fresh: bool) -> None:
    """
    Generate the missing keys, and write known_hosts and allowed_signers.

    The signing key is never replaced: bundles that it signed stay valid across labs.

    Args:
        fresh: Replace the operator's and the hosts' keys; only while no host has a disk.
    """
    if fresh:
        shutil.rmtree(config.keys / "hosts", ignore_errors=True)
        user_key(config).unlink(missing_ok=True)
        known_hosts(config).unlink(missing_ok=True)
    (config.keys / "hosts").mkdir(parents=True, exist_ok=True)
    config.keys.chmod(0o700)
    _ensure_key(user_key(config), "operator@lab")
    signing = config.keys / "signing_ed25519"
    _ensure_key(signing, SIGNER)
    public = signing.with_suffix(".pub").read_text().strip()
    signers = config.keys / "allowed_signers"
    _replace(signers, f'{SIGNER} namespaces="{SIGNATURE_NAMESPACE}" {_without_comment(public)}\n')
    for host in hosts:
        _ensure_key(host_key(config, host), host)
    _replace(known_hosts(config), known_hosts_text(config))


def known_hosts_text(config: LabConfig) -> str:
    """
    Return the content of known_hosts: one line for each host that has a key.
    """
    lines = []
    for path in sorted((config.keys / "hosts").glob("n*.pub")):
        lines.append(f"{config.address(path.stem)} {_without_comment(path.read_text())}\n")
    return "".join(lines)


def _without_comment(public: str) -> str:
    kind, key = public.split()[:2]
    return f"{kind} {key}"


def _ensure_key(path: Path, comment: str) -> None:
    public = Path(f"{path}.pub")
    if path.exists() and public.exists():
        return
    path.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])


def _replace(path: Path, text: str) -> None:
    # By rename: an SSH client that reads the file at that moment gets the old or the new one.
    replacement = path.with_name(f"{path.name}.new")
    replacement.write_text(text)
    replacement.rename(path)
