"""
Users: what differs, and the command that mends only that.
"""

from dataclasses import replace

import pytest

from deploy.provision import operations
from tests.unit.deploy.provision.builders import bare, find, make_facts, make_resources

RESOURCES = make_resources()
GOOD = make_facts(RESOURCES)
USER = find(RESOURCES, "user slipway-blue")
MAKE_GROUP = "getent group slipway-blue >/dev/null || groupadd --system slipway-blue"


@pytest.mark.parametrize(
    ("changes", "change", "options"),
    [
        ({"group": "adm"}, "group adm → slipway-blue", "--gid slipway-blue"),
        ({"groups": ("adm", "sudo")}, "leave adm, sudo", "--groups ''"),
        ({"home": "/root"}, "home /root → /nonexistent", "--home /nonexistent"),
        ({"shell": "/bin/sh"}, "shell /bin/sh → /usr/sbin/nologin", "--shell /usr/sbin/nologin"),
        ({"is_locked": False}, "lock its password", "--lock"),
    ],
)
def test_every_attribute_is_mended_by_itself(changes, change, options):
    """
    usermod refuses some options while processes of the user run, so that no other is given.
    """
    found = replace(GOOD.users[USER.user], **changes)
    facts = replace(GOOD, users=GOOD.users | {USER.user: found})
    assert USER.difference(facts).change == change
    wanted = f"usermod {options} slipway-blue"
    assert operations.user_commands(USER, facts) == [MAKE_GROUP, wanted]


def test_a_missing_user_is_created_without_a_home():
    [make_group, make_user] = operations.user_commands(USER, bare(RESOURCES))
    assert make_group == MAKE_GROUP
    assert make_user == (
        "useradd --system --gid slipway-blue --home-dir /nonexistent --shell /usr/sbin/nologin "
        "--no-create-home slipway-blue"
    )
