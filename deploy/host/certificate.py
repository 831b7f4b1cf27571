"""
The verb `certificate.set`: another certificate for the public port, without a reload.

HAProxy takes it through its runtime socket and keeps every connection.  The file on the disk is
replaced last, so that it always is one that HAProxy accepted; a restart reads it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from deploy.host import tls
from deploy.host.files import leftovers, locked, remove, sync_directory, write_atomic
from deploy.host.journaled import LOCK_TIMEOUT_S, append_event
from deploy.host.protocol import (
    CERTIFICATE_MAX,
    Call,
    CertificateInstalled,
    CertificateSet,
    ErrorKind,
    HostError,
)
from deploy.host.system import System
from deploy.host.text import one_line
from deploy.host.trusted_files import read_plain

MODE = 0o600
SHOWN_TIMEOUT_S = 5.0  # until new connections show the new certificate
_POLL_S = 0.05


def install(system: System, call: Call, request: CertificateSet) -> CertificateInstalled:
    """
    Check the certificate and its key, let HAProxy serve them, prove it, then replace the file.

    Raises:
        HostError: The pair cannot be served, or HAProxy refuses it: it serves the old one on.
    """
    layout = system.layout
    with locked(system, layout.certificate_lock, LOCK_TIMEOUT_S):
        if not layout.certificates.is_dir():
            raise HostError(
                ErrorKind.PRECONDITION,
                "the host has no place for certificates",
                f"{layout.certificates} is missing",
                "inv provision",
            )
        _check_unchanged(system, request.replaces)  # before what a dead call left is finished
        _settle(system)
        draft = layout.certificates / tls.NEXT_NAME
        try:
            der = _write_checked(draft, request.pem)
            sha256 = hashlib.sha256(der).hexdigest()
            with locked(system, layout.lock, LOCK_TIMEOUT_S):
                append_event(system, call, request.VERB, {"sha256": sha256})
            served = _serve(system, request.pem, der)
            draft.replace(layout.certificate)
            sync_directory(layout.certificates)
        finally:
            draft.unlink(missing_ok=True)
    return CertificateInstalled(sha256=sha256, served=served)


def served(system: System, timeout_s: float) -> bytes | None:
    """
    Return the certificate, in DER, that the public port shows; None: it completes no handshake.
    """
    try:
        return system.served_certificate(timeout_s=timeout_s)
    except (OSError, HostError):
        return None


def is_kept(system: System, der: bytes) -> bool:
    """
    Return whether a restart of HAProxy shows *der* too, which the public port shows now.

    While the certificate is being replaced that is taken for granted.
    """
    layout = system.layout
    if _first_of(layout.certificate) == der:
        return True
    try:
        with locked(system, layout.certificate_lock, 0):
            return _first_of(layout.certificate) == der
    except HostError:
        return True  # another process replaces it
    except OSError:
        return False


def _first_of(path: Path) -> bytes | None:
    try:
        return tls.first_certificate(read_plain(path).decode("ascii"))
    except (OSError, ValueError):
        return None


def _settle(system: System) -> None:
    """
    Finish what a call that was killed has left: its draft becomes the file if the port shows it.
    """
    layout = system.layout
    for path in leftovers(layout.certificates):
        der = _first_of(path) if path.name == tls.NEXT_NAME else None
        if der is not None and served(system, SHOWN_TIMEOUT_S) == der:
            path.replace(layout.certificate)
        else:
            remove(path)
        sync_directory(layout.certificates)


def _check_unchanged(system: System, sha256: str | None) -> None:
    """
    Check that the certificate of the host is the one with *sha256*; None: any may be there.
    """
    der = _first_of(system.layout.certificate)
    if sha256 is None or der is None or hashlib.sha256(der).hexdigest() == sha256:
        return
    raise HostError(
        ErrorKind.PRECONDITION,
        "the certificate was replaced meanwhile",
        "another operator has given the host one since it was looked at",
        "run it again: it looks at the host anew",
    )


def _write_checked(draft: Path, pem: str) -> bytes:
    """
    Write *pem* to *draft*, for root alone, and return its first certificate in DER.
    """
    why = None
    if len(pem) > CERTIFICATE_MAX:
        why = f"it has more than {CERTIFICATE_MAX} bytes"
    elif not pem.isascii() or not pem.endswith("\n") or "\n\n" in pem:
        # HAProxy's runtime socket takes an empty line as the end of the certificate.
        why = "it is not PEM without empty lines"
    else:
        write_atomic(draft, pem.encode(), MODE)
        try:
            return tls.check_file(draft)
        except ValueError as error:
            why = one_line(str(error))[:300]
    raise HostError(
        ErrorKind.PRECONDITION,
        "the certificate cannot be served",
        why,
        "inv certs.show names the certificate; the host serves the old one",
    )


def _serve(system: System, pem: str, der: bytes) -> bool:
    """
    Let the running HAProxy serve *pem*; return False if it runs without a certificate, or not.
    """
    path = system.layout.certificate
    try:
        loaded = system.haproxy("show ssl cert").splitlines()
    except (FileNotFoundError, ConnectionRefusedError):
        return False  # it reads the file when it starts
    except OSError as error:
        raise _refused("its runtime socket does not answer", str(error)) from None
    if str(path) not in loaded:
        return False
    _commit(system, path, pem)
    if _is_shown(system, der):
        return True
    _commit(system, path, read_plain(path).decode("ascii"))
    raise _refused("new connections do not show it, so the old one was set again", "")


def _commit(system: System, path: Path, pem: str) -> None:
    """
    Replace the certificate that HAProxy loaded from *path*.

    Source: HAProxy 2.6 management guide, "set ssl cert", "commit ssl cert", "abort ssl cert".
    """
    try:
        system.haproxy(f"abort ssl cert {path}")  # what a call that died has left
        answer = system.haproxy(f"set ssl cert {path} <<\n{pem}")
        if not answer.startswith("Transaction "):
            raise _refused("it does not take the certificate", answer)
        answer = system.haproxy(f"commit ssl cert {path}")
        if "Success" not in answer:
            system.haproxy(f"abort ssl cert {path}")
            raise _refused("it does not commit the certificate", answer)
    except OSError as error:
        raise _refused("its runtime socket does not answer", str(error)) from None


def _is_shown(system: System, der: bytes) -> bool:
    def probe() -> bool | None:
        return True if served(system, SHOWN_TIMEOUT_S) == der else None

    return system.poll_until(probe, SHOWN_TIMEOUT_S, _POLL_S) is True


def _refused(what: str, answer: str) -> HostError:
    return HostError(
        ErrorKind.COMMAND_FAILED,
        "HAProxy does not serve the new certificate",
        what + (f": {one_line(answer)[:300]}" if answer.strip() else ""),
        "systemctl status haproxy on the host, then inv provision",
    )
