"""
The certificates of a fleet: its own authority on this machine, and renewal on its hosts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from deploy.certificates import acme
from deploy.certificates.authority import CERTIFICATE, create_authority
from deploy.certificates.pair import Pair
from deploy.certificates.wanted import wanted_pairs
from deploy.errors import CommandFailed, DeployError, InventoryError
from deploy.host.protocol import CertificateSet
from deploy.inventory.schema import Fleet
from deploy.transport.parallel import on_each
from deploy.wiring.hosts import Hosts

_RENEW_S = 60.0  # of the call to one host


@dataclass(frozen=True)
class Renewal:
    """
    Attributes:
        pairs: What each host was given.
        kept: Certificates of the hosts that show them already.
        errors: Hosts that serve their old certificate, or of which that is unknown.
    """

    pairs: Mapping[str, Pair]
    kept: Mapping[str, Pair] = field(default_factory=dict)
    errors: Mapping[str, DeployError] = field(default_factory=dict)

    @property
    def error(self) -> DeployError | None:
        """
        One error for all hosts that have no new certificate; None: all have it.
        """
        if not self.errors:
            return None
        errors = list(dict.fromkeys(self.errors.values()))  # one may concern many hosts
        if len(errors) == 1:
            return errors[0]
        return CommandFailed(
            f"{', '.join(self.errors)}: no new certificate",
            why="; ".join(f"{error.what}: {error.why}" for error in errors),
            fix="; ".join(dict.fromkeys(error.fix for error in self.errors.values())),
        )


def authority_directory(fleet: Fleet) -> Path:
    """
    Return the directory of the fleet's own authority.

    Raises:
        InventoryError: The fleet has none.
    """
    tls = fleet.service.tls
    if tls.kind != "internal" or tls.authority is None:
        raise InventoryError(
            f"{fleet.path.name}: service.tls: the fleet has no authority of its own",
            why=f"kind is {tls.kind}",
            fix="set service.tls.kind to internal, and authority to a directory such as "
            f"~/.config/slipway/ca-{fleet.name}",
        )
    return tls.authority


def create(fleet: Fleet) -> Path:
    """
    Make the fleet's authority; return the file that clients trust.

    Raises:
        DeployError: The fleet has none, or its directory is in use.
    """
    directory = authority_directory(fleet)
    create_authority(directory, fleet.name, datetime.now(UTC))
    return directory / CERTIFICATE


def new_pairs(fleet: Fleet) -> dict[str, Pair]:
    """
    Return a certificate for each selected host: newly issued, or that of the operator's files.

    Raises:
        InventoryError: TLS is off, or a file or the authority cannot be used.
    """
    if not fleet.service.tls.is_on:
        raise InventoryError(
            f"{fleet.path.name}: service.tls: the public port is plain HTTP",
            why="kind is plain",
            fix="set service.tls.kind, then inv provision",
        )
    return wanted_pairs(fleet, datetime.now(UTC), is_kept=True, is_new=True)


def without_certificate(fleet: Fleet) -> tuple[str, ...]:
    """
    Return the selected hosts for which no ACME server has issued a certificate yet.

    Raises:
        InventoryError: One of them has no DNS name.
    """
    if fleet.service.tls.kind != "acme":
        return ()
    now = datetime.now(UTC)
    lacking = [one for one in acme.orders(fleet) if acme.stored_pair(fleet, one, now) is None]
    hosts = {host for order in lacking for host in order.hosts}
    return tuple(host.name for host in fleet.hosts if host.name in hosts)


def renew(
    on: Hosts, pairs: Mapping[str, Pair], replaced: Mapping[str, str] | None = None
) -> Renewal:
    """
    Give each host its pair of *pairs*, all at once.

    Args:
        replaced: SHA-256 of the certificates that hosts were seen with: one that another operator
            has given a host since stays.
    """
    seen = replaced or {}

    def one(host: str) -> None:
        request = CertificateSet(pem=pairs[host].pem.reveal(), replaces=seen.get(host))
        if not on.clients[host].call(request, timeout_s=_RENEW_S).served:
            raise CommandFailed(
                f"{host}: HAProxy does not serve the new certificate yet",
                why="it does not run, or not with a certificate, or lost its runtime socket; the "
                "file on the host is the new one",
                fix=f"inv provision --limit {host}",
                host=host,
            )

    return Renewal(pairs, errors=on_each(pairs, one))
