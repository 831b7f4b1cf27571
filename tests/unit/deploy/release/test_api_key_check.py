"""
No slot starts without API keys in a fleet that has some.
"""

import dataclasses

import pytest

from deploy.errors import PreconditionError
from deploy.host.protocol import KeysStamp
from deploy.release.api_key_check import check_api_keys
from tests.builders import make_settled

KEYS = KeysStamp(3, "a" * 64)


def host(name, keys=None, damage=None):
    return dataclasses.replace(make_settled(name), keys=keys, keys_damage=damage)


@pytest.mark.parametrize("damage", [None, "not JSON"])
def test_a_host_without_a_list_is_refused_while_another_has_one(damage):
    """
    Also where the other one is not released.
    """
    seen = {"n1": host("n1", KEYS), "n2": host("n2", None, damage)}
    with pytest.raises(PreconditionError, match="n2: no API keys") as caught:
        check_api_keys(["n2"], seen)
    assert "keys.sync" in caught.value.fix
    assert ("damaged" in caught.value.why) == (damage is not None)


def test_a_fleet_without_keys_and_one_with_all_are_not_refused():
    check_api_keys(["n1", "n2"], {"n1": host("n1"), "n2": host("n2")})
    check_api_keys(["n1", "n2"], {"n1": host("n1", KEYS), "n2": host("n2", KEYS)})
    check_api_keys(["n1"], {"n1": host("n1", KEYS), "n2": host("n2")})  # n2 starts no slot
