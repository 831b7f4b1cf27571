"""
The lab's keys: the operator's, each host's, and the one that signs bundles.

Made here and known before a host boots, so strict host-key checking needs no first time.
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
    Make the keys that are missing, and record the hosts' in known_hosts.

    The signing key outlives the lab: bundles that it signed stay good.

    Args:
        fresh: Make the user's and the hosts' keys anew; only while no host has a disk.
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
    _replace(signers, f'{SIGNER} namespaces="{SIGNATURE_NAMESPACE}" {_key_of(public)}\n')
    for host in hosts:
        _ensure_key(host_key(config, host), host)
    _replace(known_hosts(config), known_hosts_text(config))


def known_hosts_text(config: LabConfig) -> str:
    """
    Return the known_hosts file of all hosts that have a key.
    """
    lines = []
    for path in sorted((config.keys / "hosts").glob("n*.pub")):
        lines.append(f"{config.address(path.stem)} {_key_of(path.read_text())}\n")
    return "".join(lines)


def _key_of(public: str) -> str:
    kind, key = public.split()[:2]
    return f"{kind} {key}"


def _ensure_key(path: Path, comment: str) -> None:
    public = Path(f"{path}.pub")
    if path.exists() and public.exists():
        return
    path.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])


def _replace(path: Path, text: str) -> None:
    # A rename, so that an SSH client that reads it meanwhile sees one or the other.
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    fresh.rename(path)
