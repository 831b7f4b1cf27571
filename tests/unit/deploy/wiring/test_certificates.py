"""
Renewal on hosts: each has its own certificate, and one error names those that have none.
"""

from types import SimpleNamespace

import pytest

from deploy.errors import CommandFailed, InventoryError, TransportError
from deploy.host.protocol import CertificateInstalled
from deploy.inventory.schema import Tls
from deploy.wiring import certificates
from tests.unit.deploy.certificates.builders import NOW, make_authority


class Client:
    def __init__(self, outcome):
        self.outcome, self.pem = outcome, None

    def call(self, request, *, timeout_s):
        self.pem = request.pem
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return CertificateInstalled(sha256="0" * 64, served=self.outcome)


def renewed(**outcomes):
    authority = make_authority()
    pairs = {name: authority.issue((name,), NOW) for name in outcomes}
    on = SimpleNamespace(clients={name: Client(outcome) for name, outcome in outcomes.items()})
    return certificates.renew(on, pairs), on.clients


def test_each_host_gets_its_own():
    """
    All of them serve it: no error.
    """
    result, clients = renewed(n1=True, n2=True)
    assert result.error is None
    assert {name: client.pem for name, client in clients.items()} == {
        name: pair.pem.reveal() for name, pair in result.pairs.items()
    }
    assert clients["n1"].pem != clients["n2"].pem


def test_a_host_that_does_not_serve_it_is_an_error():
    """
    HAProxy does not run there; provisioning starts it.
    """
    result, _ = renewed(n1=True, n2=False)
    assert result.error.exit_code == CommandFailed.exit_code
    assert result.error.host == "n2"
    assert result.error.fix == "inv provision --limit n2"


def test_one_error_names_all_hosts():
    """
    Those that were lost too.
    """
    lost = TransportError("n3: lost", why="timed out", fix="ping it", host="n3")
    result, _ = renewed(n1=True, n2=False, n3=lost)
    assert result.error.what == "n2, n3: no new certificate"
    assert "timed out" in result.error.why
    assert "PRIVATE" not in str(result.error)


def fleet(**tls):
    return SimpleNamespace(
        name="gpu",
        path=SimpleNamespace(name="gpu.yml"),
        hosts=(),
        service=SimpleNamespace(tls=Tls(**tls)),
    )


def test_a_fleet_without_tls_is_refused():
    """
    Before any host is reached.
    """
    with pytest.raises(InventoryError, match="plain HTTP"):
        certificates.new_pairs(fleet())


@pytest.mark.parametrize("tls", [{}, {"kind": "files", "certificate": "/c", "key": "/k"}])
def test_only_an_authority_of_the_fleet_is_made(tls):
    """
    With the key to set.
    """
    with pytest.raises(InventoryError, match="no authority of its own"):
        certificates.create(fleet(**tls))


def test_an_authority_is_made_in_the_directory_that_the_fleet_names(tmp_path):
    """
    The file that clients trust is returned.
    """
    made = certificates.create(fleet(kind="internal", authority=tmp_path / "ca"))
    assert made.read_text().startswith("-----BEGIN CERTIFICATE-----")
    assert "PRIVATE" not in made.read_text()
