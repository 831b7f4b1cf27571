from deploy.certificates.authority import CERTIFICATE, create_authority
from deploy.host import layout
from deploy.inventory.schema import Tls
from deploy.provision import fleet_specs
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import Venv
from tests.unit.deploy.certificates.builders import NOW
from tests.unit.deploy.inventory.builders import make_fleet
from tests.unit.deploy.provision.builders import find, make_spec


def key_of_a_run(tmp_path):
    fleet = make_fleet(tmp_path)
    sets = fleet_specs.resource_sets(fleet, b"program", {})
    [resources] = {id(one): one for one in sets.values()}.values()
    return find(resources, layout.ENVIRONMENT).mac_key


def test_each_run_compares_secrets_under_a_key_of_its_own(tmp_path, monkeypatch):
    """
    32 random bytes: what one run asked and was answered says nothing in another.
    """
    spec = make_spec()
    monkeypatch.setattr(fleet_specs, "cached_lock", lambda row, **_: spec.lock)
    monkeypatch.setattr(fleet_specs, "read_allowed_signers", lambda fleet: spec.allowed_signers)
    monkeypatch.setattr(fleet_specs, "uv_program", lambda: spec.uv)
    first, second = key_of_a_run(tmp_path), key_of_a_run(tmp_path)
    assert first != second
    assert {len(bytes.fromhex(key)) for key in (first, second)} == {32}


def test_each_host_has_the_certificate_that_was_issued_for_it(tmp_path, monkeypatch):
    """
    The same in the next run; `--check` issues and keeps none.
    """
    spec = make_spec()
    monkeypatch.setattr(fleet_specs, "cached_lock", lambda row, **_: spec.lock)
    monkeypatch.setattr(fleet_specs, "read_allowed_signers", lambda fleet: spec.allowed_signers)
    monkeypatch.setattr(fleet_specs, "uv_program", lambda: spec.uv)
    folder = tmp_path / "slipway-ca"
    create_authority(folder, "test", NOW)
    fleet = make_fleet(tmp_path)
    service = fleet.service.model_copy(update={"tls": Tls(kind="internal", authority=folder)})
    fleet = fleet.model_copy(update={"service": service})

    def pems(**options):
        sets = fleet_specs.resource_sets(fleet, b"program", {}, **options)
        return {name: find(one, layout.CERTIFICATE).pem for name, one in sets.items()}

    pems(is_check=True)
    assert not (folder / "issued").exists()
    first = pems()
    assert len(set(first.values())) == len(fleet.hosts) > 1
    assert pems() == first
    assert pems(is_check=True) == first
    sets = fleet_specs.resource_sets(fleet, b"program", {})
    issuers = {find(one, layout.CERTIFICATE).issuer.pem for one in sets.values()}
    assert issuers == {(folder / CERTIFICATE).read_text()}


def test_hosts_of_one_row_are_fetched_for_once(tmp_path, monkeypatch):
    spec, fetched = make_spec(), []
    fleet = make_fleet(tmp_path)
    venv = Venv(digest=spec.lock.digest, text=spec.lock.text, python="3.11", wheels=None)

    def fetch(row, **_):
        fetched.append(row.name)
        return spec.lock

    monkeypatch.setattr(fleet_specs, "ensure_lock", fetch)
    monkeypatch.setattr(fleet_specs, "ensure_uv", lambda uv: None)
    one = ResourceSet(requirements=(), placed=(venv,), running=())
    wanted = {host.name: one for host in fleet.hosts}
    complete = fleet_specs.with_wheels(fleet, wanted, fleet.hosts, lambda text: None)
    assert len(fleet.hosts) > 1
    assert fetched == [fleet.hosts[0].row]
    assert all(each.placed[0].wheels is not None for each in complete.values())
