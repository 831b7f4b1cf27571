"""
The specification of a host: all inputs of its resources in one value.
"""

import base64
import hashlib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import uv

from deploy.errors import InventoryError
from deploy.inventory.schema import Fleet, Mirrors, ReleasePolicy, Service
from deploy.inventory.secrets import SecretValue, resolve_secret
from deploy.versions.matrix import Row
from deploy.wheelhouse import Lock

# A bearer token is token68 (RFC 7235); the comma separates them in the environment.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
# PRINCIPALS [OPTIONS] TYPE KEY [COMMENT].  Source: ssh-keygen(1), ALLOWED SIGNERS.
_SIGNER = re.compile(
    r"[^\s#]\S*[ \t]+(?:[a-z-]+(?:=\"[^\"]*\")?(?:,[a-z-]+(?:=\"[^\"]*\")?)*[ \t]+)?"
    r"(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)"
    r"|sk-ssh-ed25519@openssh\.com|sk-ecdsa-sha2-nistp256@openssh\.com)"
    r"[ \t]+[A-Za-z0-9+/]+={0,2}(?:[ \t].*)?"
)
_SIGNERS_MAX_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Binary:
    """
    A program file that is sent to hosts.
    """

    path: Path  # on this machine
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class HostSpec:
    """
    The wanted state of the hosts of one row.

    Attributes:
        api_tokens: Bearer tokens of the service; empty: requests need none.
        allowed_signers: Text of the file that names the signers whose bundles the host accepts.
        host_program: The zipapp of `deploy.host`.
    """

    row: Row
    lock: Lock
    service: Service
    release: ReleasePolicy
    mirrors: Mirrors
    api_tokens: tuple[SecretValue, ...]
    allowed_signers: str
    host_program: bytes
    uv: Binary

    @property
    def drain_timeout_s(self) -> float:
        return self.release.drain_timeout


def resolve_tokens(fleet: Fleet, env: Mapping[str, str]) -> tuple[SecretValue, ...]:
    """
    Return the bearer tokens that the fleet's service accepts.

    Raises:
        InventoryError: A secret has no value, or one that not a valid bearer token.
    """
    tokens = []
    for name in fleet.service.api_tokens:
        token = resolve_secret(fleet.secrets[name], env, name=name)
        if not _TOKEN.fullmatch(token.reveal()):
            raise InventoryError(
                f"secrets.{name}: not a valid bearer token",
                why="it has characters other than letters, digits and . _ ~ + / - =",
                fix="generate another, for example: openssl rand -hex 32",
            )
        tokens.append(token)
    return tuple(tokens)


def read_allowed_signers(fleet: Fleet) -> str:
    """
    Return the text of the fleet's allowed_signers file.

    Its text is sent to hosts, so another file, such as a private key, is refused.

    Raises:
        InventoryError: The file is missing, unreadable, names no signer, or has other lines.
    """
    path = fleet.signing.allowed_signers
    what = f"{fleet.path.name}: signing.allowed_signers"
    fix = 'one line a signer: IDENTITY namespaces="slipway-bundle" ssh-ed25519 AAAA...'
    try:
        if not path.is_file():
            why = f"{path}: does not exist, or is no regular file"
            raise InventoryError(f"{what} cannot be read", why=why, fix=fix)
        with path.open("rb") as file:
            text = file.read(_SIGNERS_MAX_BYTES).decode("utf-8")
    except OSError as error:
        why = f"{path}: {error.strerror}"
        raise InventoryError(f"{what} cannot be read", why=why, fix=fix) from error
    except UnicodeDecodeError:
        raise InventoryError(f"{what} cannot be read", why=f"{path}: not text", fix=fix) from None
    numbered = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    signers = [(n, line) for n, line in numbered if not line.startswith("#")]
    if not signers:
        raise InventoryError(f"{what} names no signer", why=f"{path} has no signer", fix=fix)
    for number, line in signers:
        if not _SIGNER.fullmatch(line.rstrip("\r")):
            # The line is not shown: it may be part of a secret.
            why = f"{path}: line {number} is not a signer in the format of ssh-keygen(1)"
            raise InventoryError(f"{what} is no list of signers", why=why, fix=fix)
    return text


def find_uv() -> Binary:
    """
    Return the uv of this environment, with the hash that its wheel recorded.
    """
    path = Path(uv.find_uv_bin())
    for file in importlib.metadata.files("uv") or ():
        recorded = file.hash
        if recorded is None or recorded.mode != "sha256" or file.name != path.name:
            continue
        if Path(str(file.locate())).resolve() == path.resolve():
            sha256 = base64.urlsafe_b64decode(recorded.value + "=").hex()
            return Binary(path, sha256, path.stat().st_size)
    return hash_file(path)


def hash_file(path: Path) -> Binary:
    """
    Return *path* with the hash of its content.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Binary(path, sha256, path.stat().st_size)
