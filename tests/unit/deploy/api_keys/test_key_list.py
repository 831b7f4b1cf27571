"""
Lists of API keys as values: merge and edits.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.api_keys import key_list
from deploy.api_keys.key_list import KeyList, merge
from deploy.errors import UsageError
from deploy.host.protocol import ApiKey, KeySecret

NOW = 1_790_000_000


def secret(number, created=NOW, expires=None):
    return KeySecret(f"{number:064x}", created, expires)


def key(name, changed=1, number=1, **more):
    return ApiKey(name, changed, NOW, (secret(number),), **more)


def gone(name, changed=1, at=NOW):
    return ApiKey(name, changed, at, ())


KEYS = st.builds(
    lambda name, changed, number: ApiKey(name, changed, NOW, (secret(number),) if number else ()),
    st.sampled_from("abc"),
    st.integers(1, 4),
    st.integers(0, 3),
)
LISTS = st.builds(
    lambda version, keys: KeyList(
        version, tuple(sorted({k.key_name: k for k in keys}.values(), key=lambda k: k.key_name))
    ),
    st.integers(1, 4),
    st.lists(KEYS, max_size=4),
)


@given(st.lists(LISTS, min_size=1, max_size=4), st.randoms())
def test_lists_merge_in_any_order_to_one(lists, rng):
    """
    Also any number of times, and in any groups: so hosts end with one list.
    """
    merged = merge(lists)
    shuffled = lists * 2
    rng.shuffle(shuffled)
    assert merge(shuffled) == merged
    assert merge([merged, *lists]) == merged
    # In groups the version may grow once more; the keys are the same.
    assert merge([merge(lists[:1]), merge(lists[1:] or lists)]).keys == merged.keys


def test_the_newest_state_of_each_key_wins():
    old = KeyList(2, (key("ann"), key("web", 2)))
    new = KeyList(3, (key("ann"), key("web", 3, number=7)))
    assert merge([old, new]) == new


def test_changes_of_two_operators_are_both_kept():
    """
    Nobody has both, so it is a new version.
    """
    ann = KeyList(3, (key("ann", 3), key("web")))
    bob = KeyList(3, (key("bob", 3, 2), key("web")))
    merged = merge([ann, bob])
    assert [k.key_name for k in merged.keys] == ["ann", "bob", "web"]
    assert merged.version == 4


def test_revoked_stays_revoked():
    """
    Whatever was changed elsewhere since: a host that missed the change brings no key back.
    """
    revoked = KeyList(3, (gone("web", 3),))
    rotated = KeyList(9, (key("web", 9),))
    assert merge([revoked, rotated]).active == ()
    with pytest.raises(UsageError, match="taken"):
        key_list.add(revoked, key("web"))


def test_a_rotation_ends_the_earlier_tokens_after_the_overlap():
    held = KeyList(1, (ApiKey("web", 1, NOW, (secret(1), secret(2, expires=NOW + 5))),))
    rotated = key_list.rotate(held, "web", secret(3), 60).get("web")
    assert rotated.secrets == (
        secret(3),
        secret(1, expires=NOW + 60),
        secret(2, expires=NOW + 5),
    )
    assert rotated.changed == 2
    assert key_list.rotate(held, "web", secret(3), 0).get("web").secrets == (secret(3),)


def test_a_key_has_a_few_tokens_at_most():
    held = KeyList(1, (key("web"),))
    for number in range(2, 9):
        held = key_list.rotate(held, "web", secret(number), 3600)
    assert len(held.get("web").secrets) == 4


@pytest.mark.parametrize(
    "edit", [key_list.revoke, lambda held, n, now: key_list.rotate(held, n, secret(1), 0)]
)
@pytest.mark.parametrize("held", [KeyList(0, ()), KeyList(1, (gone("web"),))])
def test_what_is_no_key_is_not_changed(edit, held):
    with pytest.raises(UsageError, match="no such key"):
        edit(held, "web", NOW)


def test_keys_revoked_long_ago_are_forgotten():
    old = gone("old", at=NOW - key_list.FORGET_REVOKED_S - 1)
    held = KeyList(5, (gone("new"), old, key("web")))
    assert [k.key_name for k in key_list.without_old(held, NOW).keys] == ["new", "web"]
