"""
The certificate that a host's public port shows, as its status has it.  Pure.
"""

import base64
from dataclasses import dataclass
from datetime import datetime
from math import floor

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from deploy.certificates.pair import names_of
from deploy.foreign_text import visible

_NAMES = 100  # of a certificate that are kept
_TEXT_MAX = 32 << 10  # characters of base64


@dataclass(frozen=True, slots=True)
class ShownCertificate:
    """
    Attributes:
        names: DNS names and addresses that it is for, made visible.
        issuer: Name of the authority, made visible.
        not_before, not_after: Begin and end of its validity, UTC.
        sha256: Fingerprint, hexadecimal.
    """

    names: tuple[str, ...]
    issuer: str
    not_before: datetime
    not_after: datetime
    sha256: str

    def days_left(self, now: datetime) -> int:
        """
        Return whole days until the end; negative once it has expired.
        """
        return floor((self.not_after - now).total_seconds() / 86400)


def shown_certificate(text: str) -> ShownCertificate | None:
    """
    Return the certificate *text*, DER in base64, which a host sent; None where it cannot be read.
    """
    certificate = parse_shown(text)
    if certificate is None:
        return None
    try:
        return ShownCertificate(
            names=tuple(visible(name) for name in names_of(certificate)[:_NAMES]),
            issuer=visible(certificate.issuer.rfc4514_string()),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        )
    except Exception:  # the library has many for malformed input
        return None


def parse_shown(text: str) -> x509.Certificate | None:
    """
    Return the certificate *text* as a whole, unchecked; None where it cannot be read.
    """
    if not text or len(text) > _TEXT_MAX:
        return None
    try:
        return x509.load_der_x509_certificate(base64.b64decode(text, validate=True))
    except Exception:  # the library has many for malformed input
        return None
