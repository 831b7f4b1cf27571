"""
The state of a world as one number: two worlds with the same number have the same future.

What no code decides on is left out: line numbers and times of the journal, counts of answered
requests before the present measurement, fencing numbers beyond whose they are.  Times are taken
relative to now and to half a second, and what an operator knows is taken from the last decision of
its loop and the answers since.
"""

import dataclasses
import functools
import hashlib
import json
import mmap
import struct
from typing import NamedTuple

from deploy.host.layout import SLOTS
from deploy.host.records import from_line
from deploy.host.replay import replay

GRAIN_S = 0.5
_DROPPED = frozenset(
    {
        *("left_s", "expires_at", "took_s", "waited_s", "at", "seq", "fence", "free_opt_bytes"),
        *("free_state_bytes", "measured_s", "requests", "reason", "number", "sha256", "boot_id"),
        "expires_steady_s",
    }
)
_OPAQUE = (".spare-", ".tmp-", "reserve", "lock", "stage.lock")


def grain(seconds):
    return round(seconds / GRAIN_S)


class Seen:
    """
    Numbers that were seen, shared by all forked processes.
    """

    def __init__(self, places=1 << 20):
        self._places = places
        self._map = mmap.mmap(-1, places * 8)

    def add(self, *parts):
        """
        Return whether this was there already; afterwards it is.
        """
        number = digest(parts) or 1
        place = number % self._places
        for _ in range(self._places):
            (there,) = struct.unpack_from("<Q", self._map, place * 8)
            if there == number:
                return True
            if there == 0:
                struct.pack_into("<Q", self._map, place * 8, number)
                return False
            place = (place + 1) % self._places
        raise AssertionError("the table is full")


def digest(value):
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "little")


def of_world(world, point=None):
    """
    Return the number of everything.

    Without an operator, the time that a lease has left and the phase of the host's own timer decide
    only when a host goes back, never what it does: they are left out then.
    """
    now_s = world.now_s
    is_alone = not any(map(is_alive, world.operators))
    events = sorted(
        (grain(due_s - now_s), event.label)
        for due_s, _, event in world.pending_events()
        if not (event.label.startswith("timer of") and is_alone)
        and not (event.label.startswith("check ") and is_alone)
    )
    return digest(
        (
            [of_host(host, is_alone=is_alone) for host in world.hosts.values()],
            [of_operator(world, operator) for operator in world.operators if is_alive(operator)],
            events,
            max(0, grain(world.quiet_s - now_s)),
            world.etcd and world.etcd.number(filter(is_alive, world.operators)),
            tuple(point or ()),
        )
    )


def is_alive(operator):
    return not (operator.is_over or operator.is_dead)


# -- hosts


def of_host(host, *, is_alone=False):
    """
    Return the number of one host.
    """
    now_s = host.world.now_s
    proxy = host.proxy
    servers = [
        (s.admin, s.own_weight, s.health, s.health < 2 and grain(host.clock.steady - s.checked_s))
        for s in proxy.servers.values()
    ]
    units = [
        (u.active, u.sub, u.result, u.queued, u.queued and u.looks, u.enabled, u.restarts, u.tasks)
        for u in (host.units[name] for name in sorted(host.units))
    ]
    return digest(
        (
            host.is_on,
            max(0, grain(host.frozen_until_s - now_s)),
            max(0, grain(host.cut_until_s - now_s)),
            max(0, grain(host.excused_until_s - now_s)),
            host.clock.wall_offset,
            proxy.is_running and servers,
            units,
            [host.runtimes[slot].has_metrics for slot in SLOTS],
            min(host.disk.free, 1 << 34),
            list(host.running),
            [_rough(part) if is_alone else part for part in _files(host)],
        )
    )


def _files(host):
    for below in ("var/lib/slipway", "etc/slipway"):
        node = host.disk.top
        for part in below.split("/"):
            node = node.content[part] if node is not None else None
        yield from _directory(host, node, below)
    releases = host.disk.top.content["opt"].content["slipway"].content["releases"]
    yield sorted(releases.content)


