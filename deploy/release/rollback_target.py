"""
Which release a fleet goes back to.  Pure.

A host may be hostile.  No host decides for another one: each host goes only to a release on its
own record, and which one is what more than half of the hosts say.
"""

import re
from collections import Counter
from collections.abc import Mapping

from deploy.errors import NothingToRollBackTo, UsageError
from deploy.host.protocol import GoodRelease
from deploy.release.observe import Observed

_SHORTEST_PREFIX = 8  # hex digits of a digest that name a bundle


def choose_target(observed: Mapping[str, Observed], to: str | None) -> dict[str, GoodRelease]:
    """
    Return the record of the release to go back to, of each host that has it.

    *to* names it by version, by release id, or by 8 or more hex digits of the bundle's digest, in
    this order.  Without it, each host has one vote: the release that an unfinished rollback was
    returning to; else the last good one, if any host stopped in the middle of a release; else the
    one before that.

    Raises:
        UsageError: *to* is empty, or a prefix of more than one digest.
        NothingToRollBackTo: No host has it, or no release has more than half of the votes.
    """
    recorded = {name: current for name, current in observed.items() if current.good}
    if not recorded:
        raise NothingToRollBackTo(
            f"{', '.join(observed)}: there is no release to roll back to",
            why="no release was ever recorded as good there",
            fix="inv release",
        )
    votes = _named(recorded, to) if to is not None else _voted(recorded)
    bundle = _majority(votes)
    return {
        name: record
        for name, current in recorded.items()
        if (record := _record_of(current, bundle)) is not None
    }


def most_common(records: Mapping[str, GoodRelease]) -> GoodRelease:
    """
    Return the record that most of the hosts have word for word.
    """
    return Counter(records.values()).most_common(1)[0][0]


def is_settled(current: Observed) -> bool:
    """
    Return whether the last good release has all the traffic, even if its unit is dead.

    A host where a release began and has not ended is not settled.
    """
    if current.unfinished or current.paused:
        return False
    has = [slot for slot in current.slots if slot.has_traffic]
    return len(has) == 1 and has[0].bundle == current.good[-1].bundle


def on_record(current: Observed) -> str:
    """
    Return the good releases of a host as text, newest first.
    """
    return ", ".join(f"{g.version} ({g.release})" for g in reversed(current.good)) or "none"


def _named(recorded: Mapping[str, Observed], to: str) -> dict[str, GoodRelease]:
    if not to:
        raise UsageError(
            "--to: an empty name",
            why="every release would match it",
            fix="inv rollback without --to, or --to VERSION",
        )
    found = {name: _match(current, to) for name, current in recorded.items()}
    votes = {name: record for name, record in found.items() if record is not None}
    if not votes:
        raise NothingToRollBackTo(
            f"{', '.join(recorded)}: no release {to} is recorded as good and still there",
            why="; ".join(f"{name} has {on_record(c)}" for name, c in recorded.items()),
            fix="inv rollback --to one of these, or inv release with that bundle",
        )
    return votes


def _match(current: Observed, to: str) -> GoodRelease | None:
    newest_first = list(reversed(current.good))
    by_name = [good for good in newest_first if good.version == to]
    by_name += [good for good in newest_first if good.release == to]
    if by_name:
        return by_name[0]
    if not re.fullmatch(rf"[0-9a-f]{{{_SHORTEST_PREFIX},64}}", to):
        return None
    found = [good for good in newest_first if good.bundle.startswith(to)]
    digests = sorted({good.bundle for good in found})
    if len(digests) > 1:
        raise UsageError(
            f"--to {to}: it stands for {len(digests)} bundles on {current.host}",
            why=", ".join(digests),
            fix="inv rollback --to with more of its digits",
        )
    return found[0] if found else None


def _voted(recorded: Mapping[str, Observed]) -> dict[str, GoodRelease]:
    if not all(is_settled(current) for current in recorded.values()):
        return {name: _interrupted(c) or c.good[-1] for name, c in recorded.items()}
    earlier = {name: _earlier(current) for name, current in recorded.items()}
    votes = {name: record for name, record in earlier.items() if record is not None}
    if not votes:
        raise NothingToRollBackTo(
            f"{', '.join(recorded)}: there is no earlier release to roll back to",
            why="; ".join(f"{name} has {on_record(c)}" for name, c in recorded.items()),
            fix="inv release with another bundle",
        )
    return votes


def _interrupted(current: Observed) -> GoodRelease | None:
    """
    Return the release that an unfinished rollback was returning to; None without one.
    """
    release = current.unfinished.rollback_to if current.unfinished else None
    return next((good for good in current.good if good.release == release), None)


def _earlier(current: Observed) -> GoodRelease | None:
    earlier = [good for good in current.good if good.bundle != current.good[-1].bundle]
    return earlier[-1] if earlier else None


def _majority(votes: Mapping[str, GoodRelease]) -> str:
    """
    Return the digest of the bundle that has more than half of the votes.
    """
    hosts: dict[str, list[str]] = {}
    for name, good in votes.items():
        hosts.setdefault(good.bundle, []).append(name)
    bundle = max(hosts, key=lambda digest: len(hosts[digest]))
    if 2 * len(hosts[bundle]) > len(votes):
        return bundle
    named = "; ".join(
        f"{votes[names[0]].version} ({digest[:12]}) on {', '.join(names)}"
        for digest, names in hosts.items()
    )
    raise NothingToRollBackTo(
        "the hosts do not agree on what to go back to",
        why=named,
        fix="name it: inv rollback --to VERSION, or --to the digest",
    )


def _record_of(current: Observed, bundle: str) -> GoodRelease | None:
    return next((good for good in reversed(current.good) if good.bundle == bundle), None)
