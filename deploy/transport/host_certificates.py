"""
Certificates of hosts: what a `@cert-authority` line of known_hosts vouches for.

Source: PROTOCOL.certkeys and sshkey_cert_check_host of OpenSSH 9.2.
"""

import time
from dataclasses import dataclass

import paramiko

from deploy.transport.name_patterns import matches

SUFFIX = "-cert-v01@openssh.com"
_HOST = 2  # type of a certificate; 1 is one of a user
# Fields of the public key in a certificate, behind its type and the nonce.
_KEY_FIELDS = {
    "ssh-ed25519": 1,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    "ssh-rsa": 2,
}
# Signatures of authorities that OpenSSH accepts (CASignatureAlgorithms), without FIDO keys.
_SIGNATURES = {
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
}
_FIRST = ("ssh-ed25519", *(f"ecdsa-sha2-nistp{bits}" for bits in (256, 384, 521)))
_ALGORITHMS = tuple(name + SUFFIX for name in (*_FIRST, "rsa-sha2-512", "rsa-sha2-256"))


class InvalidCertificate(Exception):
    """
    The certificate does not prove that a server is the host; str() says why.
    """


@dataclass(frozen=True, slots=True)
class HostCertificate:
    """
    Attributes:
        key: The host's plain key, as SSH sends it.
        authority: The key that signed the certificate.
        key_id: Name that the authority gave it.
        principals: Names of the hosts that it is for; empty: all.
        valid_from_s, valid_to_s: Seconds since 1970.
    """

    key: bytes
    authority: bytes
    key_id: str
    principals: tuple[str, ...]
    valid_from_s: int
    valid_to_s: int


class CertificatesFirst(paramiko.Transport):
    """
    Prefers a certificate of the server to its plain keys; paramiko asks for plain keys first.
    """

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        plain = tuple(name for name in super().preferred_keys if not name.endswith(SUFFIX))
        return (*_ALGORITHMS, *plain)


def certificate_of(key: paramiko.PKey) -> bytes | None:
    """
    Return the certificate with which a server showed *key*; None: it showed the plain key.
    """
    blob = getattr(key, "public_blob", None)
    if blob is None or not blob.key_type.endswith(SUFFIX):
        return None
    return bytes(blob.key_blob)


def read_certificate(blob: bytes) -> HostCertificate:
    """
    Return the content of the certificate *blob*, whose signature is right.

    Raises:
        InvalidCertificate: It is damaged, of a user, signed wrongly, or demands what is unknown.
    """
    try:
        return _read(blob)
    except InvalidCertificate:
        raise
    except Exception as error:  # paramiko raises errors of any class for damaged bytes
        raise InvalidCertificate("it cannot be read") from error


def check_host(certificate: HostCertificate, name: str, now_s: float | None = None) -> None:
    """
    Return if *certificate* is for the host *name* at this time.

    Args:
        name: Address without a port, or HostKeyAlias.

    Raises:
        InvalidCertificate: It is for others, not yet valid, or has expired.
    """
    now_s = time.time() if now_s is None else now_s
    if now_s < certificate.valid_from_s:
        raise InvalidCertificate("it is not valid yet")
    if now_s >= certificate.valid_to_s:
        raise InvalidCertificate(f"it expired on {_day(certificate.valid_to_s)}")
    principals = certificate.principals
    if principals and not any(matches(principal, name.lower()) for principal in principals):
        raise InvalidCertificate(f"it is for {', '.join(principals)}, not for {name}")


class _Fields:
    """
    The fields of an SSH message, in order.  paramiko's reader fills up what is missing with zeros.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise InvalidCertificate("it is too short")
        taken, self._at = self._data[self._at : end], end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def string(self) -> bytes:
        return self.take(self.number(4))

    def text(self) -> str:
        return self.string().decode()

    @property
    def taken(self) -> bytes:
        return self._data[: self._at]

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._data)


def _read(blob: bytes) -> HostCertificate:
    fields = _Fields(blob)
    kind = fields.text().removesuffix(SUFFIX)
    if kind not in _KEY_FIELDS:
        raise InvalidCertificate("its type is not supported")
    fields.string()  # nonce
    numbers = [fields.string() for _ in range(_KEY_FIELDS[kind])]
    fields.number(8)  # serial number
    usage = fields.number(4)
    key_id = fields.text()
    principals = _texts(fields.string())
    valid_from_s, valid_to_s = fields.number(8), fields.number(8)
    critical = fields.string()
    fields.string()  # extensions: unknown ones are ignored
    fields.string()  # reserved
    authority = fields.string()
    signed = fields.taken
    signature = fields.string()
    if not fields.is_at_end:
        raise InvalidCertificate("it is too long")
    if usage != _HOST:
        raise InvalidCertificate("it is one of a user, not of a host")
    if critical:
        raise InvalidCertificate("it has a critical option, and none is known for hosts")
    _check_signature(authority, signed, signature)
    key = b"".join(len(part).to_bytes(4, "big") + part for part in (kind.encode(), *numbers))
    return HostCertificate(key, authority, key_id, principals, valid_from_s, valid_to_s)


def _check_signature(authority: bytes, signed: bytes, signature: bytes) -> None:
    kind = _Fields(authority).text()
    if kind not in _KEY_FIELDS:
        raise InvalidCertificate("the type of its authority is not supported")
    fields = _Fields(signature)
    if fields.text() not in _SIGNATURES:
        raise InvalidCertificate("the algorithm of its signature is not accepted")
    fields.string()
    if not fields.is_at_end:
        raise InvalidCertificate("its signature is too long")
    key = paramiko.PKey.from_type_string(kind, authority)
    if not key.verify_ssh_sig(signed, paramiko.Message(signature)):
        raise InvalidCertificate("its signature is wrong")


def _texts(data: bytes) -> tuple[str, ...]:
    fields, texts = _Fields(data), []
    while not fields.is_at_end:
        texts.append(fields.text())
    return tuple(texts)


def _day(at_s: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at_s))
