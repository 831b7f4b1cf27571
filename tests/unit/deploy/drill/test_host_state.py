"""
What the probe on a host wrote, as a state.
"""

import json

import pytest

from deploy.drill.host_state import parse_state
from tests.unit.deploy.drill.builders import make_state


def document(**changes):
    servers = {"blue": {"weight": 100, "status": "UP"}, "green": {"weight": 0, "status": "UP"}}
    values = {"at_s": 1.5, "servers": servers, "version": "v1", "is_armed": False, "boot_id": "b"}
    return json.dumps(values | changes)


def test_a_state_has_the_shares_of_the_slots():
    state = parse_state(document())
    assert state.weights == {"blue": 100, "green": 0}
    assert state.serves_one


def test_a_slot_in_maintenance_has_no_share():
    """
    HAProxy keeps the weight of a server in maintenance, and sends it nothing.
    """
    servers = {"blue": {"weight": 100, "status": "UP"}, "green": {"weight": 100, "status": "MAINT"}}
    assert parse_state(document(servers=servers)).weights == {"blue": 100, "green": 0}


@pytest.mark.parametrize(
    "state",
    [
        make_state(blue=90, green=10),
        make_state(blue=0, green=0),
        make_state(blue=100, green=100),
        make_state(version=None),
    ],
)
def test_a_host_serves_one_version_only_with_one_slot_at_100(state):
    """
    And only if a request was answered: a weight alone serves nobody.
    """
    assert not state.serves_one


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "null", document()[:20], document(servers=[]),
             document(servers={"blue": {"weight": "x", "status": "UP"}})]
)  # fmt: skip
def test_a_torn_line_is_no_state(line):
    assert parse_state(line) is None
