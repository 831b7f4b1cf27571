"""
The loaded fleet and its hosts, with final values.  Pure.
"""

from collections.abc import Iterable
from pathlib import Path

from deploy.inventory.names import Address, HostName
from deploy.inventory.schema.gpu import DriverSection, GpuSection
from deploy.inventory.schema.hooks import Hook
from deploy.inventory.schema.mirrors import Mirrors
from deploy.inventory.schema.release import ReleasePolicy
from deploy.inventory.schema.secret import Secret
from deploy.inventory.schema.service import Service
from deploy.inventory.schema.signing import Signing
from deploy.inventory.schema.ssh import Hop, Ssh
from deploy.inventory.schema.state import StateSettings
from deploy.inventory.schema.storage import Storage
from deploy.inventory.schema.strict import Strict
from deploy.inventory.schema.webhooks import Webhook


class Host(Strict):
    """
    One host with final values: its own, else those of its groups, else the fleet's.

    Attributes:
        open_keys: Keys of `ssh` that neither the host nor the fleet sets.
        route: The way to the host by ~/.ssh/config, the host itself last; empty: as `ssh` says.
    """

    name: HostName
    address: Address
    groups: tuple[str, ...]
    row: str
    ssh: Ssh
    vars: dict[str, str | int | float | bool]
    open_keys: frozenset[str] = frozenset()
    route: tuple[Hop, ...] = ()


class Fleet(Strict):
    """
    A loaded fleet, with all of its hosts or a selection.

    Attributes:
        hosts: Those to work on.
        others: Those that were not selected; they hold the fleet's desired state too.
    """

    name: str
    path: Path
    hosts: tuple[Host, ...]
    others: tuple[Host, ...] = ()
    mirrors: Mirrors
    secrets: dict[str, Secret]
    service: Service
    release: ReleasePolicy
    signing: Signing
    hooks: tuple[Hook, ...] = ()
    notify: tuple[Webhook, ...] = ()
    state: StateSettings = StateSettings()
    storage: Storage = Storage()
    driver: DriverSection = DriverSection()
    gpu: GpuSection = GpuSection()

    def without(self, names: Iterable[str]) -> tuple[Host, ...]:
        """
        Return the hosts of the whole fleet that are not in *names*.
        """
        return tuple(host for host in (*self.hosts, *self.others) if host.name not in set(names))

    def host(self, name: str) -> Host:
        """
        Return the host *name*.

        Raises:
            KeyError: The fleet has no host with this name.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)
