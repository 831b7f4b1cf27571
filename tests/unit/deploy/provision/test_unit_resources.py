"""
Units that systemd has loaded from other files than those that were placed.
"""

from dataclasses import replace

import pytest

from deploy.host import layout
from deploy.provision import operations
from deploy.provision.differences import next_steps, refusal_of
from tests.unit.deploy.provision.builders import find, make_facts, make_resources

RESOURCES = make_resources()
GOOD = make_facts(RESOURCES)
BLUE = layout.unit("blue")
LOADED = find(RESOURCES, "systemd")
ETC = "/etc/systemd/system"


def facts_with(unit, **changes):
    return replace(GOOD, units=GOOD.units | {unit: replace(GOOD.units[unit], **changes)})


def changes_of(facts):
    return [(step.resource.name, step.difference.change) for step in next_steps(RESOURCES, facts)]


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        (BLUE, f"{ETC}/slipway-runtime@.service.d/override.conf"),
        (BLUE, f"{ETC}/slipway-runtime@blue.service.d/override.conf"),
        (BLUE, "/run/systemd/system/slipway-runtime@blue.service.d/x.conf"),
        (BLUE, "/etc/systemd/system.control/slipway-runtime@blue.service.d/50-MemoryMax.conf"),
        (layout.SLICE, f"{ETC}/slipway.slice.d/10-x.conf"),
        (layout.slot_mount("green"), f"{ETC}/run-slipway-private-green.mount.d/a.conf"),
    ],
)
def test_a_drop_in_of_slipways_own_units_is_removed(unit, path):
    """
    It changes what was placed, as an edit of the unit would; of a template and of an instance.
    """
    facts = facts_with(unit, drop_ins=(path,))
    assert changes_of(facts) == [("systemd", f"remove {path}")]
    assert refusal_of(RESOURCES, facts) is None
    command = operations.loading_command(LOADED.units, facts)
    assert command == f"rm -f -- {path} && systemctl daemon-reload"


def test_a_file_of_one_instance_is_removed():
    path = f"{ETC}/{BLUE}"
    facts = facts_with(BLUE, fragment=path)
    assert changes_of(facts) == [("systemd", f"remove {path}")]


def test_a_shipped_file_gives_way_to_the_placed_one():
    """
    systemd has not read the placed one yet.
    """
    facts = facts_with(BLUE, fragment="/usr/lib/systemd/system/slipway-runtime@.service")
    assert changes_of(facts) == [("systemd", f"reload {BLUE}")]


@pytest.mark.parametrize(
    "path",
    [
        f"{ETC}/service.d/10-limits.conf",
        "/run/systemd/system/service.d/zzz-lxc-service.conf",
        "/usr/lib/systemd/system/slipway-runtime@.service.d/vendor.conf",
        f"/run/systemd/system.control/{BLUE}.d/50-CPUWeight.conf",
    ],
)
def test_what_is_for_all_units_or_from_the_host_program_stays(path):
    facts = facts_with(BLUE, fragment=f"{ETC}/slipway-runtime@.service", drop_ins=(path,))
    assert changes_of(facts) == []
    assert refusal_of(RESOURCES, facts) is None


@pytest.mark.parametrize(
    "path",
    [
        f"{ETC}/slipway-.service.d/x.conf",
        f"{ETC}/other.service.d/../{BLUE}.d/x.conf",
        f"{ETC}/{BLUE}.d/x y.conf",
        f"{ETC}/{BLUE}.d/$(reboot).conf",
        "/etc/passwd",
    ],
)
def test_no_other_file_is_ever_removed(path):
    """
    A host reports the paths: what is not plainly a file of that unit is named, not removed.
    """
    facts = facts_with(BLUE, drop_ins=(path,))
    refusal = refusal_of(RESOURCES, facts)
    assert path in refusal.why
    assert path not in refusal.fix
    assert operations.loading_command(LOADED.units, facts) == "systemctl daemon-reload"


def test_a_drop_in_of_the_timer_is_removed_and_the_timer_runs_anew():
    unit = layout.DEADMAN_TIMER
    path = f"{ETC}/{unit}.d/x.conf"
    facts = facts_with(unit, drop_ins=(path,))
    assert changes_of(facts) == [(unit, f"remove {path}")]


@pytest.mark.parametrize(
    "changes",
    [
        {"drop_ins": (f"{ETC}/haproxy.service.d/x.conf",)},
        {"fragment": f"{ETC}/haproxy.service"},
    ],
)
def test_a_changed_unit_of_haproxy_is_named_with_its_remedy(changes):
    """
    It may start another configuration at the next boot; it is not slipway's, so it stays.
    """
    refusal = refusal_of(RESOURCES, facts_with(layout.HAPROXY_UNIT, **changes))
    assert "slipway did not place" in refusal.why
    assert "systemctl revert haproxy.service" in refusal.fix


def test_the_distributions_unit_of_haproxy_is_good():
    """
    Negative control, with a drop-in that the distribution ships.
    """
    facts = facts_with(
        layout.HAPROXY_UNIT,
        fragment="/lib/systemd/system/haproxy.service",
        drop_ins=("/usr/lib/systemd/system/haproxy.service.d/x.conf",),
    )
    assert refusal_of(RESOURCES, facts) is None
    assert changes_of(facts) == []


def test_a_stale_unit_of_haproxy_is_read_again():
    facts = facts_with(layout.HAPROXY_UNIT, stale=True)
    assert changes_of(facts) == [(layout.HAPROXY_UNIT, "reload its unit file")]
    resource = find(RESOURCES, layout.HAPROXY_UNIT)
    assert "daemon-reload" in operations.service_commands(resource, facts)[0]
    assert "daemon-reload" not in operations.service_commands(resource, GOOD)[0]
