"""
Which bundle a fleet goes back to.  Pure.

A host may be hostile.  No host decides for another one: where a release was, and where a way back
was going, is what more than half of the hosts say.
"""

import re
from collections import Counter
from collections.abc import Mapping
from enum import IntEnum

from deploy.errors import NothingToRollBackTo, UsageError
from deploy.host.protocol import GoodRelease, Unfinished
from deploy.release.observe import Observed

_DIGITS = re.compile(r"[0-9a-f]{8,64}")  # that name a bundle


def choose_bundle(observed: Mapping[str, Observed], to: str | None) -> str:
    """
    Return the digest of the bundle to go back to.

    *to* names it by release id, by version, or by 8 or more hex digits of its digest, in this
    order.  Without it, each host with a record has one vote: see `vote_of`.

    Raises:
        UsageError: *to* is empty, or a name of more than one bundle.
        NothingToRollBackTo: No host has it, or no bundle has more than half of the votes.
    """
    recorded = {name: current for name, current in observed.items() if current.good}
    if not recorded:
        raise NothingToRollBackTo(
            f"{', '.join(observed)}: there is no release to roll back to",
            why="no release that these hosts can serve is recorded as good there",
            fix="inv release",
        )
    if to is not None:
        return _named(recorded, to)
    votes = {n: bundle for n, current in recorded.items() if (bundle := vote_of(current))}
    if not votes:
        raise NothingToRollBackTo(
            f"{', '.join(recorded)}: there is no earlier release to roll back to",
            why="; ".join(f"{name} has {on_record(c)}" for name, c in recorded.items()),
            fix="inv release with another bundle",
        )
    return _majority(votes, recorded)


def vote_of(current: Observed) -> str | None:
    """
    Return the digest of the bundle that a host with a record would go back to by itself.

    Where a way back has not ended: where it was going; in the middle of a release, the last good
    one; where all is settled, the one before that, if there is one.
    """
    if not is_settled(current):
        return _interrupted(current) or current.good[-1].bundle
    earlier = [good.bundle for good in current.good if good.bundle != current.good[-1].bundle]
    return earlier[-1] if earlier else None


def majority_unfinished(observed: Mapping[str, Observed]) -> Unfinished | None:
    """
    Return what has not ended on more than half of the hosts: the same release, epoch and target.

    The step is that of the first of them; None where no such release is.
    """
    open_ones = [current.unfinished for current in observed.values() if current.unfinished]
    counted = Counter(map(_identity, open_ones))
    if not counted:
        return None
    identity, count = counted.most_common(1)[0]
    if 2 * count <= len(observed):
        return None
    return next(one for one in open_ones if _identity(one) == identity)


def _identity(unfinished: Unfinished) -> tuple[object, ...]:
    return (unfinished.release, unfinished.epoch, unfinished.bundle, unfinished.rollback_to)


def is_settled(current: Observed) -> bool:
    """
    Return whether the last good release has all the traffic, even if its unit is dead.

    A host where a release began and has not ended is not settled.  Where HAProxy does not answer,
    the record alone counts.
    """
    if current.unfinished or current.paused:
        return False
    if not current.has_weights:
        return True
    has = [slot for slot in current.slots if slot.has_traffic]
    return len(has) == 1 and has[0].bundle == current.good[-1].bundle


def record_of(current: Observed, bundle: str) -> GoodRelease | None:
    """
    Return the newest record that a host has of *bundle*.
    """
    return next((good for good in reversed(current.good) if good.bundle == bundle), None)


def most_common(records: Mapping[str, GoodRelease]) -> GoodRelease:
    """
    Return the record that most of the hosts have word for word.
    """
    return Counter(records.values()).most_common(1)[0][0]


def is_digest_of(to: str, bundle: str) -> bool:
    """
    Return whether *to* names *bundle* by 8 or more hex digits of its digest.
    """
    return bool(_DIGITS.fullmatch(to)) and bundle.startswith(to)


