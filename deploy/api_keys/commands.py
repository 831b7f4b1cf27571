"""
What `inv keys.*` does, as values in and values out.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deploy.api_keys import key_list
from deploy.api_keys.key_list import KeyList
from deploy.api_keys.spread import Spread, change_keys, read_lists
from deploy.api_keys.token import hash_of, make_token
from deploy.errors import FleetDiffers, PreconditionError
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
    )
    edit = _edit(lambda held: key_list.add(held, key), now)
    return _issued(name, token, change_keys(clients, read_lists(clients), edit))


def rotate_key(
    clients: Mapping[str, HostClient], name: str, overlap_s: int, expires_s: int | None, now: int
) -> IssuedToken:
    """
    Give the key *name* another token; the earlier ones are accepted for *overlap_s*.

    Raises:
        DeployError: As `add_key`; there is no such key.
    """
    token = make_token()
    expires = None if expires_s is None else now + expires_s
    secret = KeySecret(hash_of(token), now, expires)
    edit = _edit(lambda held: key_list.rotate(held, name, secret, overlap_s), now)
    return _issued(name, token, change_keys(clients, read_lists(clients), edit))


def revoke_key(clients: Mapping[str, HostClient], name: str, now: int) -> Spread:
    """
    Revoke the key *name* on all hosts.

    Raises:
        UsageError: There is no such key.
    """
    edit = _edit(lambda held: key_list.revoke(held, name, now), now)
    return change_keys(clients, read_lists(clients), edit)


def sync_keys(clients: Mapping[str, HostClient]) -> Spread:
    """
    Bring the newest state of each key to all hosts.
    """
    lists = read_lists(clients)
    return change_keys(clients, lists, lambda held: held)


def _edit(change: Callable[[KeyList], KeyList], now: int) -> Callable[[KeyList], KeyList]:
    return lambda held: change(key_list.without_old(held, now))


def _issued(name: str, token: str, spread: Spread) -> IssuedToken:
    key = spread.keys.get(name)
    if key is None or hash_of(token) not in {one.sha256 for one in key.secrets}:
        raise PreconditionError(
            f"{name}: the new token is not in force",
            why="another operator changed the same key at the same time, and that change won",
            fix="inv keys.list, then the command again",
        )
    return IssuedToken(key, token, spread)
