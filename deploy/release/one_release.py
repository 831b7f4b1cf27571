"""
Which release would make hosts that differ one fleet again, in words for the operator.  Pure.
"""

import re
from collections.abc import Mapping

from deploy.foreign_text import listed, quoted
from deploy.release.desired import Desired, Ending
from deploy.release.observe import Observed, ObservedSlot
from deploy.release.plan import Kind
from deploy.release.rollback import served_before
from deploy.release.rollback_target import record_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_DIGITS = 12  # of a digest, where a version names no single bundle
_SHOWN = 3  # releases that one remedy names


def differing(observed: Mapping[str, Observed]) -> str:
    """
    Return what hosts serve that do not serve the same; empty where all do.
    """
    groups: dict[str, list[str]] = {}
    bundles: dict[str, set[tuple[str | None, ...]]] = {}
    for name, current in observed.items():
        slots = _serving(current)
        text = " and ".join(quoted(slot.version or "-", limit=64) for slot in slots) or "nothing"
        groups.setdefault(text, []).append(name)
        bundles.setdefault(text, set()).add(tuple(sorted(slot.bundle or "" for slot in slots)))
    if len(groups) < 2 and all(len(one) == 1 for one in bundles.values()):
        return ""
    return "; ".join(f"{text} on {listed(names)}" for text, names in groups.items())


def remedy(
    observed: Mapping[str, Observed], last: Desired | None = None, unreadable: int = 0
) -> str:
    """
    Return the rollback that makes hosts one that differ, and which of them it moves.

    It goes to what more than half of the fleet's hosts serve alone; where no release has that many,
    or another host was moved since the last one on record, the operator chooses, and what all hosts
    have on record comes first: it needs no bundle.  What the last one was taken back from is not
    named.  Empty where no host has what serves on record.

    Args:
        last: The desired state on record.
        unreadable: Number of hosts of the fleet that are not in *observed*.
    """
    refused, instead = _taken_back(last)
    moved = moved_since(observed, last)
    serving: dict[str, list[str]] = {}
    for name, current in observed.items():
        slots = _serving(current)
        if len(slots) == 1 and slots[0].bundle is not None:
            serving.setdefault(slots[0].bundle, []).append(name)
    names = [bundle for bundle in serving if bundle != refused or moved & set(serving[bundle])]
    if not names and instead is not None:
        names, serving[instead] = [instead], []
    choices = sorted(
        (bundle for bundle in names if any(record_of(c, bundle) for c in observed.values())),
        key=lambda bundle: -len(serving[bundle]),
    )
    if not choices:
        return ""
    is_most = 2 * len(serving[choices[0]]) > len(observed) + unreadable
    if is_most and moved <= set(serving[choices[0]]):
        choices = choices[:1]
    moving = {
        bundle: [name for name in observed if name not in serving[bundle]] for bundle in choices
    }
    choices.sort(  # stable
        key=lambda bundle: not all(record_of(observed[name], bundle) for name in moving[bundle])
    )
    ways = []
    for bundle in choices[:_SHOWN]:
        names = moving[bundle]
        ways.append(f"inv rollback --to {_name(observed, bundle)} moves {listed(names)}")
    text = "; or ".join(ways)
    if len(choices) == 1:
        return text
    why = "hosts were moved since" if is_most else "no release serves on most hosts"
    return f"{why}, choose: {text}"


def moved_since(observed: Mapping[str, Observed], last: Desired | None) -> set[str]:
    """
    Return the hosts that hold a desired state of a newer epoch than *last*, which is on record.

    A way back needs no majority: it is on the hosts that answered then.
    """
    epoch = last.epoch if last is not None else 0
    return {name for name, one in observed.items() if one.state and one.state.epoch > epoch}


def _taken_back(last: Desired | None) -> tuple[str | None, str | None]:
    """
    Return the bundle that the fleet was taken back from by *last*, and the one that it went to.
    """
    if last is None or last.ending not in (Ending.REVERTED, Ending.ROLLED_BACK):
        return None, None
    plan = last.plan
    served = served_before(plan)
    if served == plan.bundle:
        return None, served
    return (served, plan.bundle) if plan.kind is Kind.ROLLBACK else (plan.bundle, served)


def _serving(current: Observed) -> list[ObservedSlot]:
    return [slot for slot in current.slots if slot.has_traffic]


def _name(observed: Mapping[str, Observed], bundle: str) -> str:
    """
    Return the version of *bundle*, or digits of its digest where hosts call other ones the same.
    """
    named = {
        (good.version, good.bundle) for current in observed.values() for good in current.good
    } | {
        (slot.version, slot.bundle) for current in observed.values() for slot in current.slots
    }  # fmt: skip
    versions = {version for version, of in named if of == bundle and version is not None}
    version = versions.pop() if len(versions) == 1 else ""
    is_only = {of for said, of in named if said == version} == {bundle}
    return version if is_only and _NAME.fullmatch(version) else bundle[:_DIGITS]