def on_record(current: Observed) -> str:
    """
    Return the good releases of a host as text, newest first.
    """
    return ", ".join(f"{g.version} ({g.release})" for g in reversed(current.good)) or "none"


class _NamedBy(IntEnum):
    RELEASE = 0
    VERSION = 1
    DIGEST = 2


def _named(recorded: Mapping[str, Observed], to: str) -> str:
    if not to:
        raise UsageError(
            "--to: an empty name",
            why="every release would match it",
            fix="inv rollback without --to, or --to VERSION",
        )
    found = {name: bundles for name, c in recorded.items() if (bundles := _matches(c, to))}
    if not found:
        raise NothingToRollBackTo(
            f"{', '.join(recorded)}: no release {to} is recorded as good and still there",
            why="; ".join(f"{name} has {on_record(c)}" for name, c in recorded.items()),
            fix="inv rollback --to one of these, or inv release with that bundle",
        )
    votes = {name: bundles[0] for name, bundles in found.items() if len(bundles) == 1}
    bundle, count = Counter(votes.values()).most_common(1)[0] if votes else ("", 0)
    if 2 * count > len(found):
        return bundle
    unclear = {name: bundles for name, bundles in found.items() if len(bundles) > 1}
    if unclear:
        most = max(len(bundles) for bundles in unclear.values())
        raise UsageError(
            f"--to {to}: it stands for {most} bundles on {', '.join(unclear)}",
            why="; ".join(f"{name}: {', '.join(bundles)}" for name, bundles in unclear.items()),
            fix="inv rollback --to with 8 or more digits of one of these digests",
        )
    return _majority(votes, recorded)


def _matches(current: Observed, to: str) -> list[str]:
    """
    Return the digests of the bundles that *to* names on one host, each once.
    """

    def named(good: GoodRelease, by: _NamedBy) -> bool:
        match by:
            case _NamedBy.RELEASE:
                return good.release == to
            case _NamedBy.VERSION:
                return good.version == to
            case _NamedBy.DIGEST:
                return is_digest_of(to, good.bundle)

    for by in _NamedBy:
        bundles = list(dict.fromkeys(good.bundle for good in current.good if named(good, by)))
        if bundles:
            return bundles
    return []


def _interrupted(current: Observed) -> str | None:
    """
    Return the bundle that an unfinished way back was going to, if the host can serve it.
    """
    unfinished = current.unfinished
    if unfinished is None or unfinished.rollback_to is None:
        return None
    there = {*current.staged, *(good.bundle for good in current.good)}
    if unfinished.bundle is not None:
        return unfinished.bundle if unfinished.bundle in there else None
    named = [good for good in current.good if good.release == unfinished.rollback_to]
    return named[-1].bundle if named else None


def _majority(votes: Mapping[str, str], recorded: Mapping[str, Observed]) -> str:
    """
    Return the digest of the bundle that has more than half of the votes.
    """
    hosts: dict[str, list[str]] = {}
    for name, bundle in votes.items():
        hosts.setdefault(bundle, []).append(name)
    chosen = max(hosts, key=lambda digest: len(hosts[digest]))
    if 2 * len(hosts[chosen]) > len(votes):
        return chosen
    named = "; ".join(
        f"{_version(recorded, bundle)} ({bundle[:12]}) on {', '.join(names)}"
        for bundle, names in hosts.items()
    )
    raise NothingToRollBackTo(
        "the hosts do not agree on what to go back to",
        why=named + "".join(f"; {said}" for said in map(_unsettled, recorded.values()) if said),
        fix="name it: inv rollback --to VERSION, or --to the digest",
    )


def _version(recorded: Mapping[str, Observed], bundle: str) -> str:
    records = (record_of(current, bundle) for current in recorded.values())
    return next((record.version for record in records if record), "an unknown version")


def _unsettled(current: Observed) -> str:
    """
    Return what a host says has not ended, as text; empty where all is settled.
    """
    if current.paused:
        return f"{current.host} says that {current.paused} waits for a decision"
    if current.unfinished:
        return f"{current.host} says that {current.unfinished.release} has not ended"
    return ""
