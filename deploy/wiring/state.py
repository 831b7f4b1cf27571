"""
Where the desired state of a fleet lives, as its fleet file says.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from deploy.clock import Clock, SystemClock
from deploy.errors import DeployError, PreconditionError
from deploy.inventory.schema import Fleet
from deploy.inventory.secrets import resolve_secret
from deploy.leases.keeper import LeaseKeeper
from deploy.leases.owner import owner
from deploy.release.desired import Desired
from deploy.release.store import HostStore, Known, StateStore
from deploy.wiring.hosts import Hosts

if TYPE_CHECKING:
    from deploy.release.etcd import EtcdSettings


def state_store(
    on: Hosts,
    keeper: LeaseKeeper,
    clock: Clock,
    *,
    env: Mapping[str, str],
    within_s: float | None = None,
    is_way_back: bool = False,
) -> StateStore:
    """
    Return the store of the fleet's desired state; nothing is connected yet.

    Args:
        env: Of the operator, for the password of etcd.
        within_s: Hosts, and etcd, that do not answer within it are left out.
        is_way_back: Where the password has no value, the hosts stand in for etcd.

    Raises:
        InventoryError: The password has no value.
    """
    fleet = on.fleet
    if fleet.state.kind == "hosts":
        return HostStore(on.clients, keeper, clock, within_s=within_s)
    # Imported where it is used: most fleets have no etcd, and its HTTP client takes long.
    from deploy.release.etcd import WITHIN_S, EtcdClient
    from deploy.release.store_etcd import EtcdStore

    try:
        settings = etcd_settings(fleet, env)
    except DeployError as error:
        if not is_way_back:
            raise
        return HostStore(on.clients, keeper, clock, within_s=within_s, unavailable=error)
    etcd = EtcdClient(settings, within_s=min(WITHIN_S, within_s or WITHIN_S))
    prefix = f"{fleet.state.prefix}/{fleet.name}"
    return EtcdStore(etcd, prefix, on.clients, keeper, clock, within_s=within_s)


def stored(
    on: Hosts,
    within_s: float | None = None,
    *,
    known: Known | None = None,
    is_way_back: bool = False,
) -> Desired | None:
    """
    Return the desired state of the fleet; None before the first release.

    Args:
        within_s: A host that has not answered by then is not waited for.
        known: Hosts that were observed just now, or their errors: they are not asked again.
        is_way_back: What the hosts say is enough, where etcd refuses, or its password has no value.

    Raises:
        InventoryError: The password of etcd has no value.
        PreconditionError: The hosts do not agree on it, or etcd refuses.
        TransportError: Too few of them answer.
    """
    store = reading_store(on, within_s, is_way_back=is_way_back)
    desired = store.read(known)
    if isinstance(store.unavailable, PreconditionError) and not is_way_back:
        raise store.unavailable
    return desired


def reading_store(
    on: Hosts, within_s: float | None = None, *, is_way_back: bool = False
) -> StateStore:
    """
    Return a store that is only read.
    """
    return state_store(
        on,
        lease_keeper(on, "read"),
        SystemClock(),
        env=os.environ,
        within_s=within_s,
        is_way_back=is_way_back,
    )


def lease_keeper(on: Hosts, release: str) -> LeaseKeeper:
    """
    Return what holds the leases of *release*; it holds none yet.
    """
    return LeaseKeeper(
        on.clients,
        owner=owner(),
        release=release,
        ttl_s=on.fleet.release.lease_ttl,
        clock=SystemClock(),
    )


def etcd_settings(fleet: Fleet, env: Mapping[str, str]) -> "EtcdSettings":
    """
    Return how to reach the etcd of *fleet*.

    Raises:
        InventoryError: The password has no value.
    """
    from deploy.release.etcd import EtcdSettings

    state = fleet.state
    secret = state.password
    return EtcdSettings(
        endpoints=state.endpoints,
        ca=state.ca,
        cert=state.cert,
        key=state.key,
        user=state.user,
        password=resolve_secret(fleet.secrets[secret], env, name=secret) if secret else None,
    )
