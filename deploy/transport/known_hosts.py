"""
Reads known_hosts as OpenSSH does, and says whether a host's key is one of those recorded.

Source: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT", and check_host_key of OpenSSH 9.2.  paramiko's own
reader ends with a traceback at a line that begins with a marker, and keeps one key of each type.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import paramiko

from deploy.errors import HostKeyMismatch
from deploy.transport.host_certificates import (
    CertificatesFirst,
    InvalidCertificate,
    certificate_of,
    check_host,
    read_certificate,
)
from deploy.transport.name_patterns import matches

_FILE_MAX = 64 << 20  # bytes
_LINE_MAX = 64 << 10  # bytes; a key of 16,384 bits takes 3 KiB
_DEFAULT_PORT = 22
_REVOKED, _AUTHORITY = "@revoked", "@cert-authority"
# Type of the keys of each algorithm that paramiko offers to servers.
_KINDS = {
    "ssh-ed25519": "ssh-ed25519",
    "ecdsa-sha2-nistp256": "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384": "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521": "ecdsa-sha2-nistp521",
    "rsa-sha2-512": "ssh-rsa",
    "rsa-sha2-256": "ssh-rsa",
    "ssh-rsa": "ssh-rsa",
    "ssh-dss": "ssh-dss",
}


class Verdict(Enum):
    KNOWN = "known"
    UNKNOWN = "unknown"  # no key of this host is recorded
    OTHER = "other"  # only other keys of this host are recorded
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One line with a key.

    Attributes:
        hosts: Patterns, separated by commas, or the hash of one name.
        key: The key as SSH sends it; its type is its first field.
        is_authority: The key is that of a certificate authority, and of no host.
    """

    hosts: str
    kind: str
    key: bytes
    is_revoked: bool
    is_authority: bool = False

    @property
    def is_of_a_host(self) -> bool:
        return not (self.is_revoked or self.is_authority)


@dataclass(frozen=True, slots=True)
class KnownHosts:
    entries: tuple[Entry, ...] = ()

    def verdict(self, address: str, port: int, key: bytes) -> Verdict:
        """
        Judge *key*, which the server at *address* and *port* has shown.

        Any recorded key of the host is right.  A revoked key is refused, also if another line
        records it.
        """
        if self._is_revoked(address, port, key):
            return Verdict.REVOKED
        recorded = self._recorded(address, port)
        if any(entry.key == key for entry in recorded):
            return Verdict.KNOWN
        return Verdict.OTHER if recorded else Verdict.UNKNOWN

    def certificate_verdict(
        self, address: str, port: int, shown: paramiko.PKey
    ) -> tuple[Verdict, str]:
        """
        Judge the certificate with which the server at *address* and *port* has shown a key.

        Returns:
            (KNOWN if an authority of the host vouches for it, REVOKED if its key or its authority
            is revoked, else UNKNOWN; why it proves nothing, or "").  UNKNOWN: the plain key counts,
            as for ssh(1).
        """
        blob = certificate_of(shown)
        authorities = self.authorities(address, port)
        if blob is None:
            return Verdict.UNKNOWN, "the host shows no certificate" if authorities else ""
        try:
            certificate = read_certificate(blob)
            if certificate.key != shown.asbytes():
                raise InvalidCertificate("it is for another key")
            if any(
                self._is_revoked(address, port, key)
                for key in (certificate.key, certificate.authority)
            ):
                return Verdict.REVOKED, ""
            if certificate.authority not in authorities:
                raise InvalidCertificate("it is of another authority")
            check_host(certificate, address)
        except InvalidCertificate as error:
            return Verdict.UNKNOWN, f"its certificate proves nothing: {error}"
        return Verdict.KNOWN, ""

    def authorities(self, address: str, port: int) -> tuple[bytes, ...]:
        """
        Return the keys of the authorities that vouch for a host.
        """
        names = _names(address, port)
        return tuple(
            entry.key
            for entry in self.entries
            if entry.is_authority and any(_is_for(entry, name) for name in names)
        )

    def kinds(self, address: str, port: int) -> tuple[str, ...]:
        """
        Return the types of the recorded keys of a host: a server is asked for one of them.
        """
        return tuple(dict.fromkeys(entry.kind for entry in self._recorded(address, port)))

    def fingerprints(self, address: str, port: int) -> tuple[str, ...]:
        """
        Return the SHA-256 fingerprints of the recorded keys of a host.
        """
        return tuple(fingerprint(entry.key) for entry in self._recorded(address, port))

    def _recorded(self, address: str, port: int) -> list[Entry]:
        # As OpenSSH: keys of the bare address count where none is recorded with the port.
        for name in _names(address, port):
            if found := [e for e in self.entries if e.is_of_a_host and _is_for(e, name)]:
                return found
        return []

    def _is_revoked(self, address: str, port: int, key: bytes) -> bool:
        names = _names(address, port)
        return any(
            entry.is_revoked and entry.key == key and any(_is_for(entry, name) for name in names)
            for entry in self.entries
        )


