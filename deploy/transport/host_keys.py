"""
Asks servers for their host keys, and records keys in known_hosts.  Logs in to jump hosts only.
"""

import base64
import contextlib
import os
import secrets
import socket
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko

from deploy.errors import HostKeyMismatch, TransportError, UsageError
from deploy.host.files import sync_directory
from deploy.inventory.schema import Hop, Host
from deploy.private_files import private_directory
from deploy.transport.host_certificates import CertificatesFirst
from deploy.transport.known_hosts import KnownHosts, Verdict, fingerprint, hashed_name, load
from deploy.transport.ssh import open_hops, route_of

# Algorithms of the keys that sshd makes by default.
_ALGORITHMS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512")
_ALL = (
    *_ALGORITHMS,
    *("ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-256", "ssh-rsa", "ssh-dss"),
)
_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class ShownKeys:
    """
    The keys that a server has shown, none of which is recorded.

    Attributes:
        host: Name of the host whose way leads over the server.
        name: Under which known_hosts has the keys.
        path: The known_hosts file.
    """

    host: str
    name: str
    path: Path
    keys: tuple[bytes, ...]

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return tuple(fingerprint(key) for key in self.keys)


def first_unknown(host: Host) -> ShownKeys | None:
    """
    Return the keys of the first server on the way to *host* that has no recorded key.

    None: each of them shows a recorded key, or a certificate of a recorded authority.

    Raises:
        HostKeyMismatch: A server shows other keys than the recorded ones, or a revoked one.
        TransportError: A server cannot be reached, or a jump host refuses the login.
    """
    hops = route_of(host)
    for number, hop in enumerate(hops):
        known = KnownHosts(tuple(e for path in hop.known_hosts for e in load(path).entries))
        if known.authorities(*hop.known_as) and _is_certified(host, hops[:number], hop, known):
            continue
        keys = _shown(host, hops[:number], hop)
        verdicts = {known.verdict(*hop.known_as, key) for key in keys}
        if Verdict.REVOKED in verdicts or verdicts == {Verdict.OTHER}:
            raise _mismatch(host.name, hop, known, keys, is_revoked=Verdict.REVOKED in verdicts)
        if Verdict.KNOWN not in verdicts:
            return ShownKeys(host.name, _name(hop), hop.known_hosts[0], keys)
    return None


def record(shown: Iterable[ShownKeys]) -> None:
    """
    Add the keys of *shown* to their files; the names are hashed where the last entry's is.

    Each file is replaced at once, and keeps its mode.  Nothing in it changes.

    Raises:
        UsageError: A file cannot be written; it is as it was.
    """
    by_path: dict[Path, list[ShownKeys]] = {}
    for one in shown:
        by_path.setdefault(one.path, []).append(one)
    for path, entries in by_path.items():
        try:
            _append(path.resolve(), entries)
        except OSError as error:
            raise UsageError(
                f"{path}: the host keys cannot be recorded",
                why=error.strerror or str(error),
                fix="make the file and its directory writable, or set ssh.known_hosts to another",
            ) from None


def _append(path: Path, entries: list[ShownKeys]) -> None:
    if not path.parent.exists():
        private_directory(path.parent)
    for _ in range(_ATTEMPTS):
        before = path.stat() if path.exists() else None
        old = path.read_bytes() if before else b""
        recorded = load(path).entries
        is_hashed = bool(recorded) and recorded[-1].hosts.startswith("|")
        lines = [
            f"{hashed_name(one.name) if is_hashed else one.name} {_text(key)}\n"
            for one in entries
            for key in one.keys
        ]
        start = old if old.endswith(b"\n") or not old else old + b"\n"
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(start + "".join(lines).encode())
                if before:
                    os.fchmod(file.fileno(), before.st_mode & 0o7777)
                    with contextlib.suppress(PermissionError):
                        os.fchown(file.fileno(), before.st_uid, before.st_gid)
                file.flush()
                os.fsync(file.fileno())
            after = path.stat() if path.exists() else None
            if _version(after) == _version(before):  # ssh(1) appends to it at any time
                draft.replace(path)
                sync_directory(path.parent)
                return
        finally:
            draft.unlink(missing_ok=True)
    raise OSError(0, "another program keeps changing it")


