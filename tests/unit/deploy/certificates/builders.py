"""
Builds certificates: valid ones, and such that differ in what a test names.
"""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from deploy.certificates.authority import AUTHORITY_TIME, Authority, _builder, _subject

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


def make_authority(name="test", *, begins=NOW, lasts=AUTHORITY_TIME):
    """
    Return an authority that is in no directory.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _builder(_subject(name), _subject(name), key, begins, begins + lasts)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def make_intermediate(authority):
    """
    Return an authority whose certificate *authority* signed.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    issuer = authority.certificate
    certificate = (
        _builder(_subject("middle"), issuer.subject, key, NOW, NOW + 100 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(authority.key, hashes.SHA256())
    )
    return Authority(certificate, key)


def make_leaf(
    authority,
    *,
    names=("api.example.com",),
    key=None,
    begins=NOW - DAY,
    ends=NOW + 90 * DAY,
    alternative=None,
):
    """
    Return a certificate and its key.

    Args:
        alternative: Subject alternative names as the library has them, in place of *names*.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    general = alternative if alternative is not None else [x509.DNSName(name) for name in names]
    if general:
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    return builder.sign(authority.key, hashes.SHA256()), key


def pem_of(*certificates):
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def key_pem(key, password=None):
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def rsa_key(bits):
    return rsa.generate_private_key(65537, bits)
