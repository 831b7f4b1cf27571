"""
Checks the private key of a connection before anything connects.
"""

import stat
from pathlib import Path

import paramiko

from deploy.errors import TransportError

_START = b"-----BEGIN "
_HEAD = 64 << 10  # bytes; no key file is larger


def check_private_key(path: Path, label: str) -> None:
    """
    Refuse a file that is no private key: paramiko would blame the host for it.

    Args:
        label: Name of the host, for the error.

    Raises:
        TransportError: The file is missing, unreadable, a public key, encrypted or no key at all.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe could wait for ever
            raise _refused(
                label, f"{path} is not a regular file", "set ssh.key to the file of a private key"
            )
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise _refused(
            label,
            f"{path} does not exist",
            "inv lab.up makes the lab's; otherwise set ssh.key in the fleet file",
        ) from None
    except OSError as error:
        raise _refused(label, f"{path}: {error.strerror}", f"make {path} readable") from None
    if not head.startswith(_START):
        words = head.split(b" ", 1)[0]
        if words.startswith((b"ssh-", b"ecdsa-", b"sk-")):
            private = path.with_suffix("") if path.suffix == ".pub" else "the file without .pub"
            why, fix = "is a public key", f"set ssh.key to the private key: {private}"
        else:
            why, fix = "is not a private key", "set ssh.key to the file that ssh-keygen wrote"
        raise _refused(label, f"{path} {why}", fix)
    try:
        paramiko.PKey.from_path(path)
    except (paramiko.PasswordRequiredException, TypeError):  # TypeError: of cryptography
        raise _refused(
            label,
            f"{path} has a passphrase",
            f"ssh-add {path}, and leave ssh.key out of the fleet file: the agent is used then",
        ) from None
    except Exception as error:  # paramiko and cryptography raise many types for damaged keys
        raise _refused(
            label,
            f"{path} cannot be read as a private key: {error or type(error).__name__}",
            "restore it, or make a new one: ssh-keygen -t ed25519",
        ) from None


def _refused(label: str, why: str, fix: str) -> TransportError:
    what = f"{label}: there is no SSH key to connect with"
    return TransportError(what, why=why, fix=fix, host=label)
