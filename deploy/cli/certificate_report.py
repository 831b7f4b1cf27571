"""
Certificates of hosts as tables and as JSON documents.  Nothing here prints.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives import hashes

from deploy.certificates.pair import Pair, names_of
from deploy.cli.grid import Cell, Grid
from deploy.cli.report import certificate_json
from deploy.errors import DeployError
from deploy.foreign_text import listed
from deploy.release.findings import EXPIRES_SOON
from deploy.release.observe import Observed
from deploy.wiring.certificates import Renewal

_FINGERPRINT = 16  # digits that a table shows


def certificates_json(
    fleet: str, seen: Mapping[str, Observed | DeployError], now: datetime
) -> dict[str, Any]:
    """
    Return the document of `inv certs.show --json`.
    """
    hosts: list[dict[str, Any]] = []
    for name, state in seen.items():
        if isinstance(state, DeployError):
            hosts.append({"host": name, "error": state.as_json()})
        else:
            shown = certificate_json(state)
            if shown is not None and state.certificate is not None:
                shown["days_left"] = state.certificate.days_left(now)
            hosts.append({"host": name, "tls": state.has_tls, "certificate": shown})
    return {"fleet": fleet, "hosts": hosts}


def certificates_table(
    seen: Mapping[str, Observed | DeployError], now: datetime, wants_tls: bool = False
) -> Grid:
    """
    Return the table of `inv certs.show`.

    Args:
        wants_tls: The fleet file has TLS on the public port.
    """
    table = Grid(("host", "ends", "days left", "names", "issuer", "SHA-256"))
    for name, state in seen.items():
        if isinstance(state, DeployError):
            table.add_row(name, Cell("unreadable", "red"), "-", "-", "-", "-")
            table.notes.append(f"{state.what}: {state.why}")
        elif not state.has_tls:
            word = Cell("plain HTTP", "red") if wants_tls else "plain HTTP"
            table.add_row(name, word, "-", "-", "-", "-")
        elif state.certificate is None:
            table.add_row(name, Cell("none", "red"), "-", "-", "-", "-")
        else:
            shown = state.certificate
            is_fresh = shown.not_after - now >= EXPIRES_SOON
            table.add_row(
                name,
                f"{shown.not_after:%Y-%m-%d %H:%M}",
                Cell(str(shown.days_left(now)), "green" if is_fresh else "red"),
                listed(shown.names),
                shown.issuer,
                shown.sha256[:_FINGERPRINT],
            )
    return table


def renewal_json(fleet: str, renewal: Renewal) -> dict[str, Any]:
    """
    Return the document of `inv certs.renew --json`.
    """
    hosts: list[dict[str, Any]] = []
    for name, pair in _pairs(renewal).items():
        document: dict[str, Any] = {
            "host": name,
            "renewed": name in renewal.pairs and name not in renewal.errors,
            "unchanged": name in renewal.kept,
        }
        if pair is not None:
            ends = f"{pair.leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
            document |= {"not_after": ends, "sha256": _sha256(pair)}
        hosts.append(document)
    return {"fleet": fleet, "hosts": hosts}


def renewal_table(renewal: Renewal) -> Grid:
    """
    Return the table of `inv certs.renew`.
    """
    table = Grid(("host", "certificate", "ends", "names", "SHA-256"))
    for name, pair in _pairs(renewal).items():
        if name in renewal.errors:
            word = Cell("not renewed", "red")
        else:
            word = Cell("unchanged" if name in renewal.kept else "renewed", "green")
        if pair is None:
            table.add_row(name, word, "-", "-", "-")
            continue
        table.add_row(
            name,
            word,
            f"{pair.leaf.not_valid_after_utc:%Y-%m-%d %H:%M}",
            listed(names_of(pair.leaf)),
            _sha256(pair)[:_FINGERPRINT],
        )
    return table


def _pairs(renewal: Renewal) -> dict[str, Pair | None]:
    """
    Return the certificate of each host; None where there is no new one.
    """
    return {**dict.fromkeys(renewal.errors), **renewal.kept, **renewal.pairs}


def _sha256(pair: Pair) -> str:
    return pair.leaf.fingerprint(hashes.SHA256()).hex()
