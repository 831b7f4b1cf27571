"""
Where the desired state of a fleet lives, as its fleet file says.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from deploy.inventory.schema import Fleet
from deploy.inventory.secrets import resolve_secret
from deploy.release.clock import Clock
from deploy.release.desired import Desired
from deploy.release.lease import LeaseKeeper
from deploy.release.store import HostStore, StateStore
from deploy.wiring.clock import SystemClock
from deploy.wiring.hosts import Hosts, owner

if TYPE_CHECKING:
    from deploy.release.etcd import EtcdSettings

ANSWER_WITHIN_S = 2.0  # a way back goes on without hosts that have not answered by then


def state_store(
    on: Hosts,
    keeper: LeaseKeeper,
    clock: Clock,
    *,
    env: Mapping[str, str],
    within_s: float | None = None,
) -> StateStore:
    """
    Return the store of the fleet's desired state; nothing is connected yet.

    Args:
        env: Of the operator, for the password of etcd.
        within_s: Hosts, and etcd, that do not answer within it are left out.

    Raises:
        InventoryError: The password has no value.
    """
    fleet = on.fleet
    if fleet.state.kind == "hosts":
        return HostStore(on.clients, keeper, clock, within_s=within_s)
    # Imported where it is used: most fleets have no etcd, and its HTTP client takes long.
    from deploy.release.etcd import WITHIN_S, EtcdClient
    from deploy.release.store_etcd import EtcdStore

    etcd = EtcdClient(etcd_settings(fleet, env), within_s=min(WITHIN_S, within_s or WITHIN_S))
    prefix = f"{fleet.state.prefix}/{fleet.name}"
    return EtcdStore(etcd, prefix, on.clients, keeper, clock, within_s=within_s)


def stored(on: Hosts, within_s: float | None = None) -> Desired | None:
    """
    Return the desired state of the fleet; None before the first release.

    Args:
        within_s: A host that has not answered by then is not waited for.

    Raises:
        PreconditionError: The hosts do not agree on it.
        TransportError: Too few of them answer.
    """
    keeper = lease_keeper(on, "read")
    return state_store(on, keeper, SystemClock(), env=os.environ, within_s=within_s).read()


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
