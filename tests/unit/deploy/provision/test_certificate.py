"""
The certificate of the public port among the resources of a host.
"""

import base64
import hashlib
import json
import subprocess
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from deploy.certificates import acme
from deploy.certificates.authority import Authority
from deploy.host import layout
from deploy.host.files import UNFINISHED
from deploy.host.protocol import CertificateInstalled, CertificateSet, PathFacts
from deploy.host.tls import NEXT_NAME
from deploy.inventory.schema import Tls
from deploy.provision import operations
from deploy.provision.certificate_resources import AcmeIssuer, Certificate, Issuer
from deploy.provision.concerns import plan_resources
from deploy.provision.differences import fact_query, refusal_of, steps_to
from deploy.provision.host_program import host_config
from deploy.provision.resource_set import ResourceSet
from deploy.provision.tls import with_certificate
from tests.unit.deploy.certificates.builders import DAY, NOW, make_authority
from tests.unit.deploy.provision.builders import make_facts, make_spec

TLS = Tls(kind="internal", authority="/ca")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority()


def spec_with(authority):
    return replace(make_spec(tls=TLS), certificate=authority.issue(("n1",), NOW))


def changes(resource_set, facts):
    return {step.resource.name: step.difference for step in steps_to(resource_set, facts)}


def test_it_is_placed_before_the_configuration_that_names_it(authority):
    """
    HAProxy's check of the configuration reads it.
    """
    names = [resource.name for resource in plan_resources(spec_with(authority)).placed]
    order = [
        layout.HOST_PROGRAM,
        layout.CERTIFICATES,
        layout.CERTIFICATE,
        "/etc/haproxy/haproxy.cfg",
    ]
    assert [name for name in names if name in order] == order


def test_another_certificate_is_a_change_of_its_file_alone(authority):
    """
    HAProxy is not reloaded: its configuration is the same for each certificate.
    """
    old, new = (plan_resources(spec_with(authority)) for _ in range(2))
    facts = make_facts(old)
    assert changes(old, facts) == {}
    [(name, difference)] = changes(new, facts).items()
    assert name == layout.CERTIFICATE
    assert difference.change.startswith("new certificate, valid until 20")
    assert difference.diff is None


def test_hosts_of_a_row_differ_in_their_certificate_alone(authority):
    """
    Planned once for all of them: the same as planned with each certificate.
    """
    first, second = spec_with(authority), spec_with(authority)
    assert with_certificate(plan_resources(first), second.certificate) == plan_resources(second)
    assert plan_resources(first) != plan_resources(second)


def test_wider_rights_are_a_change(authority):
    """
    Only root may read the key.
    """
    resources = plan_resources(spec_with(authority))
    facts = make_facts(resources)
    wider = replace(facts.paths[layout.CERTIFICATE], mode="0644")
    facts = replace(facts, paths={**facts.paths, layout.CERTIFICATE: wider})
    assert changes(resources, facts)[layout.CERTIFICATE].change == "mode 0644 → 0600"


def internal_spec(authority):
    pem = authority.certificate.public_bytes(Encoding.PEM).decode()
    return replace(spec_with(authority), issuer=Issuer(pem=pem, now=NOW))


def facts_with(resources, certificate):
    """
    Return the facts of a host with another certificate than the wanted one.
    """
    facts = make_facts(resources)
    own = replace(facts.paths[layout.CERTIFICATE], mac="0" * 64, certificate=certificate)
    return replace(facts, paths={**facts.paths, layout.CERTIFICATE: own})


def test_a_host_keeps_what_another_operator_issued(authority):
    """
    Two operators with copies of the authority never replace each other's certificates.
    """
    resources, of_files = (
        plan_resources(spec) for spec in (internal_spec(authority), spec_with(authority))
    )
    for on_host, is_kept in (
        (authority.issue(("n1",), NOW - 59 * DAY), True),
        (authority.issue(("n1",), NOW - 61 * DAY), False),  # 29 days are left
        (authority.issue(("n2",), NOW), False),
        (make_authority("other").issue(("n1",), NOW), False),
    ):
        text = base64.b64encode(on_host.leaf.public_bytes(Encoding.DER)).decode()
        assert (changes(resources, facts_with(resources, text)) == {}) == is_kept
        assert layout.CERTIFICATE in changes(of_files, facts_with(of_files, text))


def test_a_second_authority_of_the_fleet_replaces_no_certificate(authority):
    """
    Another operator made one without the key of the first: clients trust that alone.
    """
    resources = plan_resources(internal_spec(authority))
    for of, is_refused in ((make_authority(), True), (make_authority("x"), False)):
        leaf = of.issue(("n1",), NOW).leaf.public_bytes(Encoding.DER)
        refusal = refusal_of(resources, facts_with(resources, base64.b64encode(leaf).decode()))
        assert (refusal is not None) == is_refused
        if refusal is not None:
            assert layout.CERTIFICATE in refusal.why
            assert "service.tls.authority" in refusal.fix
            assert "inv certs.renew" in refusal.fix


@pytest.mark.parametrize("text", [None, "", "not base64", "AAAA", "A" * 100_000])
def test_a_certificate_that_cannot_be_read_is_replaced(authority, text):
    """
    The host, which may be hostile, sent it; None where its file cannot be served.
    """
    resources = plan_resources(internal_spec(authority))
    found = changes(resources, facts_with(resources, text))
    assert found[layout.CERTIFICATE].change.startswith("new certificate")


