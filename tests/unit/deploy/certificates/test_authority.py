"""
A fleet's own authority: made once, and its certificates are those that clients accept.
"""

import ssl
from types import SimpleNamespace

import pytest

from deploy.certificates.authority import (
    AUTHORITY_TIME,
    CERTIFICATE,
    HOST_TIME,
    KEY,
    RENEW_BEFORE,
    create_authority,
    load_authority,
)
from deploy.certificates.wanted import wanted_pairs
from deploy.errors import InventoryError, PreconditionError
from deploy.host.tls import check_file, shake
from deploy.inventory.schema import Tls
from tests.unit.deploy.certificates.builders import DAY, NOW

NAMES = ("n1", "192.0.2.11", "2001:db8::5", "api.example.com")


@pytest.fixture
def folder(tmp_path):
    create_authority(tmp_path / "ca", "gpu", NOW)
    return tmp_path / "ca"


def load(folder, now=NOW):
    return load_authority(folder, now, "gpu.yml: service.tls.authority")


def wanted(folder, now=NOW, *, is_kept=True, is_new=False, names=("api.example.com",)):
    tls = Tls(kind="internal", authority=folder, names=names)
    hosts = [SimpleNamespace(name=f"n{n}", address=f"192.0.2.1{n}") for n in (1, 2)]
    fleet = SimpleNamespace(
        name="gpu", path=folder / "gpu.yml", hosts=hosts, service=SimpleNamespace(tls=tls)
    )
    return wanted_pairs(fleet, now, is_kept=is_kept, is_new=is_new)


def test_a_client_that_trusts_it_accepts_each_name(folder, tmp_path):
    """
    Also with the strict checks that Python 3.13 has by default; no other name is accepted.
    """
    pair = load(folder).issue(NAMES, NOW)
    path = tmp_path / "n1.pem"
    path.write_text(pair.pem.reveal())
    assert check_file(path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.create_default_context(cafile=folder / CERTIFICATE)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in NAMES:
        shake(server, client, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(server, client, "n2")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(server, ssl.create_default_context(), "n1")


def test_its_files_are_for_the_operator_alone(folder):
    """
    Directory 0700, all files 0600; keys of hosts too.
    """
    wanted(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {CERTIFICATE, KEY, "n1.pem", "n2.pem"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def test_it_is_made_once(folder):
    """
    A second one would replace what clients trust.
    """
    before = (folder / KEY).read_bytes()
    with pytest.raises(PreconditionError):
        create_authority(folder, "gpu", NOW)
    assert (folder / KEY).read_bytes() == before


def test_no_directory_in_use_is_made_private(tmp_path):
    """
    A fleet file of somebody else may name any directory.
    """
    other = tmp_path / "other"
    other.mkdir(mode=0o755)
    (other / "file").touch()
    with pytest.raises(PreconditionError):
        create_authority(other, "gpu", NOW)
    assert other.stat().st_mode & 0o777 == 0o755


def test_certificates_stay_until_they_have_to_be_renewed(folder):
    """
    The same while they last, new ones 30 days before their end, for other names, and when asked.
    """
    first = wanted(folder)
    assert {name: pair.leaf for name, pair in wanted(folder, NOW + DAY).items()} == {
        name: pair.leaf for name, pair in first.items()
    }
    before = HOST_TIME - RENEW_BEFORE - DAY
    assert wanted(folder, NOW + before)["n1"].leaf == first["n1"].leaf
    assert wanted(folder, NOW + before + DAY)["n1"].leaf != first["n1"].leaf
    last = NOW + AUTHORITY_TIME - RENEW_BEFORE  # of the authority, whose end is that of the pair
    assert wanted(folder, last)["n1"].leaf == wanted(folder, last + DAY)["n1"].leaf
    second = wanted(folder, is_new=True)
    assert second["n1"].leaf != first["n1"].leaf
    assert wanted(folder)["n1"].leaf == second["n1"].leaf
    assert wanted(folder, names=("other.example.com",))["n1"].leaf != second["n1"].leaf


def test_a_check_writes_nothing(folder):
    """
    `inv provision --check` shows that a certificate is missing, and issues none.
    """
    assert wanted(folder, is_kept=False).keys() == {"n1", "n2"}
    assert not (folder / "issued").exists()


def test_a_damaged_certificate_is_issued_again(folder):
    """
    What is stored is a cache: any damage leads to a new one.
    """
    first = wanted(folder)["n1"].leaf
    path = folder / "issued" / "gpu" / "n1.pem"
    for text in ("", "nothing", path.read_text()[:-200], path.read_text() * 1000):
        path.write_text(text)
        assert wanted(folder, is_kept=False)["n1"].leaf != first


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda f: (f / KEY).unlink(), "does not exist"),
        (lambda f: (f / KEY).chmod(0o644), "its mode is 0644"),
        (lambda f: (f / CERTIFICATE).write_text("nothing"), "no certificate in PEM"),
        (lambda f: (f / CERTIFICATE).unlink(), "No such file"),
        (lambda f: (f / CERTIFICATE).write_bytes((f / CERTIFICATE).read_bytes() * 2), "many"),
    ],
)
def test_an_authority_that_cannot_be_used_is_refused(folder, damage, why):
    """
    Before any host is reached; a missing one is never replaced by a new one.
    """
    damage(folder)
    with pytest.raises(InventoryError) as caught:
        wanted(folder)
    assert why in caught.value.why
    assert "service.tls.authority" in caught.value.what


def test_an_expired_authority_is_refused(folder):
    """
    Its certificates would be refused by clients.
    """
    with pytest.raises(InventoryError, match="cannot be used"):
        load(folder, NOW + 4000 * DAY)
