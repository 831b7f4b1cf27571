"""
The state that a release must leave on any host, at any time; before the first release none has any.
"""

import pytest

from deploy.host import layout
from deploy.host.protocol import Call, Status
from deploy.host.rpc import encode_request, parse_answer


@pytest.fixture(scope="module")
def slots(root):
    """
    The slots as the host program reports them.
    """
    document = encode_request(Status(), Call(actor="verify")).decode()
    answer = root.check_output(f"echo %s | {' '.join(layout.HOST_COMMAND)} status", document)
    return parse_answer(Status(), answer).slots


@pytest.fixture(scope="module")
def released(slots):
    # Never skipped: to `inv verify` a skipped assertion is one that was not made.
    return {name: slot for name, slot in slots.items() if slot.bundle is not None}


def test_what_gets_traffic_is_ready(slots):
    """
    A slot with a weight is active and ready, and UP for HAProxy.
    """
    weighted = {
        name: slot
        for name, slot in slots.items()
        if slot.weight and slot.haproxy not in ("MAINT", "DRAIN")
    }
    states = {name: (s.unit, s.ready, s.haproxy[:2]) for name, s in weighted.items()}
    assert states == dict.fromkeys(weighted, ("active", True, "UP"))


def test_releases_are_what_was_signed(root, released):
    """
    The manifest of a released slot has the digest that names its directory.
    """
    for name, slot in released.items():
        shown = root.check_output(f"sha256sum {layout.SLOT_LINKS}/{name}/manifest.json")
        assert shown.split()[0] == slot.bundle


def test_the_socket_of_a_slot_is_haproxys(root, slots):
    """
    Only HAProxy's user and root may open it, and only root may change its directory.
    """
    for name, slot in slots.items():
        folder = f"{layout.RUN}/{name}"
        assert root.check_output(f"stat -c '%U %a' {folder}") == "root 711"
        if slot.unit == "active":
            shown = root.check_output(f"stat -Lc '%F %U %a' {layout.runtime_socket(name)}")
            assert shown == f"socket {layout.HAPROXY_USER} 600"


def test_running_slots_start_at_boot(root, released):
    """
    A slot that runs is enabled, so it runs after a reboot.
    """
    for name, slot in released.items():
        if slot.unit == "active":
            assert root.check_output(f"systemctl is-enabled {layout.unit(name)}") == "enabled"
