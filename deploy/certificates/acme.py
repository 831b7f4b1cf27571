"""
Certificates that an ACME server issues: which a fleet needs, when they are renewed, and where
certbot keeps them on this machine.

`deploy/wiring/acme.py` obtains them.
"""

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from deploy.certificates.authority import RENEW_BEFORE, Authority, ephemeral_authority
from deploy.certificates.operator_files import check_trust
from deploy.certificates.pair import (
    CertificateProblem,
    Pair,
    check_pair,
    names_of,
    pair_of,
    parse_chain,
    parse_key,
)
from deploy.errors import InventoryError
from deploy.host.protocol import CERTIFICATE_MAX
from deploy.inventory.names import is_public_name
from deploy.inventory.schema import Fleet, Host, Tls

FOLDER = Path(__file__).parents[2] / ".slipway" / "acme"  # of all fleets
PLACEHOLDER = "slipway placeholder"  # issuer of what is shown before the first certificate
PLACEHOLDER_TIME = timedelta(days=7)  # less than `inv status` warns at


@dataclass(frozen=True, slots=True)
class CertificateOrder:
    """
    A certificate that the fleet needs.

    Attributes:
        label: What certbot calls it: the name of the fleet or of the host.
        names: DNS names that it is for.
        hosts: Those that show it, selected or not.
    """

    label: str
    names: tuple[str, ...]
    hosts: tuple[str, ...]


def orders(fleet: Fleet) -> tuple[CertificateOrder, ...]:
    """
    Return the certificates that the selected hosts need.

    One for all of the fleet's hosts if `service.tls.names` has names, else one for each host.

    Raises:
        InventoryError: A host has no DNS name.
    """
    names = service_names(fleet.service.tls)
    if names:
        everyone = tuple(host.name for host in (*fleet.hosts, *fleet.others))
        return (CertificateOrder(fleet.name, names, everyone),)
    return tuple(
        CertificateOrder(host.name, (_name_of(fleet, host),), (host.name,)) for host in fleet.hosts
    )


def service_names(tls: Tls) -> tuple[str, ...]:
    """
    Return the names that all hosts share, as an ACME server writes them.
    """
    return tuple(dict.fromkeys(_plain(name) for name in tls.names))


def _name_of(fleet: Fleet, host: Host) -> str:
    for name in (host.address, host.name):
        if is_public_name(name):
            return _plain(name)
    raise InventoryError(
        f"{fleet.path.name}: hosts.{host.name}: no DNS name for its certificate",
        why=f"neither its address, {host.address}, nor its name is a DNS name with a dot",
        fix="list the names that clients use in service.tls.names, or name the host by its DNS "
        "name; for addresses, set service.tls.kind to internal",
    )


def _plain(name: str) -> str:
    return name.removesuffix(".").lower()


def certbot_folder(fleet: Fleet) -> Path:
    """
    Return the directory of the account and the certificates at the fleet's ACME server.

    Each server has its own, so that certificates of a test server are never given to hosts once
    the fleet file names another server.
    """
    server = re.sub(r"[^A-Za-z0-9.-]+", "_", fleet.service.tls.acme.server.removeprefix("https://"))
    return FOLDER / fleet.name / server


def live_folder(fleet: Fleet, order: CertificateOrder) -> Path:
    """
    Return the directory with the newest certificate and key of *order*.
    """
    return certbot_folder(fleet) / "live" / order.label


def stored_pair(fleet: Fleet, order: CertificateOrder, now: datetime) -> Pair | None:
    """
    Return the certificate that certbot has for *order*; None: none, or none that hosts can use.

    Its names may be others than those of *order*.
    """
    folder = live_folder(fleet, order)
    with contextlib.suppress(OSError, CertificateProblem, ValueError):
        return read_pair(folder, now)
    return None


def read_pair(folder: Path, now: datetime) -> Pair:
    """
    Return the certificate and key that certbot wrote to *folder*.

    Raises:
        OSError: A file cannot be read.
        CertificateProblem: They cannot be used.
    """
    chain = parse_chain((folder / "fullchain.pem").read_bytes()[: CERTIFICATE_MAX + 1])
    key = parse_key((folder / "privkey.pem").read_bytes()[: CERTIFICATE_MAX + 1])
    check_pair(chain, key, now)
    pair = pair_of(chain, key)
    if len(pair.pem.reveal()) > CERTIFICATE_MAX:
        why = f"with its key it has more than {CERTIFICATE_MAX // 1024} KiB"
        raise CertificateProblem(why, "ask the ACME server for a shorter chain")
    return pair


