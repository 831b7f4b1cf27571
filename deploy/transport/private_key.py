"""
The private keys of a connection, loaded before anything connects.
"""

import base64
import binascii
import logging
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko
from paramiko.auth_strategy import AuthSource, AuthStrategy, InMemoryPrivateKey

from deploy.errors import TransportError
from deploy.inventory.schema import Hop

_START = b"-----BEGIN "
_OPENSSH = (b"-----BEGIN OPENSSH PRIVATE KEY-----", b"-----END OPENSSH PRIVATE KEY-----")
_MAGIC = b"openssh-key-v1\0"
_AGENT_S = 3.0  # to list its keys
_HEAD = 64 << 10  # bytes; no key file is larger


@dataclass(frozen=True, slots=True)
class Locked:
    """
    A key whose private half only the agent has: a public key, or one with a passphrase.

    Attributes:
        public: The public key as SSH sends it; None: the file does not show it.
        error: What to raise where the agent lacks it.
    """

    public: bytes | None
    error: TransportError


@dataclass(frozen=True, slots=True)
class LoadedKeys:
    """
    Attributes:
        agent: What signs for some of the keys; None: none of them is the agent's.
    """

    keys: Sequence[paramiko.PKey]
    agent: paramiko.Agent | None = None


class Identities(AuthStrategy):
    """
    Offers the keys of *hop* to a server, in the order of ssh(1): those of the agent first.

    The caller closes it when the server has answered: the agent would stay connected.

    Raises:
        TransportError: None of the files is a usable key; names the first.
    """

    def __init__(self, label: str, hop: Hop) -> None:
        super().__init__(ssh_config=paramiko.SSHConfig())
        self._user = hop.user
        self._loaded = identities(label, hop.keys, only_keys=hop.only_keys)

    def get_sources(self) -> Iterator[AuthSource]:
        for key in self._loaded.keys:
            yield InMemoryPrivateKey(self._user, key)

    def close(self) -> None:
        if self._loaded.agent is not None:
            self._loaded.agent.close()


def identities(label: str, paths: Sequence[Path], *, only_keys: bool) -> LoadedKeys:
    """
    Return the keys in *paths*; a locked one comes from the SSH agent.

    Args:
        label: Name of the host, for the error.
        only_keys: Other keys of the agent are left out.

    Raises:
        TransportError: There is no key.
    """
    plain: list[paramiko.PKey] = []
    locked: list[bytes] = []
    errors: list[TransportError] = []
    loaded: list[paramiko.PKey | Locked] = []
    for path in paths:
        try:
            loaded.append(load_private_key(path, label))
        except TransportError as error:
            errors.append(error)
    # A plain key file needs no agent.
    is_asked = not only_keys or any(isinstance(key, Locked) for key in loaded)
    in_agent, agent = _agent_keys() if is_asked else ({}, None)
    for key in loaded:
        if not isinstance(key, Locked):
            plain.append(key)
        elif key.public in in_agent:
            locked.append(key.public)
        else:
            errors.append(key.error)
    public = {key.asbytes() for key in plain}
    first = [in_agent[blob] for blob in locked]
    others = [key for blob, key in in_agent.items() if blob not in {*locked, *public}]
    keys = [*first, *([] if only_keys else others), *plain]
    if agent is not None and not any(isinstance(key, paramiko.AgentKey) for key in keys):
        agent.close()
        agent = None
    if not keys and errors:
        raise errors[0]
    return LoadedKeys(keys, agent)


def load_private_key(path: Path, label: str) -> paramiko.PKey | Locked:
    """
    Return the private key in *path*.

    Args:
        label: Name of the host, for the error.

    Raises:
        TransportError: The file is missing, unreadable, damaged or no key at all.
    """
    head = _read(path, label)
    if not head.startswith(_START):
        words = head.split(None, 2) or [b""]
        if words[0].startswith((b"ssh-", b"ecdsa-", b"sk-")):
            private = path.with_suffix("") if path.suffix == ".pub" else "the file without .pub"
            error = _refused(
                label,
                f"{path} is a public key, and the SSH agent does not have its private key",
                f"set ssh.key to the private key: {private}",
            )
            return Locked(_decoded(words[1]) if len(words) > 1 else None, error)
        raise _refused(
            label, f"{path} is not a private key", "set ssh.key to the file that ssh-keygen wrote"
        )
    try:
        return paramiko.PKey.from_path(path)
    except (paramiko.PasswordRequiredException, TypeError):  # TypeError: of cryptography
        error = _refused(
            label,
            f"{path} has a passphrase, and the SSH agent does not have the key",
            f"ssh-add {path}",
        )
        return Locked(_public_of(head) or _public_beside(path), error)
    except Exception as error:  # paramiko and cryptography raise many types for damaged keys
        raise _refused(
            label,
            f"{path} cannot be read as a private key: {error or type(error).__name__}",
            "restore it, or make a new one: ssh-keygen -t ed25519",
        ) from None


def _read(path: Path, label: str) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe could wait for ever
            raise _refused(
                label, f"{path} is not a regular file", "set ssh.key to the file of a private key"
            )
        with path.open("rb") as file:
            return file.read(_HEAD)
    except FileNotFoundError:
        raise _refused(
            label,
            f"{path} does not exist",
            "inv lab.up makes the lab's; otherwise set ssh.key in the fleet file",
        ) from None
    except OSError as error:
        raise _refused(label, f"{path}: {error.strerror}", f"make {path} readable") from None


def _agent_keys() -> tuple[dict[bytes, paramiko.PKey], paramiko.Agent | None]:
    """
    Return the keys of the agent by their public half, and the agent, which stays connected.

    Without an agent that answers in time there are none.
    """
    found: dict[bytes, paramiko.PKey] = {}
    agents: list[paramiko.Agent] = []

    def ask() -> None:
        try:
            agents.append(paramiko.Agent())
            found.update({key.asbytes(): key for key in agents[0].get_keys()})
        except Exception as error:  # an agent may answer anything
            logging.getLogger("paramiko").info("SSH agent: %s", error)

    # paramiko waits for it without a limit: one that was forwarded may hang with its connection.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_AGENT_S)
    if asking.is_alive():
        return {}, None
    return found, next(iter(agents), None)


def _public_of(text: bytes) -> bytes | None:
    """
    Return the public key in a private key file of OpenSSH's own format, which is not encrypted.

    Source: PROTOCOL.key of OpenSSH 9.2.
    """
    begin, end = _OPENSSH
    if not text.startswith(begin) or end not in text:
        return None
    data = _decoded(b"".join(text[len(begin) : text.index(end)].split())) or b""
    if not data.startswith(_MAGIC):
        return None
    rest = data[len(_MAGIC) :]
    for _ in range(3):  # cipher, function of the passphrase, its options
        _, rest = _string(rest)
    key, _ = _string(rest[4:])  # after the number of keys
    return key


def _public_beside(path: Path) -> bytes | None:
    try:
        words = path.with_name(path.name + ".pub").read_bytes()[:_HEAD].split(None, 2)
    except OSError:
        return None
    return _decoded(words[1]) if len(words) > 1 else None


def _string(data: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:4], "big")
    return data[4 : 4 + size], data[4 + size :]


def _decoded(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def _refused(label: str, why: str, fix: str) -> TransportError:
    what = f"{label}: there is no SSH key to connect with"
    return TransportError(what, why=why, fix=fix, host=label)
