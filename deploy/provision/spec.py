"""
The specification of a host: all inputs of its resources in one value.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificates

from deploy.certificates.pair import Pair
from deploy.errors import InventoryError
from deploy.inventory.schema import Fleet, Mirrors, ReleasePolicy, Service
from deploy.inventory.schema.gpu import DriverSection, GpuSection
from deploy.inventory.secrets import SecretValue, resolve_secret
from deploy.provision.allowed_signers import TEXT_MAX, parse_signers
from deploy.provision.certificate_resources import AcmeIssuer, Issuer
from deploy.provision.row_fit import pin_conflict
from deploy.versions.matrix import Row, load_matrix
from deploy.wheelhouse import InterpreterPin, Lock, UvProgram, interpreter_of

# A bearer token is token68 (RFC 7235); the comma separates them in the environment.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_BUNDLE_MAX = 2**20  # bytes of `mirrors.ca_bundle`
# PRINCIPALS [OPTIONS] TYPE KEY [COMMENT].  Source: ssh-keygen(1), ALLOWED SIGNERS.


@dataclass(frozen=True, slots=True)
class HostSpec:
    """
    The wanted state of the hosts of one row.

    Attributes:
        fleet: Name of the fleet that the hosts belong to.
        api_tokens: Bearer tokens of the service; empty: requests need none.
        allowed_signers: Text of the file that names the signers whose bundles the host accepts.
        host_program: The zipapp of `deploy.host`.
        mac_key: Random key of this run, 64 hexadecimal digits, see `resources.File`.
        certificate: Of the public port; None: the port is plain HTTP.
        issuer: The fleet's own authority, or an ACME server; None: the certificate is one of the
            operator's files.
        mirrors_ca: Certificates of `mirrors.ca_bundle`, PEM; None: apt trusts what the host trusts.
        storage_root: Directory that slipway's directories are bound to; None: none is.
        interpreter: Standalone Python; None: the distribution's.
        driver: What the fleet file says of it; without a version it is only checked.
        driver_keyring: Keys of NVIDIA's repository, binary; empty: it is not used.
        gpu: State of the GPUs.
    """

    fleet: str
    row: Row
    lock: Lock
    service: Service
    release: ReleasePolicy
    mirrors: Mirrors
    api_tokens: tuple[SecretValue, ...]
    allowed_signers: str
    host_program: bytes
    uv: UvProgram
    mac_key: str
    certificate: Pair | None = None
    issuer: Issuer | AcmeIssuer | None = None
    mirrors_ca: str | None = None
    storage_root: str | None = None
    interpreter: InterpreterPin | None = None
    driver: DriverSection = field(default_factory=DriverSection)
    driver_keyring: bytes = b""
    gpu: GpuSection = field(default_factory=GpuSection)

    @property
    def drain_timeout_s(self) -> float:
        return self.release.drain_timeout


def check_inputs(fleet: Fleet, env: Mapping[str, str]) -> None:
    """
    Read what the fleet file names on this machine, before any host is asked.

    Raises:
        InventoryError: As for `resolve_tokens`, `read_allowed_signers` and `interpreter_of`; or no
            host may have the driver of the fleet file with one of its rows.
    """
    rows = [load_matrix().row(name) for name in sorted({host.row for host in fleet.hosts})]
    for row in rows:
        _refuse_pinned_driver(fleet, row)
    resolve_tokens(fleet, env)
    read_allowed_signers(fleet)
    for row in rows:
        interpreter_of(fleet.mirrors.python, row)


def _refuse_pinned_driver(fleet: Fleet, row: Row) -> None:
    driver = fleet.driver.version
    if driver is None or not row.needs_gpu:
        return
    conflict = pin_conflict(
        torch=row.minor, cuda=row.cuda or "cpu", python=row.python, driver=driver
    )
    if conflict is not None:
        raise InventoryError(
            f"{fleet.path.name}: driver.version {driver} and row {row.name} contradict each other",
            why=conflict.conflicts,
            fix=f"{conflict.nearest}; all rows: inv matrix --driver {driver}",
        )


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
    Return the signers in the fleet's allowed_signers file, as hosts get them.

    Its text is sent to hosts, so another file, such as a private key, is refused.

    Raises:
        InventoryError: The file is missing or unreadable, names no signer, or has another line.
    """
    path = fleet.signing.allowed_signers
    what = f"{fleet.path.name}: signing.allowed_signers"
    fix = 'one line a signer: IDENTITY namespaces="slipway-bundle" ssh-ed25519 AAAA...'
    try:
        if path.exists() and not path.is_file():  # opening a pipe could wait for ever
            why = f"{path}: not a regular file"
            raise InventoryError(f"{what} cannot be read", why=why, fix=fix)
        with path.open(encoding="utf-8") as file:
            text = parse_signers(file.read(TEXT_MAX + 1))
    except OSError as error:
        why = f"{path}: {error.strerror}"
        raise InventoryError(f"{what} cannot be read", why=why, fix=fix) from error
    except ValueError as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeError) else str(error)
        raise InventoryError(
            f"{what} is not a list of signers", why=f"{path}: {reason}", fix=fix
        ) from None
    if not text:
        raise InventoryError(f"{what} names no signer", why=f"{path} has no signer", fix=fix)
    return text


def read_mirrors_ca(fleet: Fleet) -> str | None:
    """
    Return the certificates in `mirrors.ca_bundle`, PEM; None without one.

    All users of a host can read them, so a file with a private key is refused.

    Raises:
        InventoryError: The file cannot be read, or is something else.
    """
    path = fleet.mirrors.ca_bundle
    if path is None:
        return None
    what = f"{fleet.path.name}: mirrors.ca_bundle cannot be used"
    fix = "give the PEM file of the authorities that signed the certificates of the mirrors"
    try:
        if path.exists() and not path.is_file():  # opening a pipe could wait for ever
            raise InventoryError(what, why=f"{path}: not a regular file", fix=fix)
        with path.open("rb") as file:
            data = file.read(_BUNDLE_MAX + 1)
    except OSError as error:
        raise InventoryError(what, why=f"{path}: {error.strerror}", fix=fix) from error
    if len(data) > _BUNDLE_MAX or b"PRIVATE KEY-----" in data:
        has = "more than 1 MiB" if len(data) > _BUNDLE_MAX else "a private key"
        raise InventoryError(what, why=f"{path} has {has}", fix=fix)
    try:
        certificates = load_pem_x509_certificates(data)
    except ValueError as error:
        raise InventoryError(what, why=f"{path} has no certificate in PEM", fix=fix) from error
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in certificates)
