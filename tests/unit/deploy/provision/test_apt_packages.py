"""
Packages that a host lacks, and which sources fit it: decisions alone.
"""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from deploy.inventory.schema import AptSource, Mirrors
from deploy.provision import base
from deploy.provision.apt_packages import AptTransaction, Packages
from deploy.provision.apt_sources import AptSources, Archive, OsRelease, parse_os_release
from deploy.provision.differences import fact_query
from deploy.provision.resource_set import ResourceSet
from tests.unit.deploy.provision.builders import DEBIAN, make_facts, path_like


def facts_of(resource, *, packages=None, paths=None, os_id="debian", codename="bookworm"):
    resources = ResourceSet(requirements=(), placed=(resource,), running=())
    good = make_facts(resources, os_id=os_id, codename=codename)
    query = fact_query(resources)
    known = dict.fromkeys(query.packages) | (packages or {})
    return replace(good, packages=known, paths=dict.fromkeys(query.paths) | (paths or {}))


def test_packages_that_are_missing_are_one_transaction():
    """
    A host without Python gets all of them.
    """
    wanted = Packages(names=("haproxy", "socat"), proxy="http://p:1", no_proxy=("m.example.com",))
    facts = facts_of(wanted, packages={"socat": "1.7"})
    assert wanted.difference(facts).change == "install haproxy"
    assert wanted.transaction(facts).arguments == ("-ihaproxy", "-phttp://p:1", "-nm.example.com")
    assert wanted.transaction(None).install == ("haproxy", "socat")
    assert wanted.difference(facts_of(wanted, packages={"socat": "1", "haproxy": "2"})) is None


@pytest.mark.parametrize(
    "wrong",
    [{"install": ("-o",)}, {"install": ("haproxy=1 -o",)}, {"hold": ("a b",)}, {"remove": ("A",)}],
)
def test_a_name_is_no_option_of_apt(wrong):
    """
    Nor is a version.
    """
    with pytest.raises(ValidationError):
        AptTransaction(**wrong)


def archive(**changes):
    return Archive(**{"named": "mirrors.apt[0]", "uris": ("https://m.example.com/d",)} | changes)


NOBLE = OsRelease(os_id="ubuntu", codename="noble")
MINT = OsRelease(os_id="linuxmint", codename="xia")


@pytest.mark.parametrize(
    ("source", "host", "why"),
    [
        (archive(distribution="debian"), DEBIAN, None),
        (archive(distribution="debian"), NOBLE, "is for debian; the host runs ubuntu noble"),
        (
            archive(suites=("bookworm-updates",), components=("main",)),
            OsRelease(os_id="debian", codename="trixie"),
            "suite bookworm-updates is of Debian 12; the host runs debian trixie",
        ),
        (archive(suites=("jammy/x",), components=("main",)), DEBIAN, "is of Ubuntu 22.04"),
        (archive(suites=("internal",), components=("main",)), MINT, None),
        (archive(suites=("internal",)), MINT, "linuxmint xia is unknown"),
        (archive(suites=("/",), components=()), DEBIAN, None),
    ],
)
def test_a_source_for_another_distribution_is_refused_by_name(source, host, why):
    """
    Before anything on the host changes.
    """
    resource = AptSources(sources=(source,))
    facts = facts_of(resource, os_id=host.os_id, codename=host.codename)
    refusal = resource.refusal(facts)
    if why is None:
        assert refusal is None
    else:
        assert why in refusal.why
        assert refusal.why.startswith("mirrors.apt[0] (https://m.example.com/d)")


def test_a_flat_archive_has_no_components():
    """
    As those of GPU vendors.
    """
    text = AptSources(label="gpu", sources=(archive(suites=("/",), components=()),)).text(DEBIAN)
    assert text.endswith("Suites: /\n")


def test_sources_are_left_alone_without_mirrors():
    """
    And brought back where mirrors.apt has gone; a host without copies is refused by name.
    """
    none = AptSources(sources=())
    file, old = path_like(none, sha256="1"), "/etc/apt/sources.list"
    untouched = facts_of(none, paths={old: file})
    assert none.difference(untouched) is None
    assert none.refusal(untouched) is None

    ours = facts_of(none, paths={none.path: file, none.copies[old]: file})
    assert none.difference(ours).change == "restore /etc/apt/sources.list, remove"
    assert none.refusal(ours) is None

    [one_line] = none.obsolete
    for path in (none.path, one_line):
        lost = facts_of(none, paths={path: file})
        assert f"no copy of the sources that {path} replaced" in none.refusal(lost).why

    both = facts_of(none, paths={old: file, none.path: file, one_line: file})
    assert none.difference(both).change == f"remove, remove {one_line}"
    assert none.refusal(both) is None


def test_sources_that_came_back_beside_ours_are_replaced_again():
    """
    A package of the distribution may write them anew.
    """
    resource = AptSources(sources=(archive(distribution="debian"),))
    facts = facts_of(resource, paths={"/etc/apt/sources.list": path_like(resource, sha256="1")})
    assert resource.difference(facts).change == "create, replace /etc/apt/sources.list"


def test_the_release_of_a_host_without_python_is_read():
    """
    With and without quotes, as os-release(5) allows.
    """
    text = "PRETTY_NAME=\"Ubuntu 24.04\"\nID=ubuntu\nVERSION_CODENAME='noble'\n"
    assert parse_os_release(text) == NOBLE
    assert parse_os_release("") == OsRelease(os_id="", codename="")


def test_the_proxy_is_not_asked_for_hosts_of_no_proxy():
    """
    apt takes names of hosts alone: of a domain it gets those of the mirrors.
    """
    uris = ("https://m.example.com/d", "http://far.example.org/d", "https://[2001:db8::1]/d")
    mirrors = Mirrors(
        apt=(AptSource(uris=uris, distribution="debian"),),
        apt_proxy="http://p:1",
        no_proxy=(".example.com", "10.0.0.7"),
    )
    text = base.settings(mirrors)
    direct = [line.split("::")[3].split()[0] for line in text.splitlines() if "DIRECT" in line]
    assert sorted({*direct}) == ["10.0.0.7", "m.example.com"]
    assert "CAInfo" not in text
    assert "DIRECT" not in base.settings(mirrors.model_copy(update={"apt_proxy": None}))
