import pytest

from deploy.host import layout

SLOT_USERS = [layout.slot_user(slot) for slot in layout.SLOTS]


@pytest.mark.parametrize("user", [layout.USER, layout.BUILD_USER, *SLOT_USERS])
def test_the_users_cannot_log_in(root, user):
    """
    They have no shell, no home, no password, and no group but their own.
    """
    fields = root.check_output(f"getent passwd {user}").split(":")
    assert fields[5:] == ["/nonexistent", "/usr/sbin/nologin"]
    assert root.check_output(f"id -Gn {user}") == user
    assert root.check_output(f"getent shadow {user}").split(":")[1] in {"!", "*", "!*"}


def test_each_slot_has_a_user_of_its_own(root):
    """
    No other account has the same number.
    """
    numbers = root.check_output("getent passwd | cut -d: -f3").split()
    own = [root.check_output(f"id -u {user}") for user in SLOT_USERS]
    assert [numbers.count(number) for number in own] == [1] * len(own)
