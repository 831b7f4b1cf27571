"""
The list of API keys as a value: merge, add, rotate, revoke.  Pure.

The hosts hold the list.  Two lists merge into one, in any order and any number of times with the
same result, so that hosts that missed a change, and operators who work at the same time, end with
one list.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from deploy.errors import UsageError
from deploy.host.codec import encode
from deploy.host.protocol import KEY_SECRETS_MAX, KEYS_MAX, ApiKey, KeySecret, KeysHeld

WITNESSED_FROM = 3  # hosts
VERSION_MAX = 2**53  # of `KeysVersion`
FORGET_REVOKED_S = 400 * 86400  # a host that was away for longer may bring a revoked key back


@dataclass(frozen=True, slots=True)
class KeyList:
    """
    Attributes:
        version: Counts the changes; 0: there was no list yet.
        keys: Ordered by name, revoked ones included.
    """

    version: int
    keys: tuple[ApiKey, ...]

    @classmethod
    def of(cls, held: KeysHeld) -> "KeyList":
        return cls(held.stamp.version, held.keys) if held.stamp else cls(0, ())

    def get(self, name: str) -> ApiKey | None:
        return next((key for key in self.keys if key.key_name == name), None)

    @property
    def active(self) -> tuple[ApiKey, ...]:
        return tuple(key for key in self.keys if not is_revoked(key))


def is_revoked(key: ApiKey) -> bool:
    return not key.secrets


def merge(lists: Iterable[KeyList]) -> KeyList:
    """
    Return one list with the newest state of each key.

    A key that is revoked in one list is revoked, whatever the others say.  If no list has all of
    it, the result is a new version.
    """
    given = [one for one in lists if one.version]
    newest: dict[str, ApiKey] = {}
    for one in given:
        for key in one.keys:
            held = newest.get(key.key_name)
            if held is None or _order(key) > _order(held):
                newest[key.key_name] = key
    keys = tuple(newest[name] for name in sorted(newest))
    version = max((one.version for one in given), default=0)
    at_version = {one.keys for one in given if one.version == version}
    return KeyList(version if at_version <= {keys} else _after(version), keys)


def agreed(votes: Iterable[KeyList], fleet: int) -> KeyList:
    """
    Return the merged list of what at least two hosts say; in a fleet of fewer than three, any.

    So no single host adds a key to the others, or revokes one there.

    Args:
        votes: Of each host that answered; one of version 0 says that the host has no list.
        fleet: Hosts of the fleet, also those that did not answer.
    """
    given = tuple(votes)
    if fleet < WITNESSED_FROM:
        return merge(given)
    if len(given) < 2:
        return KeyList(0, ())
    hosts = Counter(key for one in given for key in set(one.keys))
    keys = merge(KeyList(1, tuple(key for key in one.keys if hosts[key] > 1)) for one in given).keys
    version = sorted(one.version for one in given)[-2]
    is_held = KeyList(version, keys) in given
    return KeyList(version if is_held else _after(version), keys)


def unwitnessed(own: KeyList, wanted: KeyList) -> tuple[ApiKey, ...]:
    """
    Return the keys of *own* that are revoked, newer or unknown beside *wanted*.
    """
    known = {key.key_name: key for key in wanted.keys}
    return tuple(
        key
        for key in own.keys
        if (other := known.get(key.key_name)) is None or _order(key) > _order(other)
    )


def with_states(held: KeyList, states: Iterable[ApiKey]) -> KeyList:
    """
    Return *held* with *states* in place of its keys of these names; of the same version.
    """
    keys = {key.key_name: key for key in (*held.keys, *states)}
    return KeyList(held.version, tuple(keys[name] for name in sorted(keys)))


def add(held: KeyList, key: ApiKey) -> KeyList:
    """
    Return *held* with the new *key*.

    Raises:
        UsageError: Its name is or was in use, or there are too many keys.
    """
    if (old := held.get(key.key_name)) is not None:
        if is_revoked(old):
            why = "a key of that name was revoked, and stays so"
            raise UsageError(f"{key.key_name}: taken", why=why, fix="choose another name")
        fix = f"inv keys.rotate {key.key_name} replaces its token; or choose another name"
        raise UsageError(f"{key.key_name}: taken", why="there is a key of that name", fix=fix)
    changed = _put(held, key)
    if len(changed.keys) > KEYS_MAX:
        raise UsageError(
            f"{key.key_name}: not added",
            why=f"there are {len(held.keys)} keys, with those revoked in the last "
            f"{FORGET_REVOKED_S // 86400} days; at most {KEYS_MAX} are kept",
            fix="rotate a key instead: inv keys.rotate NAME",
        )
    return changed


def rotate(held: KeyList, name: str, new: KeySecret, overlap_s: int) -> KeyList:
    """
    Return *held* with *new* as the token of *name*; earlier tokens end after *overlap_s*.

    Raises:
        UsageError: There is no such key.
    """
    key = _active(held, name)
    until = new.created_at + overlap_s
    earlier = [
        dataclasses.replace(one, expires_at=min(until, one.expires_at or until))
        for one in key.secrets
        if overlap_s and (one.expires_at is None or one.expires_at > new.created_at)
    ]
    secrets = (new, *earlier[: KEY_SECRETS_MAX - 1])
    return _put(held, dataclasses.replace(key, secrets=secrets, changed_at=new.created_at))


def revoke(held: KeyList, name: str, now: int) -> KeyList:
    """
    Return *held* with *name* revoked for ever.

    Raises:
        UsageError: There is no such key.
    """
    key = _active(held, name)
    return _put(held, dataclasses.replace(key, secrets=(), changed_at=now))


def settle_as_revoked(held: KeyList, key: ApiKey, now: int) -> KeyList:
    """
    Return *held* with *key*, on which hosts do not agree, revoked for ever.
    """
    return _put(held, dataclasses.replace(key, secrets=(), changed_at=now))


def without_old(held: KeyList, now: int) -> KeyList:
    """
    Return *held* without keys that were revoked long ago; of the same version.
    """
    kept = [k for k in held.keys if not is_revoked(k) or k.changed_at + FORGET_REVOKED_S > now]
    return KeyList(held.version, tuple(kept))


def _active(held: KeyList, name: str) -> ApiKey:
    key = held.get(name)
    if key is not None and not is_revoked(key):
        return key
    raise UsageError(
        f"{name}: no such key",
        why="it was revoked" if key else "no host has a key of that name",
        fix="inv keys.list shows them",
    )


def _put(held: KeyList, key: ApiKey) -> KeyList:
    old = held.get(key.key_name)
    version = _after(max(held.version, old.changed if old else 0))
    key = dataclasses.replace(key, changed=version)
    others = [other for other in held.keys if other.key_name != key.key_name]
    return KeyList(version, tuple(sorted([*others, key], key=lambda one: one.key_name)))


def _after(version: int) -> int:
    """
    Return the next version; the last one has none, so that a forged one stops no change.
    """
    return min(version + 1, VERSION_MAX)


def _order(key: ApiKey) -> tuple[bool, int, int, str]:
    return is_revoked(key), key.changed, key.changed_at, json.dumps(encode(key), sort_keys=True)
