"""
Fingerprints of the OpenPGP keys of a keyring, so that a key of another folder is noticed early.

Source: RFC 9580, sections 4.2 (packet headers), 5.5.2 and 5.5.4.2 (version 4 keys).
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator

from deploy.errors import InventoryError
from deploy.inventory.schema import Fleet

KEYRING_MAX = 1 << 20  # bytes
_PUBLIC_KEY = 6  # type of the packet of a primary key
_ARMOR = re.compile(
    r"-----BEGIN PGP PUBLIC KEY BLOCK-----\s*?\n(?:[A-Za-z]+: .*\n)*\s*\n?"
    r"([A-Za-z0-9+/=\s]+?)(?:\n=[A-Za-z0-9+/]{4}\s*)?\n?-----END PGP PUBLIC KEY BLOCK-----"
)


def read_keyring(fleet: Fleet) -> bytes:
    """
    Return the keys of NVIDIA's repository, binary; empty where the fleet does not use it.

    Raises:
        InventoryError: The file cannot be read, or has no public key.
    """
    path = fleet.driver.keyring
    if path is None:
        return b""
    what, fix = f"{fleet.path.name}: driver.keyring", "give the public keys of the repository"
    try:
        if path.exists() and not path.is_file():  # opening a pipe could wait for ever
            raise InventoryError(f"{what} cannot be read", why=f"{path}: not a file", fix=fix)
        with path.open("rb") as file:
            return binary_keyring(file.read(KEYRING_MAX))
    except OSError as error:
        why = f"{path}: {error.strerror}"
        raise InventoryError(f"{what} cannot be read", why=why, fix=fix) from error
    except ValueError as error:
        raise InventoryError(f"{what} is not a keyring", why=f"{path}: {error}", fix=fix) from None


def binary_keyring(content: bytes) -> bytes:
    """
    Return *content*, a keyring as text or binary, as apt reads it from a .gpg file.

    Raises:
        ValueError: It has no public key.
    """
    if content.lstrip().startswith(b"-----BEGIN"):
        blocks = _ARMOR.findall(content.decode("ascii", "replace").replace("\r\n", "\n"))
        try:
            content = b"".join(base64.b64decode("".join(b.split()), validate=True) for b in blocks)
        except binascii.Error as error:
            raise ValueError(f"its text is damaged: {error}") from None
    if not fingerprints(content):
        raise ValueError("it has no public key in OpenPGP's format")
    return content


def fingerprints(keyring: bytes) -> tuple[str, ...]:
    """
    Return the fingerprint of each primary key in *keyring*, which is binary.

    Raises:
        ValueError: It is no sequence of OpenPGP packets.
    """
    found = []
    for kind, body in _packets(keyring):
        if kind == _PUBLIC_KEY and body[:1] == b"\x04":
            framed = b"\x99" + len(body).to_bytes(2, "big") + body
            found.append(hashlib.sha1(framed, usedforsecurity=False).hexdigest().upper())
    return tuple(found)


def _packets(keyring: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(keyring):
        first = keyring[at]
        if not first & 0x80:
            raise ValueError("it is not in OpenPGP's format")
        kind, start, size = _new_header(keyring, at) if first & 0x40 else _old_header(keyring, at)
        if size < 0 or start + size > len(keyring):
            raise ValueError("it ends within a packet")
        yield kind, keyring[start : start + size]
        at = start + size


def _new_header(data: bytes, at: int) -> tuple[int, int, int]:
    kind, one = data[at] & 0x3F, data[at + 1 : at + 2]
    if not one:
        return kind, at, -1
    if one[0] < 192:
        return kind, at + 2, one[0]
    if one[0] < 224:
        return kind, at + 3, ((one[0] - 192) << 8) + int.from_bytes(data[at + 2 : at + 3]) + 192
    if one[0] == 255:
        return kind, at + 6, int.from_bytes(data[at + 2 : at + 6])
    return kind, at, -1  # partial lengths are for data, not for keys


def _old_header(data: bytes, at: int) -> tuple[int, int, int]:
    kind, width = (data[at] >> 2) & 0x0F, (1, 2, 4, 0)[data[at] & 3]
    if width == 0:
        return kind, at, -1
    return kind, at + 1 + width, int.from_bytes(data[at + 1 : at + 1 + width])
