"""
The verbs that are a few lines: lease, journal, good releases.
"""

from __future__ import annotations

from typing import Any

from deploy.host import journal
from deploy.host.files import locked
from deploy.host.journaled import LOCK_TIMEOUT_S, note
from deploy.host.lease import Leases
from deploy.host.rpc import HostError, Request
from deploy.host.system import System

_LEASE_MAX_S = 3600.0
_READ_MAX = 10_000
# What only the holder of the lease may say.
_OWN_WORDS = frozenset({journal.BEGIN, journal.END, journal.PAUSED, journal.RESUMED})


def lease_acquire(system: System, request: Request) -> dict[str, Any]:
    """
    Take the lease of this host, with a number that is higher than any before.
    """
    owner = request.args.text("owner")
    ttl_s = _ttl_s(request)
    release = request.args.text("release", request.release or "")
    request.args.done()
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        lease = Leases(system).take(owner, release or None, ttl_s)
        taken = request._replace(fence=lease.fence, release=lease.release)
        note(system, taken, "lease.acquire", {"owner": owner, "ttl_s": ttl_s})
    return {"fence": lease.fence, "expires_at": lease.expires_at}


def lease_renew(system: System, request: Request) -> dict[str, Any]:
    """
    Move the end of one's own lease; not written down, since it comes every few seconds.
    """
    ttl_s = _ttl_s(request)
    request.args.done()
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        leases = Leases(system)
        lease = leases.renew(leases.check(request.fence), ttl_s)
    return {"fence": lease.fence, "expires_at": lease.expires_at}


def lease_release(system: System, request: Request) -> dict[str, Any]:
    """
    Give one's own lease back; somebody else's is left alone.
    """
    request.args.done()
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        released = Leases(system).give_back(request.fence)
        if released:
            note(system, request, "lease.release", {})
    return {"released": released}


def journal_append(system: System, request: Request) -> dict[str, Any]:
    """
    Write an event; the life of a release may be told by the holder of the lease alone.
    """
    what = request.args.text("step")
    data = request.args.mapping("data", {})
    request.args.done()
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        if request.fence is not None or what in _OWN_WORDS:
            Leases(system).check(request.fence)
        return {"seq": note(system, request, what, data)}


def journal_read(system: System, request: Request) -> dict[str, Any]:
    """
    Return the lines after "since_seq", at most "limit" of them; "more" says whether that is all.
    """
    since = request.args.whole("since_seq", 0, 2**63, 0)
    limit = request.args.whole("limit", 1, _READ_MAX, 1000)
    request.args.done()
    entries, damaged = journal.Journal(system).read()
    found = [entry for entry in entries if entry["seq"] > since]
    return {"entries": found[:limit], "more": len(found) > limit, "damaged": damaged}


def good_record(system: System, request: Request) -> dict[str, Any]:
    """
    Record the release as good: what a rollback may go back to.
    """
    bundle, version = request.args.digest("bundle"), request.args.text("version")
    slot = request.args.slot()
    request.args.done()
    if request.release is None:
        raise HostError(
            "UsageError",
            "good.record: no release was named",
            "release is null",
            "give the release in the document",
        )
    return _write_good(system, request, {"bundle": bundle, "version": version, "slot": slot})


def good_rollback(system: System, request: Request) -> dict[str, Any]:
    """
    Forget the good releases after "to_release".
    """
    to_release = request.args.text("to_release")
    request.args.done()
    return _write_good(system, request, {"to_release": to_release})


def _write_good(system: System, request: Request, args: dict[str, Any]) -> dict[str, Any]:
    # Its result is its effect, so both lines are written under the one check of the lease.
    book = journal.Journal(system)
    with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        Leases(system).check(request.fence)
        good = book.replay().good
        if "to_release" in args and args["to_release"] not in [g["release"] for g in good]:
            known = ", ".join(f"{g['version']} ({g['release']})" for g in good) or "none"
            raise HostError(
                "NothingToRollBackTo",
                f"no release {args['to_release']} is recorded as good",
                f"on record: {known}",
                "inv rollback --to one of these",
            )
        line = journal.entry(
            request.verb,
            journal.INTENT,
            release=request.release,
            fence=request.fence,
            actor=request.actor,
            args=args,
        )
        intent = book.append(line)
        done = {**line, "phase": journal.RESULT, "intent": intent["seq"], "ok": True, "result": {}}
        book.append(done)
        return {"good": book.replay().good}


def _ttl_s(request: Request) -> float:
    ttl_s = request.args.seconds("ttl_s")
    if ttl_s > _LEASE_MAX_S:
        raise HostError(
            "UsageError",
            f"{request.verb}: ttl_s should be at most {_LEASE_MAX_S:.0f}",
            f"got {ttl_s}",
            "renew the lease instead",
        )
    return ttl_s
