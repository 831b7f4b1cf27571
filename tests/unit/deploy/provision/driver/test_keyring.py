"""
Fingerprints of OpenPGP keys, compared with those that gpg computes.
"""

import base64
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.errors import InventoryError
from deploy.provision.driver.keyring import binary_keyring, fingerprints, read_keyring
from tests.unit.deploy.provision.driver.builders import FINGERPRINT, KEYRING

# The public key of Debian 12's stable releases, without its signatures; gpg --show-keys prints
# this fingerprint.
DEBIAN = base64.b64decode(
    "mDMEY865UxYJKwYBBAHaRw8BAQdAd7Z0srwuhlB6JKFkcf4HU4SSS/xcRfwEQWzrcrf6AEo="
)
DEBIAN_FINGERPRINT = "4D64FEC119C2029067D6E791F8D2585B8783D481"


def armored(content, head="Comment: x\n"):
    text = base64.b64encode(content).decode()
    lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return (
        f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n{head}\n{lines}\n=AAAA\n"
        "-----END PGP PUBLIC KEY BLOCK-----\n"
    ).encode()


def test_the_fingerprint_is_gpgs():
    assert fingerprints(DEBIAN) == (DEBIAN_FINGERPRINT,)


def test_every_primary_key_is_named():
    """
    With old and new headers; other packets, such as names and signatures, are skipped.
    """
    name = bytes([0xB4, 4]) + b"name"
    new = bytes([0xC6, len(KEYRING) - 2]) + KEYRING[2:]
    assert fingerprints(DEBIAN + name + new + name) == (DEBIAN_FINGERPRINT, FINGERPRINT)


@pytest.mark.parametrize("head", ["", "Comment: x\nVersion: y\n"])
def test_a_keyring_as_text_is_the_same_as_the_binary_one(head):
    assert binary_keyring(armored(DEBIAN, head)) == DEBIAN
    assert binary_keyring(armored(DEBIAN, head).replace(b"\n", b"\r\n")) == DEBIAN


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"<html>404</html>",
        bytes([0xB4, 4]) + b"name",
        DEBIAN[:-1],
        bytes([0xC6, 224]) + b"x" * 40,
        bytes([0x9B]) + b"x" * 40,
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!\n-----END PGP PUBLIC KEY BLOCK-----\n",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
    ],
)
def test_what_is_no_keyring_is_refused(content):
    with pytest.raises(ValueError, match=r"OpenPGP|packet|damaged"):
        binary_keyring(content)


def fleet(path):
    return SimpleNamespace(
        path=Path("prod.yml"), driver=SimpleNamespace(keyring=path and Path(path))
    )


def test_a_keyring_that_cannot_be_read_is_one_error(tmp_path):
    """
    A missing file, a directory, and a file without keys.
    """
    assert read_keyring(fleet(None)) == b""
    good = tmp_path / "good.gpg"
    good.write_bytes(armored(DEBIAN))
    assert read_keyring(fleet(good)) == DEBIAN
    bad = tmp_path / "bad.gpg"
    bad.write_bytes(b"hello")
    for path in (tmp_path / "none.gpg", tmp_path, bad):
        with pytest.raises(InventoryError, match=r"driver\.keyring"):
            read_keyring(fleet(path))
