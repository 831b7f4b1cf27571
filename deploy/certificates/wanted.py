"""
The certificate that each host of a fleet should have.
"""

import contextlib
from datetime import datetime
from pathlib import Path

from deploy.certificates import acme
from deploy.certificates.authority import Authority, load_authority
from deploy.certificates.operator_files import read_files
from deploy.certificates.pair import (
    CertificateProblem,
    Pair,
    names_of,
    pair_of,
    parse_chain,
    parse_key,
)
from deploy.errors import DeployError
from deploy.inventory.schema import Fleet, Host, Tls
from deploy.private_files import private_directory, write_private

_END_OF_CERTIFICATE = b"-----END CERTIFICATE-----\n"
_STORED_MAX = 64 << 10  # bytes


def wanted_pairs(
    fleet: Fleet, now: datetime, *, is_kept: bool, is_new: bool = False
) -> dict[str, Pair]:
    """
    Return the certificate and key of each selected host, by its name; empty without TLS.

    With kind acme that is what certbot has on this machine, or else a placeholder.

    Args:
        is_kept: Certificates that are issued now are written down beside the authority.
        is_new: The internal authority issues new ones, also where the present ones last.

    Raises:
        InventoryError: A file or the authority is missing or cannot be used.
    """
    tls = fleet.service.tls
    if not tls.is_on:
        return {}
    if tls.kind == "files":
        pair = read_files(fleet, tls, now)
        return {host.name: pair for host in fleet.hosts}
    if tls.kind == "acme":
        return _of_acme(fleet, now)
    authority = own_authority(fleet, now)
    assert authority is not None
    assert tls.authority is not None
    folder = tls.authority / "issued" / fleet.name
    if is_kept:
        private_directory(folder)
    pairs = {}
    for host in fleet.hosts:
        names, path = names_for(host, tls), folder / f"{host.name}.pem"
        stored = None if is_new else _stored(path, authority, names, now)
        pairs[host.name] = stored or authority.issue(names, now)
        if stored is None and is_kept:
            write_private(path, pairs[host.name].pem.reveal())
    return pairs


def _of_acme(fleet: Fleet, now: datetime) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {}
    for order in acme.orders(fleet):
        stored = acme.stored_pair(fleet, order, now)
        if stored is not None:
            # After a change of service.tls.names it is the best there is until certs.renew.
            acme.check_issued(fleet, order, names_of(stored.leaf))
        pair = stored or acme.placeholder(order.names, now)
        pairs |= dict.fromkeys(order.hosts, pair)
    return {host.name: pairs[host.name] for host in fleet.hosts}


def own_authority(fleet: Fleet, now: datetime) -> Authority | None:
    """
    Return the fleet's own authority; None where the fleet file has no such one.

    Raises:
        InventoryError: It is missing or cannot be used.
    """
    tls = fleet.service.tls
    if tls.kind != "internal":
        return None
    assert tls.authority is not None
    return load_authority(tls.authority, now, f"{fleet.path.name}: service.tls.authority")


def names_for(host: Host, tls: Tls) -> tuple[str, ...]:
    """
    Return the names of the certificate that the internal authority issues for *host*.
    """
    return tuple(dict.fromkeys((host.name, host.address, *tls.names)))


def _stored(path: Path, authority: Authority, names: tuple[str, ...], now: datetime) -> Pair | None:
    """
    Return the pair in *path*; None where a new one has to be issued.
    """
    with contextlib.suppress(OSError, CertificateProblem, DeployError):
        data = path.read_bytes()
        chain, end, key = data[:_STORED_MAX].rpartition(_END_OF_CERTIFICATE)
        pair = pair_of(parse_chain(chain + end), parse_key(key))
        if authority.is_current(pair, names, now):
            return pair
    return None
