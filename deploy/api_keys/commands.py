"""
What `inv keys.*` does, as values in and values out.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deploy.api_keys import key_list
from deploy.api_keys.key_list import KeyList
from deploy.api_keys.spread import HeldLists, Spread, change_keys, read_lists
from deploy.api_keys.token import hash_of, make_token
from deploy.errors import FleetDiffers, PreconditionError, UsageError
from deploy.host.names import KEY
from deploy.host.protocol import ApiKey, KeySecret
from deploy.transport.client import HostClient


@dataclass(frozen=True, slots=True)
class KeyOptions:
    """
    What a new key may do; see `ApiKey`.

    Attributes:
        expires_s: Seconds from now; None: it does not expire.
    """

    expires_s: int | None = None
    models: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    weight: int = 1
    priority: int = 5
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """
    A new token, to be shown once.

    Attributes:
        token: Not in the representation, so that no log or traceback has it.
    """

    key: ApiKey
    token: str = dataclasses.field(repr=False)
    spread: Spread

    @property
    def error(self) -> FleetDiffers | None:
        return self.spread.error


def add_key(
    clients: Mapping[str, HostClient], name: str, options: KeyOptions, now: int
) -> IssuedToken:
    """
    Add the key *name* on all hosts.

    Raises:
        UsageError: The name is taken.
        DeployError: No host has it, or another operator's key of that name won.
    """
    token = make_token()
    expires = None if options.expires_s is None else now + options.expires_s
    key = ApiKey(
        KEY.parse(name),
        1,
        now,
        (KeySecret(hash_of(token), now, expires),),
        options.models,
        options.requests_per_minute,
        options.tokens_per_minute,
        options.weight,
        options.priority,
        options.concurrency,
    )
    edit = _edit(lambda held: key_list.add(held, key), now)
    lists = _for_issue(read_lists(clients), clients)
    return _issued(name, token, change_keys(clients, lists, edit))


def rotate_key(
    clients: Mapping[str, HostClient], name: str, overlap_s: int, expires_s: int | None, now: int
) -> IssuedToken:
    """
    Give the key *name* another token; the earlier ones are accepted for *overlap_s*.

    Raises:
        DeployError: As `add_key`; there is no such key.
        UsageError: Hosts do not agree on the key, and earlier tokens would stay valid.
    """
    lists = _for_issue(read_lists(clients), clients)
    if overlap_s and _alone(lists, name):
        raise UsageError(
            f"{name}: its earlier tokens cannot stay valid",
            why=f"{', '.join(_alone(lists, name))} alone holds another state of the key, which "
            "may be revoked",
            fix="the command without --overlap, or inv keys.revoke",
        )
    token = make_token()
    expires = None if expires_s is None else now + expires_s
    secret = KeySecret(hash_of(token), now, expires)
    edit = _edit(
        lambda held: key_list.rotate(_with_disputed(held, lists, name), name, secret, overlap_s),
        now,
    )
    return _issued(name, token, change_keys(clients, lists, edit))


def revoke_key(clients: Mapping[str, HostClient], name: str, now: int) -> Spread:
    """
    Revoke the key *name* on all hosts.

    Raises:
        UsageError: There is no such key.
    """
    lists = read_lists(clients)
    alone = _alone(lists, name)

    def revoked(held: KeyList) -> KeyList:
        key = held.get(name)
        if alone and (key is None or key_list.is_revoked(key)):
            return key_list.settle_as_revoked(held, next(iter(alone.values())), now)
        if key is not None and key_list.is_revoked(key) and (lists.behind or lists.errors):
            return held  # repeated, for the hosts that missed it
        return key_list.revoke(held, name, now)

    return change_keys(clients, lists, _edit(revoked, now))


def sync_keys(clients: Mapping[str, HostClient]) -> Spread:
    """
    Bring the newest state of each key to all hosts.
    """
    lists = read_lists(clients)
    return change_keys(clients, lists, lambda held: held)


def sync_keys_if_any(clients: Mapping[str, HostClient]) -> Spread | None:
    """
    Do what `sync_keys` does; None, and no second call, where no host that answers has a list.
    """
    lists = read_lists(clients)
    if all(held.stamp is None and held.damage is None for held in lists.held.values()):
        return None
    return change_keys(clients, lists, lambda held: held)


def _edit(change: Callable[[KeyList], KeyList], now: int) -> Callable[[KeyList], KeyList]:
    return lambda held: change(key_list.without_old(held, now))


def _for_issue(lists: HeldLists, clients: Mapping[str, HostClient]) -> HeldLists:
    """
    Return *lists*, if enough hosts answered for a new token to count.

    A revocation is sent without this check: it is better on a few hosts than on none.
    """
    if len(clients) < key_list.WITNESSED_FROM or 2 * len(lists.held) > len(clients):
        return lists
    raise FleetDiffers(
        f"{', '.join(lists.held)} alone: {len(lists.held)} of {len(clients)} hosts answer",
        why="a new token counts on more than half of the hosts; nothing was changed; "
        + "; ".join(f"{error.what}: {error.why}" for error in lists.errors.values()),
        fix="the same command again, once more hosts answer",
    )


def _alone(lists: HeldLists, name: str) -> dict[str, ApiKey]:
    return {
        host: key for host, keys in lists.disputed.items() for key in keys if key.key_name == name
    }


def _with_disputed(held: KeyList, lists: HeldLists, name: str) -> KeyList:
    """
    Return *held*, and where hosts agree on no state of *name*, the newest one that has a token.
    """
    states = [key for key in _alone(lists, name).values() if not key_list.is_revoked(key)]
    if held.get(name) is not None or not states:
        return held
    return key_list.with_states(held, [max(states, key=lambda key: (key.changed, key.changed_at))])


def _issued(name: str, token: str, spread: Spread) -> IssuedToken:
    key = spread.keys.get(name)
    if key is None or hash_of(token) not in {one.sha256 for one in key.secrets}:
        raise PreconditionError(
            f"{name}: the new token is not in force",
            why="another operator changed the same key at the same time, and that change won",
            fix="inv keys.list, then the command again",
        )
    return IssuedToken(key, token, spread)