def test_a_change_says_which_certificate_it_replaces(authority):
    """
    So that one which another operator installs between the look and the change stays.
    """
    resources = plan_resources(internal_spec(authority))
    [resource] = [one for one in resources.placed if isinstance(one, Certificate)]
    leaf = authority.issue(("n1",), NOW).leaf
    der = leaf.public_bytes(Encoding.DER)
    facts = facts_with(resources, base64.b64encode(der).decode())
    assert resource.replaces(facts) == hashlib.sha256(der).hexdigest()
    for unreadable in (None, facts_with(resources, None), facts_with(resources, "AAAA")):
        assert resource.replaces(unreadable) is None


@pytest.mark.parametrize("name", [NEXT_NAME, f"{UNFINISHED}{NEXT_NAME}"])
def test_a_replacement_that_was_cut_off_is_a_change(authority, name):
    """
    The host program finishes it; the port may show another certificate than the file.
    """
    resources = plan_resources(spec_with(authority))
    facts = make_facts(resources)
    listings = {**facts.listings, layout.CERTIFICATES: {"public.pem": 1}}
    assert changes(resources, replace(facts, listings=listings)) == {}
    listings[layout.CERTIFICATES][name] = 1
    found = changes(resources, replace(facts, listings=listings))
    assert found[layout.CERTIFICATE].change == "a replacement that was cut off"


@pytest.mark.parametrize("wrong", ["mode", "leftover", "nothing"])
def test_a_placeholder_is_never_sent_over_a_certificate(authority, wrong):
    """
    From a machine without certbot's folder: clients of that host would all fail.
    """
    placeholder = acme.placeholder(("n1",), NOW)
    spec = replace(spec_with(authority), certificate=placeholder, issuer=AcmeIssuer(now=NOW))
    resources = plan_resources(spec)
    own = authority.issue(("n1",), NOW).leaf
    text = base64.b64encode(own.public_bytes(Encoding.DER)).decode()
    facts = facts_with(resources, text)
    if wrong == "mode":
        wider = replace(facts.paths[layout.CERTIFICATE], mode="0644")
        facts = replace(facts, paths={**facts.paths, layout.CERTIFICATE: wider})
    if wrong == "leftover":
        listings = {**facts.listings, layout.CERTIFICATES: {"public.pem": 1, NEXT_NAME: 1}}
        facts = replace(facts, listings=listings)
    assert layout.CERTIFICATE not in changes(resources, facts)
    expired = authority.issue(("n1",), NOW - 400 * DAY).leaf
    text = base64.b64encode(expired.public_bytes(Encoding.DER)).decode()
    assert layout.CERTIFICATE in changes(resources, facts_with(resources, text))


def test_without_tls_the_key_leaves_the_host():
    """
    After HAProxy has loaded a configuration that does not name it; with every draft beside it.
    """
    resources = plan_resources(make_spec())
    facts = make_facts(resources)
    assert changes(resources, facts) == {}
    left = PathFacts(type="directory", mode="0700", owner="root", group="root", size=1)
    facts = replace(facts, paths={**facts.paths, layout.CERTIFICATES: left})
    assert changes(resources, facts)[layout.CERTIFICATES].change == "remove"
    names = [resource.name for resource in resources.running]
    assert names.index(layout.HAPROXY_UNIT) < names.index(layout.CERTIFICATES)


def test_a_directory_is_removed_with_all_that_is_in_it(tmp_path):
    """
    Links are removed and not followed; what is not there is no error.
    """
    folder, other = tmp_path / "tls", tmp_path / "other"
    folder.mkdir()
    (folder / NEXT_NAME).write_text("a key")
    other.write_text("kept")
    (folder / "link").symlink_to(other)
    [command] = operations.remove._inner(path=str(folder))
    for _ in range(2):
        subprocess.run(["sh", "-c", command.get_raw_value()], check=True)
        assert not folder.exists()
    assert other.read_text() == "kept"


def test_the_key_is_in_no_diff_and_no_repr(authority):
    """
    It is in the resource alone, which travels on standard input; the question has a MAC key.
    """
    spec = spec_with(authority)
    resources = plan_resources(spec)
    key = spec.certificate.key.reveal().splitlines()[1]
    assert key in resources.model_dump_json()  # control: it is there
    for text in (repr(spec), repr(resources), repr(fact_query(resources)), host_config(spec)):
        assert key not in text
        assert "PRIVATE" not in text


def test_the_host_program_knows_whether_its_port_has_tls(authority):
    """
    It asks the public port itself.
    """
    assert json.loads(host_config(spec_with(authority)))["tls"] is True
    assert "tls" not in json.loads(host_config(make_spec()))


def test_it_is_sent_to_the_host_program(authority):
    """
    Never as an argument of a command.
    """
    sent = []

    class Client:
        def call(self, request, *, timeout_s):
            sent.append(request)
            return CertificateInstalled(sha256="0" * 64, served=False)

    spec = spec_with(authority)
    [resource] = [r for r in plan_resources(spec).placed if isinstance(r, Certificate)]
    operations.apply(resource, None, Client(), notes=None)
    assert sent == [CertificateSet(pem=spec.certificate.pem.reveal())]


def test_it_survives_the_way_to_the_worker(authority):
    """
    The worker gets the same resources as JSON.
    """
    resources = plan_resources(spec_with(authority))
    [before] = [r for r in resources.placed if isinstance(r, Certificate)]
    subset = ResourceSet(requirements=(), placed=(before,), running=())
    assert ResourceSet.model_validate_json(subset.model_dump_json()) == subset
