"""
The verbs that record releases as good and roll that record back; what of it can serve now.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deploy.host.bundle.admission import raise_counter
from deploy.host.bundle.manifest import MANIFEST, MODEL_LINK, VENV_LINK
from deploy.host.codec import encode
from deploy.host.files import locked
from deploy.host.journal import Journal, result_of
from deploy.host.journaled import LOCK_TIMEOUT_S, intent_of
from deploy.host.layout import SLOTS, Layout
from deploy.host.lease import Leases
from deploy.host.protocol import (
    Call,
    ErrorKind,
    GoodRecord,
    GoodRelease,
    GoodReleases,
    GoodRollback,
    HostError,
)
from deploy.host.slots.haproxy import Haproxy
from deploy.host.slots.slot import linked_bundle
from deploy.host.system import System

_DIGEST = re.compile(r"[0-9a-f]{64}")


def record(system: System, call: Call, request: GoodRecord) -> GoodReleases:
    """
    Record the release of *call* as good: a rollback may return to it.
    """
    if call.release is None:
        raise HostError(
            ErrorKind.USAGE,
            "good.record: the call names no release",
            "release is null",
            "name the release in the request",
        )
    return _write(system, call, request.VERB, encode(request))


def rollback(system: System, call: Call, request: GoodRollback) -> GoodReleases:
    """
    Make the named release the last good one, once it has all the traffic.
    """
    return _write(system, call, request.VERB, encode(request), back=request)


def startable(layout: Layout, good: Iterable[GoodRelease]) -> tuple[GoodRelease, ...]:
    """
    Return those of *good* that the host can start now: the others were retired, or are damaged.
    """
    there = set(staged(layout))
    return tuple(release for release in good if release.bundle in there)


def staged(layout: Layout) -> tuple[str, ...]:
    """
    Return the bundles that this host can start, sorted.
    """
    try:
        names = [path.name for path in layout.releases.iterdir()]
    except OSError:
        return ()
    return tuple(sorted(n for n in names if _DIGEST.fullmatch(n) and _is_whole(layout.release(n))))


def _is_whole(release: Path) -> bool:
    """
    Return whether *release* has its manifest, its environment and its weights.

    It was verified when it was placed, all at once; what its links lead to is shared, and may have
    been deleted since.
    """
    links = [release / name for name in (VENV_LINK, MODEL_LINK)]
    return (release / MANIFEST).is_file() and all(
        link.exists() for link in links if link.is_symlink()
    )


def _write(
    system: System,
    call: Call,
    verb: str,
    args: dict[str, Any],
    back: GoodRollback | None = None,
) -> GoodReleases:
    # The journal line is the effect, so intent and result are written under one lease check.
    book = Journal(system)
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        Leases(system).check(call.fence)
        if back is not None:
            _check_serves(system, _bundle_of(back, book.replay().good))
        else:
            # Before the line that makes it good: a crash in between leaves the stricter record.
            raise_counter(system, args["bundle"])
        intent = book.append(intent_of(call, verb, args))
        book.append(result_of(intent, result={}))
        return GoodReleases(tuple(book.replay().good))


def _bundle_of(back: GoodRollback, good: list[GoodRelease]) -> str:
    """
    Return the bundle of the release to go back to.

    Raises:
        HostError: It is not on record, and *back* does not say what it is.
    """
    for release in reversed(good):
        if release.release == back.to_release:
            return release.bundle
    if back.bundle is not None and back.version is not None:
        return back.bundle
    known = ", ".join(f"{g.version} ({g.release})" for g in good) or "none"
    raise HostError(
        ErrorKind.NOTHING_TO_ROLL_BACK_TO,
        f"no release {back.to_release} is recorded as good",
        f"recorded: {known}",
        "inv rollback --to one of these",
    )


def _check_serves(system: System, bundle: str) -> None:
    """
    Refuse to forget a good release before the way back from it has succeeded here.

    Raises:
        HostError: *bundle* has not all the traffic.
    """
    weights = {slot: server.weight for slot, server in Haproxy(system).servers().items()}
    serving = {linked_bundle(system.layout, slot) for slot in SLOTS if weights.get(slot)}
    if serving == {bundle}:
        return
    serves = ", ".join(sorted(f"{digest[:12]}" for digest in serving if digest)) or "nothing"
    raise HostError(
        ErrorKind.PRECONDITION,
        f"bundle {bundle[:12]} does not serve alone",
        f"{serves} has the traffic",
        "give it all the traffic first: traffic.set",
    )
