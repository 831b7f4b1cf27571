"""
Where the desired state of a fleet lives, as its fleet file says.
"""

from collections.abc import Mapping

from deploy.inventory.schema import Fleet
from deploy.inventory.secrets import resolve_secret
from deploy.release.clock import Clock
from deploy.release.etcd import WITHIN_S, EtcdClient, EtcdSettings
from deploy.release.lease import LeaseKeeper
from deploy.release.store import HostStore, StateStore
from deploy.release.store_etcd import EtcdStore
from deploy.wiring.hosts import Hosts


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
    etcd = EtcdClient(etcd_settings(fleet, env), within_s=min(WITHIN_S, within_s or WITHIN_S))
    prefix = f"{fleet.state.prefix}/{fleet.name}"
    return EtcdStore(etcd, prefix, on.clients, keeper, clock, within_s=within_s)


def etcd_settings(fleet: Fleet, env: Mapping[str, str]) -> EtcdSettings:
    """
    Return how to reach the etcd of *fleet*.

    Raises:
        InventoryError: The password has no value.
    """
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
