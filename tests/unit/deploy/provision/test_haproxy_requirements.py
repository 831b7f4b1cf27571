"""
Hosts whose HAProxy belongs to somebody else, or whose kernel has no IPv6.
"""

from dataclasses import replace

import pytest

from deploy.provision import haproxy
from deploy.provision.differences import fact_query, refusal_of
from deploy.provision.requirements import _IPV6_DISABLED
from tests.unit.deploy.provision.builders import (
    find,
    make_facts,
    make_resources,
    make_spec,
    path_like,
)

RESOURCES = make_resources()
CONFIG = find(RESOURCES, haproxy.CONFIG)
GOOD = make_facts(RESOURCES)


def host_with(text=None, untouched=(), **changes):
    """
    Return the facts of a provisioned host on which haproxy.cfg has *text*.
    """
    found = path_like(CONFIG, text=text, sha256="f" * 64, **changes)
    return replace(GOOD, paths=GOOD.paths | {haproxy.CONFIG: found}, untouched=untouched)


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(host_with("frontend shop\n    bind :443\n"), id="written by hand"),
        pytest.param(host_with("# Managed by another tool\n"), id="another tool"),
        pytest.param(host_with("\n" + haproxy.HEADER), id="our header further down"),
        pytest.param(host_with(None, size=100_000), id="too large to be ours"),
        pytest.param(host_with("x", untouched=("/etc/other",)), id="another file is untouched"),
    ],
)
def test_a_foreign_configuration_is_refused_before_anything_changes(facts):
    """
    With the command that moves it away.
    """
    refusal = refusal_of(RESOURCES, facts)
    assert "/etc/haproxy/haproxy.cfg is another program's or was written by hand" in refusal.why
    assert "mv /etc/haproxy/haproxy.cfg /etc/haproxy/haproxy.cfg.before-slipway" in refusal.fix


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(replace(GOOD, paths=GOOD.paths | {haproxy.CONFIG: None}), id="none"),
        pytest.param(GOOD, id="ours"),
        pytest.param(host_with(f"# {haproxy.HEADER} and more\nmaxconn 1\n"), id="ours, edited"),
        pytest.param(host_with(f"X {haproxy.HEADER} and more\n"), id="ours, a byte changed"),
        pytest.param(host_with("\n"), id="empty"),
        pytest.param(host_with("global\n", untouched=(haproxy.CONFIG,)), id="the package's"),
    ],
)
def test_slipways_and_the_packages_own_are_replaced(facts):
    """
    Negative control; edits of a file of slipway's are lost, as its first line says.
    """
    assert refusal_of(RESOURCES, facts) is None


def test_the_header_is_that_of_the_file():
    """
    Of the rendered text; a host says whether dpkg knows the file as untouched.
    """
    assert haproxy.config(make_spec()).startswith(f"# {haproxy.HEADER}")
    assert fact_query(RESOURCES).conffiles == (haproxy.CONFIG,)
    assert fact_query(RESOURCES).paths[haproxy.CONFIG] == CONFIG.sha256


def kernel(text):
    found = None if text is None else path_like(CONFIG, text=text)
    return replace(GOOD, paths=GOOD.paths | {_IPV6_DISABLED: found})


def test_a_kernel_without_ipv6_is_refused_unless_the_port_is_without():
    """
    HAProxy would not start.
    """
    refusal = refusal_of(RESOURCES, kernel("1\n"))
    assert "the kernel has it switched off" in refusal.why
    assert "service.ipv6: false" in refusal.fix
    assert refusal_of(make_resources(ipv6=False), kernel("1\n")) is None


@pytest.mark.parametrize("text", [None, "0\n"])
def test_any_other_kernel_will_do(text):
    """
    Negative control.
    """
    assert refusal_of(RESOURCES, kernel(text)) is None