def _rough(part):
    if isinstance(part, _Lease):
        return part._replace(left=part.left > 0)
    return part


class _Lease(NamedTuple):
    owner: str | None
    release: str | None
    epoch: int
    left: int
    holders: tuple[str, ...]


def _directory(host, node, path):
    durable = node.durable or {}
    for name in sorted({*node.content, *durable}):
        live, kept = node.content.get(name), durable.get(name)
        yield name, live is not None, kept is not None, live is kept
        for one in (live, kept) if live is not kept else (live,):
            if one is None:
                continue
            if isinstance(one.content, dict):
                yield from _directory(host, one, f"{path}/{name}")
            elif isinstance(one.content, str):
                yield one.content
            elif name.startswith(_OPAQUE):
                # Only whether they have their space decides anything.
                yield len(one.content) > 0, one.durable is not None and len(one.durable) > 0
            else:
                content = bytes(one.content)
                yield _content(host, name, content)
                if one.durable != content:
                    yield None if one.durable is None else _content(host, name, one.durable)


def _content(host, name, content):
    if name.startswith("journal"):
        return _journal(content)
    if name == "haproxy.state":
        return content
    if not name.endswith(".json"):
        return content
    document, decided = document_of(name, content)
    if name == "lease.json" and document is not None:
        is_ours = document.get("boot_id") == host.boot
        left_s = document.get("expires_steady_s", 0.0) - host.clock.steady
        return _Lease(
            document.get("owner"),
            document.get("release"),
            document.get("epoch"),
            max(0, grain(left_s)) if is_ours else 0,
            tuple(
                operator.name
                for operator in host.world.operators
                if is_alive(operator) and operator.clients[host.name].fence == document.get("fence")
            ),
        )
    if isinstance(document, dict) and name != "desired.json":
        return document.get("boot_id") == host.boot, decided
    return decided


@functools.cache
def document_of(name, content):
    """
    Return the JSON document *content*, None for one that is damaged, and what is decided on of it.
    """
    try:
        document = json.loads(content)
    except ValueError:
        return None, content
    if name == "desired.json":
        return document, (document["epoch"], plain(json.loads(document["text"])))
    return document, plain(document) if isinstance(document, dict) else content


@functools.cache
def _journal(content):
    """
    Return what the lines of the journal add up to, which is all that the host program reads of it.
    """
    records = map(from_line, content[: content.rfind(b"\n") + 1].splitlines())
    replayed = replay(record for record in records if record is not None)
    unfinished = replayed.unfinished
    return plain(
        (
            replayed.good,
            unfinished and (unfinished.release, unfinished.rollback_to),
            replayed.paused,
            replayed.epoch,
        )
    )


# -- operators

_NEVER_S = 1e6  # a renewal that has not ended has no next one


_FIXED = frozenset(
    # Made with the command, or of no consequence beside what is listed in `of_operator`.
    {
        *("_plan", "_rules", "_store", "_keeper", "_all_clients", "_clients", "_actions"),
        *("_clock", "_report", "_recheck", "_known", "_phases", "_steal", "_lock"),
    }
)
_FIXED_OF_ACTIONS = frozenset(
    {"_plan", "_release", "_rules", "_send_bundle", "_limits", "_say"},
)
_FIXED_OF_KEEPER = frozenset(
    {
        *("_clients", "_owner", "_release", "_ttl_s", "_clock", "_timer", "_steal", "_lock"),
        *("_attempts", "_needs_settled", "_on_loss"),
    }
)


