"""
Which certificates a fleet needs of an ACME server, when, and which of two a host keeps.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from deploy.certificates import acme
from deploy.certificates.acme import CertificateOrder
from deploy.certificates.authority import RENEW_BEFORE
from deploy.certificates.pair import pair_of
from deploy.certificates.wanted import wanted_pairs
from deploy.errors import InventoryError
from deploy.inventory.schema import Acme, Tls
from tests.unit.deploy.certificates.builders import (
    DAY,
    NOW,
    key_pem,
    make_authority,
    make_leaf,
    pem_of,
)

NAME = "api.example.com"


def make_fleet(*hosts, others=(), names=(NAME,), **keys):
    """
    Return a fleet of hosts, each (name, address).
    """
    named = [SimpleNamespace(name=name, address=address) for name, address in hosts]
    return SimpleNamespace(
        name="gpu",
        path=SimpleNamespace(name="gpu.yml"),
        hosts=named,
        others=[SimpleNamespace(name=name, address="192.0.2.9") for name in others],
        service=SimpleNamespace(tls=Tls(kind="acme", names=names, **keys)),
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(acme, "FOLDER", tmp_path)
    return tmp_path


def keep(fleet, authority, label="gpu", names=(NAME,), **times):
    """
    Write a certificate of *authority* as certbot does.
    """
    leaf, key = make_leaf(authority, names=names, **times)
    live = acme.certbot_folder(fleet) / "live" / label
    live.mkdir(parents=True, exist_ok=True)
    (live / "fullchain.pem").write_bytes(pem_of(leaf))
    (live / "privkey.pem").write_bytes(key_pem(key))
    return leaf


def test_hosts_that_share_names_share_a_certificate():
    """
    Also those that were not selected: the ACME server may reach any of them.
    """
    fleet = make_fleet(("n1", "192.0.2.1"), others=("n2",), names=("API.example.com.", NAME))
    assert acme.orders(fleet) == (CertificateOrder("gpu", (NAME,), ("n1", "n2")),)


def test_without_names_each_host_has_one_for_its_own():
    """
    Its address where that is a DNS name, else its name.
    """
    fleet = make_fleet(("n1", "N1.example.com"), ("n2.example.com", "192.0.2.2"), names=())
    assert acme.orders(fleet) == (
        CertificateOrder("n1", ("n1.example.com",), ("n1",)),
        CertificateOrder("n2.example.com", ("n2.example.com",), ("n2.example.com",)),
    )


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "gpu-1"])
def test_a_host_without_a_dns_name_is_refused(address):
    """
    By its key in the fleet file.
    """
    with pytest.raises(InventoryError, match=r"hosts\.n1: no DNS name"):
        acme.orders(make_fleet(("n1", address), names=()))


def test_each_server_has_a_folder_of_its_own():
    """
    What a test server issued is never taken for the certificate of another one.
    """
    servers = ("https://a.example.com/dir", "https://a.example.com:8443/dir", "https://b/dir")
    folders = {
        acme.certbot_folder(make_fleet(acme=Acme.model_construct(server=server)))
        for server in servers
    }
    assert len(folders) == 3
    assert all(path.parent == acme.FOLDER / "gpu" for path in folders)


@pytest.mark.parametrize(
    ("life", "left", "is_due"),
    [(90, 31, False), (90, 30, True), (6, 3, False), (6, 2, True), (365, 31, False)],
)
def test_the_last_third_or_thirty_days_are_for_renewal(life, left, is_due):
    """
    A certificate of 6 days is renewed when 2 are left.
    """
    begins = NOW - (life - left) * DAY
    leaf, _ = make_leaf(make_authority(), begins=begins, ends=begins + life * DAY)
    assert acme.is_due(leaf, NOW) == is_due


def test_only_what_is_missing_due_or_for_other_names_is_obtained(folder):
    """
    The file of each is that of certbot.
    """
    fleet, authority = make_fleet(("n1", "192.0.2.1")), make_authority()
    [order] = acme.orders(fleet)

    def needs_new(**changes):
        pair = acme.stored_pair(fleet, order, NOW)
        return acme.needs_new(pair, replace(order, **changes), NOW)

    assert needs_new()
    keep(fleet, authority)
    assert not needs_new()
    assert needs_new(names=(NAME, "b.example.com"))
    keep(fleet, authority, begins=NOW - 60 * DAY, ends=NOW + RENEW_BEFORE)
    assert needs_new()


@pytest.mark.parametrize("damage", ["expired", "empty", "key", "folder"])
def test_files_that_cannot_be_used_count_as_none(folder, damage):
    """
    certbot was killed, or the disk was full.
    """
    fleet = make_fleet(("n1", "192.0.2.1"))
    [order] = acme.orders(fleet)
    keep(fleet, make_authority())
    live = acme.live_folder(fleet, order)
    assert acme.stored_pair(fleet, order, NOW) is not None
    if damage == "expired":
        assert acme.stored_pair(fleet, order, NOW + 91 * DAY) is None
        return
    path = live / ("privkey.pem" if damage == "key" else "fullchain.pem")
    path.unlink()
    if damage == "empty":
        path.write_text("")
    elif damage == "key":
        path.write_bytes(key_pem(make_leaf(make_authority())[1]))
    else:
        path.mkdir()
    assert acme.stored_pair(fleet, order, NOW) is None


def test_before_the_first_certificate_hosts_get_a_placeholder(folder, tmp_path):
    """
    HAProxy starts with it; afterwards each gets the certificate.
    """
    authority = make_authority()
    (tmp_path / "ca.pem").write_bytes(pem_of(authority.certificate))
    fleet = make_fleet(
        ("n1", "192.0.2.1"), ("n2", "192.0.2.2"), others=("n3",), authority=tmp_path / "ca.pem"
    )
    pairs = wanted_pairs(fleet, NOW, is_kept=True)
    assert set(pairs) == {"n1", "n2"}
    assert all(acme.is_placeholder(pair.leaf) for pair in pairs.values())
    leaf = keep(fleet, authority)
    assert {pair.leaf for pair in wanted_pairs(fleet, NOW, is_kept=True).values()} == {leaf}


def issued_by(organisation, names=(NAME,), **times):
    """
    Return a certificate of an authority of *organisation*.
    """
    return _issued([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)], names, times)


def of_issuer(common_name, **times):
    """
    Return a certificate of an authority without an organisation; None: without any name.
    """
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    return _issued(attributes, (NAME,), times)


def _issued(attributes, names, times):
    authority, name = make_authority(), x509.Name(attributes)
    named = SimpleNamespace(certificate=SimpleNamespace(subject=name), key=authority.key)
    leaf, key = make_leaf(named, names=names, **times)
    return pair_of((leaf,), key).leaf


OURS = issued_by("Encrypt", ends=NOW + 60 * DAY)
PLACEHOLDER = acme.placeholder((NAME,), NOW).leaf


@pytest.mark.parametrize(
    ("on_host", "wanted", "is_kept"),
    [
        # Another machine, or CI, renewed since.
        (issued_by("Encrypt", ends=NOW + 80 * DAY), OURS, True),
        (issued_by("Encrypt", (NAME, "b.example.com"), ends=NOW + 80 * DAY), OURS, True),
        (issued_by("Encrypt", ends=NOW + 50 * DAY), OURS, False),
        (issued_by("Encrypt", ("b.example.com",), ends=NOW + 80 * DAY), OURS, False),
        (issued_by("(STAGING) Encrypt", ends=NOW + 80 * DAY), OURS, False),
        # Issued later for a shorter time, and earlier for a longer one: a lost key, a new profile.
        (issued_by("Encrypt", begins=NOW - DAY / 2, ends=NOW + 6 * DAY), OURS, True),
        (issued_by("Encrypt", begins=NOW - 2 * DAY, ends=NOW + 80 * DAY), OURS, False),
        # Issuers without an organisation have to be the same.
        (of_issuer("one CA", ends=NOW + 80 * DAY), of_issuer("another CA"), False),
        (of_issuer("one CA", ends=NOW + 91 * DAY), of_issuer("one CA"), True),
        (of_issuer("one CA", ends=NOW + 80 * DAY), OURS, False),
        (issued_by("Encrypt", ends=NOW + 91 * DAY), of_issuer("one CA"), False),
        (of_issuer(None, ends=NOW + 91 * DAY), of_issuer(None), False),
        # Nothing valid gives way to a placeholder, also where the names have changed.
        (issued_by("Encrypt", ("b.example.com",), ends=NOW + DAY), PLACEHOLDER, True),
        (issued_by("Encrypt", ends=NOW - DAY, begins=NOW - 9 * DAY), PLACEHOLDER, False),
        (PLACEHOLDER, OURS, False),
        (acme.placeholder((NAME,), NOW).leaf, PLACEHOLDER, True),
        (acme.placeholder((NAME,), NOW - 6 * DAY).leaf, PLACEHOLDER, False),
    ],
)
def test_a_host_keeps_what_is_as_good(on_host, wanted, is_kept):
    """
    Two machines with an account each never replace each other's certificates in turn.
    """
    assert acme.keeps(on_host, wanted, NOW) == is_kept


def test_no_client_accepts_a_placeholder_and_nobody_can_sign_another():
    """
    Its authority was never written down; it ends before `inv status` stops to warn of it.
    """
    pair = acme.placeholder((NAME,), NOW)
    assert pair.leaf.issuer != pair.leaf.subject
    assert pair.leaf.not_valid_after_utc - NOW == acme.PLACEHOLDER_TIME
