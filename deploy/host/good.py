"""
The verbs that record releases as good and roll that record back; what of it is still there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from deploy.host.bundle.admission import raise_counter
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
    Remove the good releases after the named one from the record.
    """
    return _write(system, call, request.VERB, encode(request), to_release=request.to_release)


def still_there(layout: Layout, good: Iterable[GoodRelease]) -> tuple[GoodRelease, ...]:
    """
    Return those of *good* that are still on the host: the others were retired.
    """
    linked = {linked_bundle(layout, slot) for slot in SLOTS}
    return tuple(
        release
        for release in good
        if release.bundle in linked or layout.release(release.bundle).is_dir()
    )


def staged(layout: Layout) -> tuple[str, ...]:
    """
    Return the bundles that this host can start, sorted.
    """
    try:
        names = [path.name for path in layout.releases.iterdir()]
    except OSError:
        return ()
    return tuple(sorted(name for name in names if _DIGEST.fullmatch(name)))


def _write(
    system: System, call: Call, verb: str, args: dict[str, Any], to_release: str | None = None
) -> GoodReleases:
    # The journal line is the effect, so intent and result are written under one lease check.
    book = Journal(system)
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        Leases(system).check(call.fence)
        if to_release is not None:
            _check_known(to_release, book.replay().good)
        if verb == GoodRecord.VERB:
            # Before the line that makes it good: a crash in between leaves the stricter record.
            raise_counter(system, args["bundle"])
        intent = book.append(intent_of(call, verb, args))
        book.append(result_of(intent, result={}))
        return GoodReleases(tuple(book.replay().good))


def _check_known(release: str, good: list[GoodRelease]) -> None:
    if release not in [g.release for g in good]:
        known = ", ".join(f"{g.version} ({g.release})" for g in good) or "none"
        raise HostError(
            ErrorKind.NOTHING_TO_ROLL_BACK_TO,
            f"no release {release} is recorded as good",
            f"recorded: {known}",
            "inv rollback --to one of these",
        )
