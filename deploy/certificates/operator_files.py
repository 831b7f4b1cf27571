"""
The certificate and key that the operator has: read and checked before a host is reached.
"""

import errno
import os
import ssl
import stat
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from deploy.certificates.pair import CertificateProblem, Pair, check_pair, pair_of, parse_chain
from deploy.certificates.pair import parse_key as key_of
from deploy.errors import InventoryError
from deploy.host.protocol import CERTIFICATE_MAX
from deploy.host.tls import shake
from deploy.inventory.schema import Fleet, Host, Tls
from deploy.inventory.secrets import read_private

_WRONG_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


def read_files(fleet: Fleet, tls: Tls, now: datetime) -> Pair:
    """
    Return the pair in the files that *tls* names, which clients of *fleet* accept.

    Raises:
        InventoryError: A file cannot be read, other users may read the key, or a client would
            refuse the certificate; it names the key of the fleet file.
    """
    assert tls.certificate is not None
    assert tls.key is not None
    where = f"{fleet.path.name}: service.tls"
    try:
        chain = parse_chain(_read(tls.certificate))
    except CertificateProblem as problem:
        _refuse(f"{where}.certificate", tls.certificate, problem)
    text = read_private(tls.key, f"{where}.key", holds="the private key, in PEM")
    try:
        key = key_of(text.encode())
    except CertificateProblem as problem:
        _refuse(f"{where}.key", tls.key, problem)
    try:
        check_pair(chain, key, now)
        pair = pair_of(chain, key)
        if len(pair.pem.reveal()) > CERTIFICATE_MAX:
            why = f"with its key it has more than {CERTIFICATE_MAX // 1024} KiB"
            raise CertificateProblem(why, "leave out signers that clients have, such as the root")
        check_trust(tls.certificate, tls.key, tls.authority, _names(tls, fleet.hosts))
    except CertificateProblem as problem:
        _refuse(f"{where}.certificate", tls.certificate, problem)
    return pair


def _read(path: Path) -> bytes:
    try:
        # A pipe or device that the fleet file names would be waited for, or read, without end.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CertificateProblem("it is a folder, a pipe or a device", "name a file")
            data = file.read(CERTIFICATE_MAX + 1)
    except OSError as error:
        raise CertificateProblem(
            str(error.strerror), "check the path and who may read it"
        ) from None
    if len(data) > CERTIFICATE_MAX:
        why = f"it has more than {CERTIFICATE_MAX // 1024} KiB"
        raise CertificateProblem(why, "leave the certificate and its signers in it, in PEM")
    return data


def _names(tls: Tls, hosts: Iterable[Host]) -> Mapping[str, tuple[str, ...]]:
    if tls.names:
        return {name: (name,) for name in tls.names}
    return {host.name: (host.name, host.address) for host in hosts}


def check_trust(
    certificate: Path, key: Path, authority: Path | None, wanted: Mapping[str, tuple[str, ...]]
) -> None:
    """
    Connect to each name in memory, as a client that trusts *authority* or this machine's store.

    Args:
        certificate: PEM file of the certificate and its signers.
        wanted: By label, names of which the client uses one.

    Raises:
        CertificateProblem: The client refuses.
    """
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError, OSError) as error:
        reason = getattr(error, "reason", None) or "it changed while it was read"
        raise CertificateProblem(f"OpenSSL refuses it: {reason}", "get another one") from None
    try:
        if authority is not None and authority.exists() and not authority.is_file():
            raise OSError(errno.EINVAL, "a folder, a pipe or a device")  # OpenSSL would wait
        client = ssl.create_default_context(cafile=authority)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "strerror", None) or "not PEM"
        why = f"service.tls.authority: {authority}: {reason}"
        fix = "name the PEM file of the authorities that clients trust"
        raise CertificateProblem(why, fix) from None
    for label, names in wanted.items():
        if not any(_accepts(client, server, name) for name in names):
            raise CertificateProblem(
                f"it is not for {' or '.join(dict.fromkeys(names))}",
                f"get one that names {label}, or list the names that clients use in "
                "service.tls.names",
            )


def _accepts(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> bool:
    """
    Return whether *client* accepts *name*.

    Raises:
        CertificateProblem: It refuses for another reason than the name.
    """
    try:
        shake(server, client, name)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _WRONG_NAME:
            return False
        raise CertificateProblem(
            f"a client would refuse it: {error.verify_message}",
            "add the missing signers to the file, or name in service.tls.authority those that the "
            "clients trust",
        ) from None
    except ssl.SSLError as error:
        raise CertificateProblem(f"OpenSSL refuses it: {error.reason}", "get another") from None
    return True


def _refuse(what: str, path: Path, problem: CertificateProblem) -> NoReturn:
    raise InventoryError(
        f"{what}: not usable", why=f"{path}: {problem.why}", fix=problem.fix
    ) from None
