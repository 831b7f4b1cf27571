"""
A certificate with those that sign it and its private key, read from PEM and checked.  Pure.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from deploy.foreign_text import quoted
from deploy.inventory.secrets import SecretValue

CHAIN_MAX = 10  # certificates
RSA_BITS = (2048, 8192)
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_SIGNED_WITH = ("sha256", "sha384", "sha512")
_DNS_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63}){0,62}\.?")
_CONVERT = "openssl x509 -inform DER -in FILE -out FILE.pem converts DER to PEM"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class CertificateProblem(Exception):
    """
    A certificate or key cannot be used.

    Args:
        why: What is wrong with it.
        fix: What the operator does next.
    """

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.why, self.fix = why, fix


@dataclass(frozen=True, slots=True)
class Pair:
    """
    Attributes:
        chain: The certificate, then those that sign it, each signed by the next.
        key: Its private key, PEM, not encrypted.
    """

    chain: tuple[x509.Certificate, ...]
    key: SecretValue = field(repr=False)

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def pem(self) -> SecretValue:
        """
        The certificates and the key, as HAProxy reads them from one file.
        """
        certificates = (one.public_bytes(Encoding.PEM).decode() for one in self.chain)
        return SecretValue("".join((*certificates, self.key.reveal())))


def pair_of(chain: tuple[x509.Certificate, ...], key: PrivateKey) -> Pair:
    """
    Return *chain* with *key*, which may be weak or of another certificate: see `check_pair`.
    """
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Pair(chain, SecretValue(pem.decode()))


def parse_chain(data: bytes) -> tuple[x509.Certificate, ...]:
    """
    Return the certificates in *data*, PEM.

    Raises:
        CertificateProblem: There is none, there are too many, or there is a private key.
    """
    if b"PRIVATE KEY-----" in data:
        raise CertificateProblem(
            "it contains a private key, and certificates may be read by all users",
            "leave only certificates in it, and give the key a file of its own",
        )
    if not data.strip():
        raise CertificateProblem("it is empty", "write the certificate to it, in PEM")
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise CertificateProblem("it has no certificate in PEM", _CONVERT)
    if data.count(b"-----BEGIN CERTIFICATE-----") > CHAIN_MAX:
        raise CertificateProblem(
            f"it has more than {CHAIN_MAX} certificates", "leave the certificate and its signers"
        )
    try:
        return tuple(x509.load_pem_x509_certificates(data))
    except ValueError as error:
        why = f"a certificate in it cannot be read: {quoted(str(error))}"
        raise CertificateProblem(why, "get it again from its authority") from None


def parse_key(data: bytes) -> PrivateKey:
    """
    Return the private key in *data*, PEM.

    Raises:
        CertificateProblem: It is encrypted, of a kind that clients do not accept, or no key.
    """
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise CertificateProblem(
            "the key is encrypted, and HAProxy starts without an operator",
            "openssl pkey -in KEY -out KEY.plain removes the password; keep it at mode 0600",
        ) from None
    except Exception:  # the library has several, and one quotes its input
        raise CertificateProblem(
            "it has no private key in PEM",
            "write the certificate's key to it: -----BEGIN PRIVATE KEY-----",
        ) from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise CertificateProblem(f"the key is {_KINDS}", _NEW_KEY)
    return key


_KINDS = "neither RSA nor ECDSA, and browsers accept no other"
_NEW_KEY = "get a certificate for a new key: openssl ecparam -genkey -name prime256v1"


def check_pair(chain: tuple[x509.Certificate, ...], key: PrivateKey, now: datetime) -> None:
    """
    Check that a client of today accepts *chain* and that *key* belongs to its first certificate.

    Names and trust are not checked here.

    Raises:
        CertificateProblem: Anything else is wrong.
    """
    leaf = chain[0]
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*spki) != key.public_key().public_bytes(*spki):
        raise CertificateProblem(
            "the key belongs to another certificate",
            "the first certificate of the file has to be the key's; its signers follow",
        )
    _check_strength(key)
    for above, below in zip(chain[1:], chain, strict=False):
        try:
            below.verify_directly_issued_by(above)
        except Exception:
            raise CertificateProblem(
                f"the certificate of {_subject(above)} does not sign the one before it, of "
                f"{_subject(below)}",
                "order: the certificate, then its signer, then that one's, each once",
            ) from None
    for certificate in chain:
        _check_time(certificate, now)
        _check_signature(certificate)
    check_names(leaf)


def _check_strength(key: PrivateKey) -> None:
    if isinstance(key, rsa.RSAPrivateKey):
        if not RSA_BITS[0] <= key.key_size <= RSA_BITS[1]:
            why = f"an RSA key of {key.key_size} bits; {RSA_BITS[0]} to {RSA_BITS[1]} are accepted"
            raise CertificateProblem(why, _NEW_KEY)
    elif key.curve.name not in _CURVES:
        why = f"an ECDSA key on {key.curve.name}; accepted are {', '.join(_CURVES)}"
        raise CertificateProblem(why, _NEW_KEY)


def _check_time(certificate: x509.Certificate, now: datetime) -> None:
    ends, begins = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if ends <= now:
        why = f"the certificate of {_subject(certificate)} expired at {ends:%Y-%m-%d %H:%M} UTC"
        raise CertificateProblem(why, "renew it")
    if begins > now:
        why = f"the certificate of {_subject(certificate)} begins at {begins:%Y-%m-%d %H:%M} UTC"
        raise CertificateProblem(why, "wait, or check the clock of this machine")


def _check_signature(certificate: x509.Certificate) -> None:
    if certificate.issuer == certificate.subject:
        return  # nobody relies on the signature of a root
    try:
        algorithm = certificate.signature_hash_algorithm
    except Exception:
        algorithm = None
    if algorithm is None or algorithm.name not in _SIGNED_WITH:
        why = f"the certificate of {_subject(certificate)} is not signed with SHA-2"
        raise CertificateProblem(why, "get it again from its authority")


def check_names(leaf: x509.Certificate) -> None:
    """
    Check that *leaf* has names, and that they are names.

    Raises:
        CertificateProblem: It has none, or one with other characters than a DNS name has.
    """
    names = names_of(leaf)
    if not names:
        why = "the certificate has no subject alternative names, and clients read no others"
        raise CertificateProblem(why, "get one with the DNS names or addresses of the service")
    wrong = [name for name in names if not (_DNS_NAME.fullmatch(name) or ":" in name)]
    if wrong:
        why = f"the certificate has a name that is none: {quoted(wrong[0])}"
        raise CertificateProblem(why, "get it again with plain DNS names or addresses")


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """
    Return the DNS names and addresses that *certificate* is for, unchecked text.

    An extension that cannot be read counts as no names.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # missing, repeated or malformed
        return ()
    return (
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    )


def _subject(certificate: x509.Certificate) -> str:
    try:
        return quoted(certificate.subject.rfc4514_string(), limit=100)
    except Exception:
        return "an unreadable subject"
