"""
The text of a desired state, as every host stores it.  Pure.

Every host stores the whole at every step, so that the bytes sent grow with the square of the fleet.
The text names each host once: in its wave.  What else is said of hosts is said of runs of them,
`[first, count]` in the order of the waves.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

from deploy.errors import PreconditionError
from deploy.foreign_text import visible
from deploy.host.codec import Malformed, decode, encode
from deploy.host.layout import SLOTS
from deploy.host.protocol import STATE_MAX
from deploy.release.desired import Desired
from deploy.release.plan import HostPlan

Runs = tuple[tuple[int, ...], ...]  # (first, count) each
_FIELDS = {field.name for field in fields(HostPlan)} - {"host"}
_REPEATS = 4  # how often verdicts may name a host: in its wave and in the last measurement


@dataclass(frozen=True, slots=True)
class _Part:
    """
    Attributes:
        fields: Of `HostPlan`, all but the name.
        at: Hosts with these.
    """

    fields: dict[str, Any]
    at: Runs


def to_text(desired: Desired) -> str:
    """
    Return *desired* as hosts store it; epoch and number stand beside the text.
    """
    document = encode(desired)
    del document["epoch"], document["number"]
    plan = document["plan"]
    position = {name: n for n, name in enumerate(chain.from_iterable(plan["waves"]))}
    at: dict[str, list[int]] = {}
    for host in plan.pop("hosts"):
        number = position[host.pop("host")]
        at.setdefault(_json(host), []).append(number)
    plan["parts"] = [{"fields": json.loads(text), "at": _runs(sorted(at[text]))} for text in at]
    for ruling in document["rulings"]:
        ruling["hosts"] = _runs(sorted(position[name] for name in ruling["hosts"]))
    return _json(document)


def from_text(text: str, epoch: int, number: int) -> Desired:
    """
    Return the desired state in *text*.

    Raises:
        PreconditionError: It is not valid, or of another release of slipway.
    """
    try:
        if len(text) > STATE_MAX:
            raise Malformed(f"it has {len(text)} characters, at most {STATE_MAX} are stored")
        document = _spelled_out(json.loads(text))
        desired = decode(Desired, {**document, "epoch": epoch, "number": number}, "state")
        _check(desired)
    except (ValueError, RecursionError) as error:
        raise PreconditionError(
            "the desired state of the fleet cannot be read",
            why=visible(str(error)),
            fix="another release of slipway wrote it: use that one, or begin anew with "
            "inv rollback --to VERSION",
        ) from None
    return desired


def _spelled_out(document: Any) -> dict[str, Any]:
    """
    Return *document* with the names of hosts in place of runs.
    """
    state: dict[str, Any] = decode(dict[str, Any], document, "state")
    plan: dict[str, Any] = decode(dict[str, Any], state.get("plan"), "state.plan")
    waves = decode(tuple[tuple[str, ...], ...], plan.get("waves"), "state.plan.waves")
    names = list(chain.from_iterable(waves))
    parts = decode(tuple[_Part, ...], plan.pop("parts", None), "state.plan.parts")
    hosts: dict[int, dict[str, Any]] = {}
    for part in parts:
        if unknown := part.fields.keys() - _FIELDS:
            raise Malformed(f"a host of its plan has the key {min(unknown)[:40]}")
        at = _positions(part.at, len(names))
        if len(hosts) + len(at) > len(names):
            raise Malformed("a host of its plan is there twice")
        hosts |= dict.fromkeys(at, part.fields)
    if len(hosts) != len(names):
        raise Malformed("the hosts of its plan and of its waves differ")
    plan["hosts"] = [{"host": name, **hosts[n]} for n, name in enumerate(names)]
    rulings = decode(tuple[dict[str, Any], ...], state.get("rulings"), "state.rulings")
    left = _REPEATS * len(names)
    for ruling in rulings:
        runs = decode(Runs, ruling.get("hosts"), "state.rulings.hosts")
        ruling["hosts"] = [names[n] for n in _positions(runs, len(names))]
        left -= len(ruling["hosts"])
        if left < 0:
            raise Malformed("its verdicts name more hosts than its waves have")
    return {**state, "plan": plan, "rulings": list(rulings)}


def _runs(positions: Iterable[int]) -> list[list[int]]:
    """
    Return ascending *positions* as `[first, count]` each.
    """
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([position, 1])
    return runs


def _positions(runs: Runs, of: int) -> list[int]:
    """
    Return the positions of *runs*, ascending and each once.

    Raises:
        Malformed: They are not those of *of* hosts.
    """
    positions: list[int] = []
    end = 0
    for run in runs:
        first, count = run if len(run) == 2 else (of, 1)
        if first < end or count < 1 or first + count > of:
            raise Malformed(f"a run of hosts is {list(run)[:3]}, of {of} hosts")
        end = first + count
        positions += range(first, end)
    return positions


def _json(document: Any) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _check(desired: Desired) -> None:
    plan = desired.plan
    if len(plan.by_name) != len(plan.hosts):  # its hosts are those of its waves
        raise Malformed("the hosts of its plan and of its waves differ")
    for host in plan.hosts:
        if {host.to_slot, host.other_slot} != set(SLOTS) or host.from_slot not in (None, *SLOTS):
            raise Malformed(f"the slots of {host.host} contradict each other")
    if any(not 0 <= ruling.wave <= len(plan.waves) for ruling in desired.rulings):
        raise Malformed("a verdict is on a wave that it has not")
    _ = plan.rules