def check_issued(fleet: Fleet, order: CertificateOrder, names: Iterable[str] | None = None) -> None:
    """
    Check that clients accept the certificate that certbot has for *order*.

    Args:
        names: That the clients use; None: those of *order*.

    Raises:
        InventoryError: They refuse.
    """
    folder = live_folder(fleet, order)
    chain, key = folder / "fullchain.pem", folder / "privkey.pem"
    wanted = {name: (name,) for name in names or order.names}
    try:
        check_trust(chain, key, fleet.service.tls.authority, wanted)
    except CertificateProblem as problem:
        raise InventoryError(
            f"{', '.join(order.names)}: clients would refuse the certificate of the ACME server",
            why=f"{chain}: {problem.why}",
            fix=problem.fix,
        ) from None


def is_due(leaf: x509.Certificate, now: datetime) -> bool:
    """
    Return whether *leaf* is to be renewed: 30 days, or a third of a shorter life, are left.
    """
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return leaf.not_valid_after_utc - now <= min(RENEW_BEFORE, life / 3)


def needs_new(pair: Pair | None, order: CertificateOrder, now: datetime) -> bool:
    """
    Return whether the ACME server has to issue a certificate for *order*.
    """
    if pair is None or is_due(pair.leaf, now):
        return True
    return {_plain(name) for name in names_of(pair.leaf)} != set(order.names)


def placeholder(names: Sequence[str], now: datetime) -> Pair:
    """
    Return a certificate that no client accepts; HAProxy does not start without one.

    The key that signed it is dropped.
    """
    authority: Authority = ephemeral_authority(PLACEHOLDER, now, PLACEHOLDER_TIME)
    return authority.issue(names, now)


def is_placeholder(leaf: x509.Certificate) -> bool:
    """
    Return whether *leaf* is a placeholder.
    """
    return _of_issuer(leaf.issuer, NameOID.COMMON_NAME) == [PLACEHOLDER]


def keeps(on_host: x509.Certificate, wanted: x509.Certificate, now: datetime) -> bool:
    """
    Return whether a host keeps *on_host*, although this machine has *wanted* for it.

    A placeholder never replaces a certificate that is valid.  A certificate that another machine
    obtained stays if it is for the same names and not older.
    """
    is_valid = on_host.not_valid_before_utc <= now < on_host.not_valid_after_utc
    if not is_valid or (is_placeholder(on_host) and not is_placeholder(wanted)):
        return False
    if is_placeholder(on_host):
        return set(names_of(wanted)) <= set(names_of(on_host)) and not is_due(on_host, now)
    return is_placeholder(wanted) or is_as_good(
        names_of(on_host),
        on_host.issuer,
        (on_host.not_valid_before_utc, on_host.not_valid_after_utc),
        wanted,
    )


def is_as_good(
    names: Iterable[str],
    issuer: x509.Name,
    valid: tuple[datetime, datetime],
    wanted: x509.Certificate,
) -> bool:
    """
    Return whether a certificate with these attributes stands in for *wanted*.

    The one that was issued later does, also where it is for a shorter time: what an operator
    obtains now has a reason, such as a lost key or another profile of the server.

    Args:
        valid: When it begins and ends.
    """
    own = (wanted.not_valid_before_utc, wanted.not_valid_after_utc)
    return set(names_of(wanted)) <= set(names) and _is_one(issuer, wanted.issuer) and valid >= own


def _is_one(issuer: x509.Name, other: x509.Name) -> bool:
    """
    Return whether both names are of one ACME server.

    It signs with several intermediates of one organisation; a test server is another organisation.
    Names without an organisation have to be the same as a whole.
    """
    one, two = (_of_issuer(name, NameOID.ORGANIZATION_NAME) for name in (issuer, other))
    if one and two:
        return one == two
    return not one and not two and len(list(issuer)) > 0 and issuer == other


def _of_issuer(issuer: x509.Name, kind: x509.ObjectIdentifier) -> list[str | bytes]:
    try:
        return [attribute.value for attribute in issuer.get_attributes_for_oid(kind)]
    except Exception:  # the library has many for malformed input
        return []
