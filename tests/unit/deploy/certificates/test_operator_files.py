"""
The operator's certificate and key are checked before a host is reached, one clear error each.
"""

import os
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.certificates.operator_files import read_files
from deploy.errors import InventoryError
from deploy.inventory.schema import Tls
from tests.unit.deploy.certificates.builders import (
    DAY,
    NOW,
    key_pem,
    make_authority,
    make_intermediate,
    make_leaf,
    pem_of,
    rsa_key,
)


class Files:
    """
    A valid pair in files, and a fleet that names them; tests replace parts.
    """

    def __init__(self, folder):
        self.folder = folder / "slipway"
        self.folder.mkdir()
        self.root = make_authority("company")
        self.middle = make_intermediate(self.root)
        self.leaf, self.key = make_leaf(self.middle)
        self.write("ca.pem", pem_of(self.root.certificate))
        self.write("tls.pem", pem_of(self.leaf, self.middle.certificate))
        self.write("tls.key", key_pem(self.key), 0o600)
        self.names = ("api.example.com",)
        self.hosts = [SimpleNamespace(name="n1", address="192.0.2.11")]

    def write(self, name, data, mode=0o644):
        path = self.folder / name
        path.write_bytes(data)
        path.chmod(mode)

    def give(self, leaf, key, *above):
        self.write("tls.pem", pem_of(leaf, *above))
        self.write("tls.key", key_pem(key), 0o600)

    def read(self, **changes):
        values = {
            "kind": "files",
            "certificate": self.folder / "tls.pem",
            "key": self.folder / "tls.key",
            "authority": self.folder / "ca.pem",
            "names": self.names,
        }
        tls = Tls(**values | changes)
        fleet = SimpleNamespace(path=self.folder / "gpu.yml", hosts=self.hosts)
        return read_files(fleet, tls, NOW)

    def refusal(self, **changes):
        with pytest.raises(InventoryError) as caught:
            self.read(**changes)
        assert caught.value.what.startswith("gpu.yml: service.tls.")
        return caught.value


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_a_pair_that_clients_accept_is_returned(files):
    """
    The certificates in their order, then the key; the key is not in the text of the value.
    """
    pair = files.read()
    text = pair.pem.reveal()
    assert text == (pem_of(files.leaf, files.middle.certificate) + key_pem(files.key)).decode()
    assert "\n\n" not in text
    assert "PRIVATE" not in repr(pair) + repr(pair.pem)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda f: f.write("tls.pem", b""), "it is empty"),
        (lambda f: f.write("tls.pem", b"x" * 10_000_000), "more than 48 KiB"),
        (lambda f: f.write("tls.pem", f.leaf.public_bytes(Encoding.DER)), "no certificate in PEM"),
        (
            lambda f: f.write("tls.pem", pem_of(f.leaf).replace(b"MII", b"MIA")),
            "a certificate in it cannot be read",
        ),
        (lambda f: f.write("tls.pem", pem_of(f.leaf) + key_pem(f.key)), "contains a private key"),
        (lambda f: f.write("tls.pem", pem_of(f.leaf) * 11), "more than 10 certificates"),
        (lambda f: f.write("tls.pem", pem_of(f.middle.certificate, f.leaf)), "another certificate"),
        (
            lambda f: f.write("tls.pem", pem_of(f.leaf, f.root.certificate)),
            "does not sign the one before it",
        ),
        (lambda f: f.write("tls.pem", pem_of(f.leaf)), "a client would refuse it"),
        (lambda f: (f.folder / "tls.pem").unlink(), "No such file"),
        (lambda f: f.write("tls.key", key_pem(f.key, b"secret"), 0o600), "the key is encrypted"),
        (lambda f: f.write("tls.key", b"no key\n", 0o600), "no private key in PEM"),
        (lambda f: f.write("tls.key", key_pem(rsa_key(2048)), 0o600), "another certificate"),
        (lambda f: f.write("tls.key", b"x" * 10_000_000, 0o600), "more than"),
        (lambda f: f.write("tls.key", key_pem(f.key), 0o640), "its mode is 0640"),
        (lambda f: f.write("ca.pem", b"nothing"), "service.tls.authority"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(files, damage, why):
    """
    Each error names the key of the fleet file, and has no part of a private key.
    """
    damage(files)
    error = files.refusal()
    assert why in error.why
    assert error.fix
    body = key_pem(files.key).decode().splitlines()[1]
    assert body not in str(error)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda f: {"ends": NOW - DAY, "begins": NOW - 2 * DAY}, "expired at"),
        (lambda f: {"begins": NOW + DAY}, "begins at"),
        (lambda f: {"key": rsa_key(1024)}, "an RSA key of 1024 bits"),
        (lambda f: {"key": ec.generate_private_key(ec.SECP192R1())}, "an ECDSA key on secp192r1"),
        (lambda f: {"key": ed25519.Ed25519PrivateKey.generate()}, "neither RSA nor ECDSA"),
        (lambda f: {"alternative": []}, "no subject alternative names"),
        (lambda f: {"names": ("api.example.com", "a\x1b[2Jb")}, "a name that is none"),
        (lambda f: {"names": ("api.example.com", "a\nb")}, "a name that is none"),
        (lambda f: {"names": ("other.example.com",)}, "it is not for api.example.com"),
    ],
)
def test_a_certificate_that_clients_refuse_is_refused(files, change, why):
    """
    Expired, weak, without names, with names that are none, or for others.
    """
    leaf, key = make_leaf(files.middle, **change(files))
    files.give(leaf, key, files.middle.certificate)
    error = files.refusal()
    assert why in error.why
    assert "\x1b" not in str(error)


def test_without_names_it_has_to_be_for_each_host(files):
    """
    By its name or its address.
    """
    assert "it is not for n1 or 192.0.2.11" in files.refusal(names=()).why
    from ipaddress import ip_address

    leaf, key = make_leaf(files.middle, alternative=[x509.IPAddress(ip_address("192.0.2.11"))])
    files.give(leaf, key, files.middle.certificate)
    assert files.read(names=()).leaf == leaf


def test_an_authority_that_clients_do_not_trust_is_named(files):
    """
    Without service.tls.authority the store of this machine decides.
    """
    error = files.refusal(authority=None)
    assert "a client would refuse it" in error.why
    assert "service.tls.authority" in error.fix


def test_no_private_file_of_another_program_is_read(files):
    """
    A fleet file of somebody else cannot have any key of the operator sent to its hosts.
    """
    other = files.folder.parent / "ssh"
    other.mkdir()
    (other / "id").write_bytes(key_pem(files.key))
    (other / "id").chmod(0o600)
    assert "begins with 'slipway'" in files.refusal(key=other / "id").why


def test_no_pipe_is_waited_for(files):
    """
    A pipe in place of a file ends in an error.
    """
    os.mkfifo(files.folder / "pipe")
    assert "a pipe" in files.refusal(certificate=files.folder / "pipe").why
    assert "a pipe" in files.refusal(authority=files.folder / "pipe").why
