"""
A fleet's own certificate authority, on the operator's machine: made once, it signs one
certificate for each host.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deploy.certificates.pair import (
    CertificateProblem,
    Pair,
    PrivateKey,
    names_of,
    pair_of,
    parse_chain,
    parse_key,
)
from deploy.errors import InventoryError, PreconditionError
from deploy.inventory.secrets import read_private
from deploy.private_files import private_directory, write_private

CERTIFICATE, KEY = "slipway-ca.pem", "slipway-ca.key"  # in the authority's directory
AUTHORITY_TIME = timedelta(days=3650)
HOST_TIME = timedelta(days=90)
RENEW_BEFORE = timedelta(days=30)  # of a host's certificate, before it ends
_CLOCKS = timedelta(hours=1)  # by which a client's clock may be slow
_TEXT_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Authority:
    """
    Attributes:
        certificate: What clients trust.
        key: Signs the certificates of hosts.
    """

    certificate: x509.Certificate
    key: PrivateKey

    def issue(self, names: Sequence[str], now: datetime) -> Pair:
        """
        Return a certificate for *names*, DNS names and addresses, with a new key.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key
        ends = min(now + HOST_TIME, self.certificate.not_valid_after_utc)
        certificate = (
            _builder(_subject(names[0]), self.certificate.subject, key, now, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
            .add_extension(issuer_id(self.certificate.public_key()), critical=False)  # type: ignore[arg-type]
            .sign(self.key, hashes.SHA256())
        )
        return pair_of((certificate,), key)

    def is_current(self, pair: Pair, names: Sequence[str], now: datetime) -> bool:
        """
        Return whether *pair* is of this authority, for *names*, and not to be renewed yet.
        """
        return is_current(pair.leaf, self.certificate, names, now)


def is_current(
    leaf: x509.Certificate, authority: x509.Certificate, names: Sequence[str], now: datetime
) -> bool:
    """
    Return whether *authority* issued *leaf*, for *names*, and it is not to be renewed yet.
    """
    if not is_issued_by(leaf, authority):
        return False
    ends = leaf.not_valid_after_utc
    # The last certificates of an authority end with it: another one would last no longer.
    is_last = ends >= authority.not_valid_after_utc
    renewed_at = ends if is_last else ends - RENEW_BEFORE
    wanted = {_comparable(name) for name in names}
    return now < renewed_at and {_comparable(name) for name in names_of(leaf)} == wanted


def is_issued_by(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    """
    Return whether *authority* signed *leaf*.
    """
    try:
        leaf.verify_directly_issued_by(authority)
    except Exception:  # the library has many for malformed input
        return False
    return True


def is_of_namesake(leaf: x509.Certificate, authority: x509.Certificate) -> bool:
    """
    Return whether another authority with the name of *authority* issued *leaf*.
    """
    try:
        is_of_name = leaf.issuer == authority.subject
    except Exception:  # the library has many for malformed input
        return False
    return is_of_name and not is_issued_by(leaf, authority)


def create_authority(directory: Path, fleet: str, now: datetime) -> Authority:
    """
    Make the authority of *fleet* in *directory*, for this user alone.

    Raises:
        PreconditionError: The directory has files, perhaps an authority that clients trust.
        DeployError: The directory cannot be private.
    """
    # A fleet file may come from somebody else: no directory in use is made private.
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise PreconditionError(
            f"{directory}: not made into a certificate authority",
            why="it exists and is not empty; clients may trust an authority that is in it",
            fix="inv certs.renew uses the one in it; for a new one, name another directory in "
            "service.tls.authority",
        )
    private_directory(directory)
    made = ephemeral_authority(f"slipway {fleet}", now, AUTHORITY_TIME)
    pem = made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(directory / KEY, pem)
    write_private(directory / CERTIFICATE, made.certificate.public_bytes(Encoding.PEM))
    return made


def ephemeral_authority(name: str, now: datetime, lasts: timedelta) -> Authority:
    """
    Return a new authority called *name* that is in no directory.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    subject = _subject(name)
    certificate = (
        _builder(subject, subject, key, now, now + lasts)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def load_authority(directory: Path, now: datetime, what: str) -> Authority:
    """
    Return the authority in *directory*.

    Args:
        what: Key of the fleet file that names the directory, for the error.

    Raises:
        InventoryError: There is none, it has expired, or other users may read its key.
    """
    if not (directory / KEY).exists():
        raise InventoryError(
            f"{what}: no certificate authority",
            why=f"{directory / KEY} does not exist",
            fix="inv certs.create makes one; if another machine has it, copy its directory here: "
            "clients do not trust a second one",
        )
    key_text = read_private(directory / KEY, what, holds="the authority's private key, in PEM")
    try:
        (certificate,) = parse_chain((directory / CERTIFICATE).read_bytes()[:_TEXT_MAX])
        key = parse_key(key_text.encode())
        spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if certificate.public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
            raise CertificateProblem("the key belongs to another certificate", "")
        if certificate.not_valid_after_utc <= now:
            ended = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
            raise CertificateProblem(f"it expired on {ended}", "")
    except (CertificateProblem, OSError, ValueError) as error:
        raise InventoryError(
            f"{what}: the certificate authority cannot be used",
            why=f"{directory}: {error}",
            fix="restore the directory; or move it away, inv certs.create, inv certs.renew, and "
            "give the new slipway-ca.pem to the clients",
        ) from None
    return Authority(certificate, key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(name: str) -> x509.Name:
    # A common name has at most 64 characters; clients read the alternative names.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    return [
        x509.IPAddress(address) if (address := _address(name)) else x509.DNSName(_ascii(name))
        for name in dict.fromkeys(names)
    ]


def _ascii(name: str) -> str:
    return name.removesuffix(".").lower()


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        # A certificate has no zone: fe80::1%eth0 is the address alone.
        return ipaddress.ip_address(re.sub("%.*", "", name))
    except ValueError:
        return None


def _comparable(name: str) -> str:
    return str(_address(name) or _ascii(name))
