"""
TLS with the standard library alone: checks a certificate file, and is a client of the public port.
"""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path

from deploy.host.files import UNFINISHED
from deploy.host.trusted_files import read_plain

NEXT_NAME = f"{UNFINISHED}next.pem"  # beside the certificate that it will replace
_BLOCK = re.compile(
    r"-----BEGIN CERTIFICATE-----\n(?:[A-Za-z0-9+/=]{1,76}\n)+-----END CERTIFICATE-----\n"
)
_PARTIAL_CHAIN = 0x80000  # ssl.VERIFY_X509_PARTIAL_CHAIN, which Python has since 3.10
_REASONS = {  # of OpenSSL, which names its functions rather than the file
    "NO_CERTIFICATE_ASSIGNED": "the private key belongs to another certificate",
    "KEY_VALUES_MISMATCH": "the private key belongs to another certificate",
    "KEY_TYPE_MISMATCH": "the private key belongs to another certificate",
    "EE_KEY_TOO_SMALL": "the key is too weak: RSA needs 2048 bits",
}
_FLIGHTS = 8  # more than any handshake takes
DER_MAX = 16 << 10  # bytes of one certificate


def first_certificate(pem: str) -> bytes:
    """
    Return the first certificate of *pem*, in DER: the one that a server shows as its own.

    Raises:
        ValueError: There is none, or it has more than DER_MAX bytes.
    """
    block = _BLOCK.search(pem)
    der = ssl.PEM_cert_to_DER_cert(block[0]) if block else b""
    if not 0 < len(der) <= DER_MAX:
        raise ValueError(f"no certificate of at most {DER_MAX} bytes in PEM")
    return der


def check_file(path: Path) -> bytes:
    """
    Return the first certificate of *path*, in DER, after a handshake in memory.

    The server of that handshake has the file, and its client trusts this certificate alone.  So
    the key is that of the certificate, the certificate is one of a server, and it is valid now.
    OpenSSL's security level refuses weak keys.

    Raises:
        ValueError: The file cannot be served; the text says why.
    """
    der = first_certificate(read_plain(path).decode("ascii", "replace"))
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without a function OpenSSL asks the terminal for the password of an encrypted key.
        server.load_cert_chain(path, password=_refuse_encrypted)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= _PARTIAL_CHAIN
        client.load_verify_locations(cadata=der)
        shake(server, client)
    except ssl.SSLCertVerificationError as error:
        raise ValueError(error.verify_message) from None
    except ssl.SSLError as error:
        reason = error.reason or "OpenSSL cannot read it"
        raise ValueError(_REASONS.get(reason, reason)) from None
    return der


def shake(server: ssl.SSLContext, client: ssl.SSLContext, server_name: str | None = None) -> None:
    """
    Complete a TLS handshake in memory.

    Args:
        server_name: DNS name or IP address that the client checks, if its context says so.

    Raises:
        ssl.SSLError: One side refuses.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    unfinished = [
        client.wrap_bio(to_client, to_server, server_hostname=server_name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(_FLIGHTS):
        for end in list(unfinished):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            unfinished.remove(end)
        if not unfinished:
            return
    raise ssl.SSLError("the handshake did not end")


def wrap(connection: socket.socket) -> ssl.SSLSocket:
    """
    Return *connection* as the client of a TLS server that it does not verify.

    The caller compares the server's certificate, see `shown`.  A failure closes *connection*.

    Raises:
        OSError: The other side does not complete a handshake within the connection's timeout.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    try:
        return client.wrap_socket(connection)
    except BaseException:
        connection.close()
        raise


def shown(connection: ssl.SSLSocket) -> bytes:
    """
    Return the certificate of the other side, in DER.
    """
    return connection.getpeercert(binary_form=True) or b""


def _refuse_encrypted() -> str:
    raise ValueError("the private key is encrypted")