class RecordedKeys(paramiko.MissingHostKeyPolicy):
    """
    Refuses every server whose key is not recorded.

    paramiko asks this policy about each key, because no keys are loaded into its client.

    Args:
        label: Name of the host for errors.
    """

    def __init__(self, label: str, address: str, port: int, paths: Sequence[Path]) -> None:
        self._label, self._address, self._port, self._path = label, address, port, paths[0]
        self._known = KnownHosts(tuple(entry for path in paths for entry in load(path).entries))

    @property
    def unwanted(self) -> list[str]:
        """
        Host-key algorithms that the server must not use, because no key of theirs is recorded.

        Without this a server with keys of several types would show one that is not recorded.
        """
        kinds = set(self._known.kinds(self._address, self._port))
        unwanted = [name for name, kind in _KINDS.items() if kind not in kinds]
        return unwanted if len(unwanted) < len(_KINDS) else []

    @property
    def transport_factory(self) -> type[paramiko.Transport]:
        """
        The class of connections: where an authority vouches for the host, it asks for certificates.
        """
        has_authority = self._known.authorities(self._address, self._port)
        return CertificatesFirst if has_authority else paramiko.Transport

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        """
        Return if *key* is recorded, or its certificate is of an authority of the host.

        Raises:
            HostKeyMismatch: It is not, or it is revoked.
        """
        verdict, why = self._known.certificate_verdict(self._address, self._port, key)
        if verdict is Verdict.UNKNOWN:
            verdict = self._known.verdict(self._address, self._port, key.asbytes())
        if verdict is Verdict.KNOWN:
            return
        client.close()
        shown = f"{self._address} shows {key.get_name()} {fingerprint(key.asbytes())}"
        raise self.refusal(verdict, shown, why)

    def refusal(self, verdict: Verdict, shown: str, of_certificate: str = "") -> HostKeyMismatch:
        """
        Return the error of a server for which *verdict* holds; *shown* says what it showed.

        Args:
            of_certificate: Why no certificate proves the host, where an authority could.
        """
        if verdict is Verdict.UNKNOWN:
            what, why = "no host key is recorded", f"{self._path} has no entry for {self._address}"
            fix = "inv trust shows it, to compare with the host's console, and records it"
            if of_certificate:
                why = f"{why}, and {of_certificate}"
                fix = f"give the host a certificate (HostCertificate of sshd), or: {fix}"
        elif verdict is Verdict.REVOKED:
            what, why = "the host key is revoked", f"{shown}, which {self._path} marks as revoked"
            fix = f"give the host a new key, and record that in {self._path}"
        else:
            recorded = ", ".join(self._known.fingerprints(self._address, self._port))
            what, why = "the host key is not the recorded one", f"{shown}, recorded: {recorded}"
            fix = (
                f"if the host was reinstalled, record its new key in {self._path}; "
                "if not, another machine answers at its address"
            )
        return HostKeyMismatch(f"{self._label}: {what}", why=why, fix=fix, host=self._label)


def load(path: Path) -> KnownHosts:
    """
    Return the entries of the file *path*; a file that does not exist has none.

    Raises:
        HostKeyMismatch: The file cannot be read, or is too large to be a list of keys.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe could wait for ever
            raise _unreadable(path, "it is not a regular file")
        with path.open("rb") as file:
            data = file.read(_FILE_MAX + 1)
    except FileNotFoundError:
        return KnownHosts()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    if len(data) > _FILE_MAX:
        raise _unreadable(path, f"it has more than {_FILE_MAX >> 20} MiB")
    return parse(data.split(b"\n"))


def parse(lines: Iterable[bytes]) -> KnownHosts:
    """
    Return the entries of *lines*.

    Lines that are no entry are skipped, as ssh(1) does.
    """
    return KnownHosts(tuple(_entries(lines)))


def fingerprint(key: bytes) -> str:
    """
    Return the fingerprint of *key* as `ssh-keygen -l` prints it.
    """
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def hashed_name(name: str) -> str:
    """
    Return *name* as ssh(1) records it with HashKnownHosts.
    """
    salt = secrets.token_bytes(20)
    mac = hmac.new(salt, name.encode(), "sha1").digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(mac).decode()}"


def key_type(key: bytes) -> str | None:
    """
    Return the type of the public key *key*, which is its first field; None if it has none.
    """
    size = int.from_bytes(key[:4], "big")
    if len(key) < 4 + size:
        return None
    return key[4 : 4 + size].decode("ascii", errors="replace")


def _entries(lines: Iterable[bytes]) -> Iterator[Entry]:
    for line in lines:
        if len(line) > _LINE_MAX or line.lstrip().startswith(b"#"):
            continue
        # A comment may have any bytes: a key or its revocation counts all the same.
        words = [word.decode("ascii", errors="replace") for word in line.split(maxsplit=4)]
        marker = words.pop(0) if words and words[0].startswith("@") else None
        if len(words) < 3 or marker not in {None, _REVOKED, _AUTHORITY}:
            continue
        hosts, kind, text = words[:3]
        try:
            key = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            continue
        if key_type(key) == kind:
            yield Entry(hosts, kind, key, marker == _REVOKED, marker == _AUTHORITY)


def _names(address: str, port: int) -> tuple[str, ...]:
    """
    Return the names under which OpenSSH looks a host up, in order.
    """
    name = address.lower()
    return (name,) if port == _DEFAULT_PORT else (f"[{name}]:{port}", name)


def _is_for(entry: Entry, name: str) -> bool:
    if entry.hosts.startswith("|"):
        return _has_hash(entry.hosts, name)
    is_named = False
    for pattern in entry.hosts.lower().split(","):
        if pattern.startswith("!"):
            if matches(pattern[1:], name):
                return False
        else:
            is_named = is_named or matches(pattern, name)
    return is_named


def _has_hash(hosts: str, name: str) -> bool:
    """
    Return whether *hosts*, `|1|SALT|HASH`, is the HMAC-SHA1 of *name* (HashKnownHosts of ssh).
    """
    parts = hosts.split("|")
    if len(parts) != 4 or parts[1] != "1":
        return False
    try:
        salt, expected = (base64.b64decode(part, validate=True) for part in parts[2:])
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), expected)


def _unreadable(path: Path, why: str) -> HostKeyMismatch:
    return HostKeyMismatch(
        f"{path}: the host keys cannot be read",
        why=why,
        fix="set ssh.known_hosts in the fleet file to a file of lines as ssh-keyscan prints them",
    )
