"""
Decides whether a bundle with a valid signature is for this host: of its fleet, and no older one.
"""

from __future__ import annotations

import json

from deploy.host.bundle.manifest import OLD_FORMAT, Manifest, parse_manifest
from deploy.host.files import write_atomic
from deploy.host.journal import Journal
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.system import System
from deploy.host.trusted_files import MANIFEST_MAX, read_below

_SETTINGS_MAX = 1 << 20


def check_admitted(
    system: System, manifest: Manifest, *, is_placed: bool, allow_older: bool
) -> None:
    """
    Refuse a bundle of another fleet, or one older than what this host recorded as good.

    A bundle in the old format, and any that the host recorded as good, may be used where it is
    placed already: a rollback depends on it.

    Raises:
        HostError: It is refused, or provisioning has not named this host's fleet.
    """
    if is_placed and manifest.digest in {good.bundle for good in Journal(system).replay().good}:
        return
    name = f"bundle {manifest.version} ({manifest.digest[:12]})"
    if manifest.format == OLD_FORMAT:
        if is_placed:
            return
        raise HostError(
            ErrorKind.PRECONDITION,
            f"{name} is refused",
            "it was built by an older release of slipway, and names no fleet and no counter",
            "build it again: inv bundle",
        )
    fleet = fleet_of(system)
    if manifest.fleet != fleet:
        raise HostError(
            ErrorKind.PRECONDITION,
            f"{name} is for another fleet",
            f"it was built for {manifest.fleet}, this host belongs to {fleet}",
            "build it with the fleet file of this host: inv bundle --hosts; if the fleet was "
            "renamed, inv provision first",
        )
    if allow_older:
        return
    newest = highest_counter(system)
    if manifest.counter >= newest:
        return
    raise HostError(
        ErrorKind.PRECONDITION,
        f"{name} is older than what this host served",
        f"its counter is {manifest.counter}, that of the newest good release {newest}",
        "inv rollback returns to a release that is recorded as good; if this bundle is meant, "
        "inv release --allow-older",
    )


def check_startable(system: System, bundle: str, *, allow_older: bool) -> None:
    """
    Check the placed release of *bundle* as `check_admitted` does.

    Raises:
        HostError: It is refused.
    """
    manifest = placed_manifest(system, bundle)
    if manifest is not None:
        check_admitted(system, manifest, is_placed=True, allow_older=allow_older)


def placed_manifest(system: System, bundle: str) -> Manifest | None:
    """
    Return the manifest of the placed release *bundle*; None if it cannot be read.
    """
    try:
        return parse_manifest(
            read_below(system.layout.release(bundle), "manifest.json", MANIFEST_MAX)
        )
    except (OSError, HostError):
        return None


def fleet_of(system: System) -> str:
    """
    Return the fleet that provisioning put this host in.

    Raises:
        HostError: It has not.
    """
    path = system.layout.host_config
    try:
        fleet = json.loads(read_below(path.parent, path.name, _SETTINGS_MAX))["fleet"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        fleet = None
    if not isinstance(fleet, str):
        raise HostError(
            ErrorKind.PRECONDITION,
            "the host does not know its fleet",
            f"{path} does not name it",
            "inv provision",
        )
    return fleet


def highest_counter(system: System) -> int:
    """
    Return the highest counter of a bundle that was recorded as good here; 0 if none was.

    Raises:
        HostError: The record is damaged: without it an older bundle could not be told.
    """
    path = system.layout.counter
    try:
        return int(read_below(path.parent, path.name, 64))
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise HostError(
            ErrorKind.PRECONDITION,
            "the record of the newest good release is damaged",
            f"{path}: {error}",
            "make sure that this bundle is the newest, then inv release --allow-older",
        ) from None


def raise_counter(system: System, bundle: str) -> None:
    """
    Record that *bundle* is good: an older one is refused from now on; the caller holds the lock.
    """
    manifest = placed_manifest(system, bundle)
    if manifest is None:
        return
    try:
        highest = highest_counter(system)
    except HostError:
        highest = 0  # damaged: this one is the newest that is known
    if manifest.counter > highest:
        write_atomic(system.layout.counter, b"%d\n" % manifest.counter, 0o600)