def _version(status: os.stat_result | None) -> tuple[int, ...] | None:
    return None if status is None else (status.st_ino, status.st_size, status.st_mtime_ns)


def _shown(host: Host, before: tuple[Hop, ...], hop: Hop) -> tuple[bytes, ...]:
    """
    Return one key of each type that the server of *hop* has, reached through the hops *before*.
    """
    with _reached(host, before, hop) as through:
        keys = {_ask(hop, _ALL, through, host.ssh.connect_timeout).asbytes(): None}
        for algorithm in _ALGORITHMS:
            # A server without such a key ends the connection, in one of several ways.
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                keys[_ask(hop, [algorithm], through, host.ssh.connect_timeout).asbytes()] = None
    return tuple(keys)


def _is_certified(host: Host, before: tuple[Hop, ...], hop: Hop, known: KnownHosts) -> bool:
    """
    Return whether the server of *hop* has a certificate of an authority that *known* has for it.
    """
    with _reached(host, before, hop) as through:
        key = _ask(hop, _ALL, through, host.ssh.connect_timeout, CertificatesFirst)
    return known.certificate_verdict(*hop.known_as, key)[0] is Verdict.KNOWN


@contextlib.contextmanager
def _reached(host: Host, before: tuple[Hop, ...], hop: Hop) -> Iterator[paramiko.Transport | None]:
    """
    Yield the connection to the last of the hops *before*, None where there are none.

    Raises:
        TransportError: What the caller does over it fails.
    """
    gateways = open_hops(host, before)
    try:
        yield gateways[-1].client.get_transport() if gateways else None
    except Exception as error:  # a server can make paramiko raise errors of any class
        raise TransportError(
            f"{host.name}: its host key cannot be read",
            why=f"{hop.address}:{hop.port}: {error or type(error).__name__}",
            fix="is it up, and is its address right?  ping it, then: inv trust",
            host=host.name,
        ) from error
    finally:
        for gateway in reversed(gateways):
            gateway.close()


def _ask(
    hop: Hop,
    algorithms: Collection[str],
    through: paramiko.Transport | None,
    timeout_s: float,
    transport_class: type[paramiko.Transport] = paramiko.Transport,
) -> paramiko.PKey:
    """
    Return the server's key of one of *algorithms*; does not log in.
    """
    address = (hop.address, hop.port)
    sock: socket.socket | paramiko.Channel
    if through is None:
        sock = socket.create_connection(address, timeout=timeout_s)
    else:
        sock = through.open_channel("direct-tcpip", address, ("", 0), timeout=timeout_s)
    others = [one for one in _ALL if one not in algorithms]
    transport = transport_class(sock, disabled_algorithms={"keys": others})
    transport.banner_timeout = timeout_s
    try:
        transport.start_client(timeout=timeout_s)
        return transport.get_remote_server_key()
    finally:
        transport.close()


def _mismatch(
    name: str, hop: Hop, known: KnownHosts, keys: Iterable[bytes], *, is_revoked: bool
) -> HostKeyMismatch:
    path, shown = hop.known_hosts[0], ", ".join(fingerprint(key) for key in keys)
    if is_revoked:
        return HostKeyMismatch(
            f"{name}: a host key is revoked",
            why=f"{hop.address} shows {shown}, of which {path} marks one as revoked",
            fix="give the host a new key; nothing was recorded",
            host=name,
        )
    recorded = ", ".join(known.fingerprints(*hop.known_as))
    return HostKeyMismatch(
        f"{name}: the host key is not the recorded one",
        why=f"{hop.address} shows {shown}, recorded: {recorded}",
        fix=f"if the host was reinstalled: ssh-keygen -R '{_name(hop)}' -f {path}, then inv trust; "
        "if not, another machine answers at its address",
        host=name,
    )


def _name(hop: Hop) -> str:
    address, port = hop.known_as
    return address.lower() if port == 22 else f"[{address.lower()}]:{port}"


def _text(key: bytes) -> str:
    return f"{paramiko.Message(key).get_text()} {base64.b64encode(key).decode()}"