def of_operator(world, operator):
    """
    Return what an operator knows.

    Raises:
        AssertionError: One of them has a new attribute: list it here.
    """
    controller, keeper = operator.controller, operator.keeper
    now_s = world.now_s
    known = ()
    if controller is not None:
        of_controller = {
            "desired": plain(controller.desired),
            "_stop_traffic": sorted(controller._stop_traffic),
            "_began_as_way_back": controller._began_as_way_back,
            "_tries": sorted((str(k), v) for k, v in controller._tries.items()),
            "_rechecked": plain(controller._rechecked),
            "_done": sorted(map(str, controller._done)),
            "_until_s": sorted((h, grain(s - now_s)) for h, s in controller._until_s.items()),
            "_changed": sorted(controller._changed),
            "_unsure": sorted(controller._unsure),
            "_behind": sorted(controller._behind),
            "_is_decided": controller._is_decided,
            "_is_over": controller._is_over,
            "_errors": sorted((h, error_of(e)) for h, e in controller._errors.items()),
            "_cause": sorted((h, error_of(e)) for h, e in controller._cause.items()),
            "_judgement": plain(controller._judgement),
        }
        of_keeper = {
            "_held": sorted(keeper._held),
            "_lost": sorted(keeper._lost),
            "_next_s": sorted(
                (h, grain(min(s - now_s, _NEVER_S))) for h, s in keeper._next_s.items()
            ),
            "_timeout_s": sorted((h, grain(s)) for h, s in keeper._timeout_s.items()),
            "_renewed_s": sorted((h, grain(s - now_s)) for h, s in keeper._renewed_s.items()),
            "_epoch": keeper._epoch,
        }
        assert of_controller.keys() | _FIXED == vars(controller).keys(), "see of_operator"
        assert vars(controller._actions).keys() == _FIXED_OF_ACTIONS, "see of_operator"
        assert of_keeper.keys() | _FIXED_OF_KEEPER == vars(keeper).keys(), "see of_operator"
        phase = str(controller._phases._now)
        known = (*of_controller.values(), *of_keeper.values(), phase)
    return (
        operator.name,
        operator.intent,
        operator.is_terminated,
        max(0, grain(operator.paused_until_s - now_s)),
        known,
        operator.trail_digest(),
        operator.calling,
        grain(min(operator.deadline_s - now_s, _NEVER_S)),
    )


def error_of(error):
    return type(error).__name__, error.what, error.why


def plain(value):
    """
    Return *value* without what no code decides on.
    """
    return _plain_of(type(value))(value)


@functools.cache
def _plain_of(kind):
    """
    Return what `plain` does with values of *kind*.
    """
    if dataclasses.is_dataclass(kind):
        names = [f.name for f in dataclasses.fields(kind) if f.name not in _DROPPED]
        return lambda value: tuple([(name, plain(getattr(value, name))) for name in names])
    if hasattr(kind, "_asdict"):
        return lambda value: _plain_dict(value._asdict())
    if issubclass(kind, dict):
        return _plain_dict
    if issubclass(kind, (list, tuple)):
        return lambda value: tuple([plain(one) for one in value])
    if issubclass(kind, (set, frozenset)):
        return lambda value: tuple(sorted([repr(plain(one)) for one in value]))
    return grain if issubclass(kind, float) else str


def _plain_dict(value):
    pairs = [(str(k), plain(v)) for k, v in value.items() if k not in _DROPPED]
    return tuple(sorted(pairs, key=repr))


def answer(verb, text, first):
    """
    Return what an answer tells an operator.

    Args:
        first: The first measurement of that host since the last decision; None: this is it.
    """
    document = json.loads(text)
    if verb == "measure" and document.get("ok"):
        numbers = _numbers(document["result"])
        is_alike = first is not None and len(first) == len(numbers)
        since = tuple(a - b for a, b in zip(numbers, first if is_alike else numbers, strict=True))
        return numbers, (since, is_alike, _words(document["result"])), text
    return None, plain(document), text


def _numbers(value):
    if isinstance(value, dict):
        return tuple(n for key in sorted(value) for n in _numbers(value[key]))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ()
    return (value,)


def _words(value):
    if isinstance(value, dict):
        return tuple((key, _words(value[key])) for key in sorted(value))
    return None if isinstance(value, (int, float)) and not isinstance(value, bool) else value
