"""
API keys as text and as JSON documents.  Nothing here prints.
"""

from datetime import UTC, datetime
from typing import Any

from deploy.api_keys.commands import IssuedToken
from deploy.api_keys.key_list import KeyList, is_revoked
from deploy.api_keys.spread import HeldLists, Spread
from deploy.cli.grid import Cell, Grid
from deploy.errors import DeployError, FleetDiffers
from deploy.foreign_text import quoted
from deploy.host.protocol import ApiKey


def keys_json(lists: HeldLists) -> dict[str, Any]:
    """
    Return the document of `inv keys.list --json`: no token, and no hash of one.
    """
    merged = lists.merged
    return {
        "version": merged.version,
        "keys": [key_json(key) for key in merged.active],
        "behind": list(lists.behind),
        "unread": [{"host": host, "why": _why(error)} for host, error in lists.errors.items()],
    }


def key_json(key: ApiKey) -> dict[str, Any]:
    newest = key.secrets[0]
    return {
        "name": key.key_name,
        "created_at": utc(newest.created_at),
        "expires_at": None if newest.expires_at is None else utc(newest.expires_at),
        "tokens": len(key.secrets),
        "models": list(key.models),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "weight": key.weight,
        "priority": key.priority,
        "concurrency": key.concurrency,
    }


def keys_table(lists: HeldLists, now: int) -> Grid:
    """
    Return the table of `inv keys.list`.
    """
    limits = ("rpm", "tpm", "weight", "priority", "concurrency")
    table = Grid(("key", "created", "expires", "models", *limits))
    for key in lists.merged.active:
        newest = key.secrets[0]
        table.add_row(
            key.key_name,
            utc(newest.created_at),
            _expiry(newest.expires_at, now),
            ", ".join(key.models) or "all",
            str(key.requests_per_minute or "-"),
            str(key.tokens_per_minute or "-"),
            str(key.weight),
            str(key.priority),
            str(key.concurrency or "-"),
        )
        for older in key.secrets[1:]:
            if older.expires_at is not None and older.expires_at > now:
                table.notes.append(f"{key.key_name}: an earlier token ends {utc(older.expires_at)}")
    if not lists.merged.active:
        table.notes.append(_none(lists.merged))
    table.notes += [_note(lists, host) for host in lists.behind]
    table.notes += [f"{host}: {_why(error)}" for host, error in lists.errors.items()]
    return table


def _note(lists: HeldLists, host: str) -> str:
    if (damage := lists.held[host].damage) is not None:
        return f"{host}: its list is damaged: {quoted(damage)}; inv keys.sync"
    if keys := lists.disputed.get(host):
        told = ", ".join(f"{k.key_name} ({'revoked' if is_revoked(k) else 'valid'})" for k in keys)
        return f"{host}: it alone says {told}; inv keys.revoke NAME or inv keys.rotate NAME"
    return f"{host}: it holds another list; inv keys.sync"


def lists_error(lists: HeldLists) -> FleetDiffers | None:
    """
    Return the error of hosts that cannot be read or hold another list.
    """
    hosts = [*lists.behind, *lists.errors]
    if not hosts:
        return None
    return FleetDiffers(
        f"{', '.join(hosts)}: not the same API keys as on the other hosts",
        why="they missed a change, or do not answer",
        fix="inv keys.sync; it names the keys that an operator has to settle",
    )


def not_compared(error: DeployError) -> FleetDiffers:
    """
    Return the error of an `inv provision` that was done, but could not bring the API keys.
    """
    return FleetDiffers(
        f"the hosts are provisioned, their API keys are not compared: {error.what}",
        why=error.why,
        fix="inv keys.sync",
    )


def issued_json(issued: IssuedToken) -> dict[str, Any]:
    """
    Return the document of `inv keys.add --json` and `inv keys.rotate --json`.
    """
    return {"key": key_json(issued.key), "token": issued.token, **spread_json(issued.spread)}


def spread_json(spread: Spread) -> dict[str, Any]:
    return {
        "version": spread.keys.version,
        "hosts": list(spread.hosts),
        "changed": list(spread.changed),
        "missed": [{"host": host, "why": _why(error)} for host, error in spread.missed.items()],
    }


def spread_text(spread: Spread) -> str:
    """
    Return which hosts hold the list now, on one line.
    """
    return f"version {spread.keys.version} of the API keys is on {', '.join(spread.hosts)}"


def utc(at: int) -> str:
    """
    Return seconds since 1970 as a date and time.
    """
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError):  # a host sent a year above 9999
        return "never"


def _expiry(at: int | None, now: int) -> str | Cell:
    if at is None:
        return "never"
    return Cell(f"{utc(at)}, expired", "red") if at <= now else utc(at)


def _none(merged: KeyList) -> str:
    if any(is_revoked(key) for key in merged.keys):
        return "every key is revoked: only the tokens of service.api_tokens are accepted"
    return "no key was ever added: inv keys.add --name NAME"


def _why(error: DeployError) -> str:
    return f"{error.what}: {error.why}"
