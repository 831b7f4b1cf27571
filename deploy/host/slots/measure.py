"""
Cumulative counters of the slots, read only.

A slot is never judged by its own word alone: HAProxy's counters stand beside the slot's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from deploy.host.layout import SLOTS, unit
from deploy.host.protocol import (
    Call,
    HostError,
    Measure,
    Measurement,
    OwnCounters,
    ProxyCounters,
    SlotCounters,
)
from deploy.host.slots import runtime_api, systemd
from deploy.host.slots.haproxy import Haproxy, Server
from deploy.host.slots.metrics import MetricsError, Sample, parse_metrics
from deploy.host.system import System

if TYPE_CHECKING:
    from deploy.host.sockets import HttpAnswer

# As in `runtime.contract`; a test compares the two.
REQUESTS_TOTAL = "slipway_http_requests_total"
EXCUSED_TOTAL = "slipway_http_excused_total"
EXCUSES = ("queue_full", "client_deadline")
GENERATE_ROUTES = ("/generate", "/v1/chat/completions", "/v1/completions")
METRICS = "/metrics"

MAX_COUNT = 2**53  # a float holds every whole number up to it


def count(samples: Iterable[Sample]) -> OwnCounters:
    """
    Return what the runtime says that it answered, over all labels.

    Answers other than 2xx and 5xx say nothing about the release, nor do those that are excused:
    a full queue, and a deadline that the client set.

    Raises:
        MetricsError: A counter is negative, too large, or no number.
    """
    good = failed = answers_5xx = excused = 0
    for name, labels, value in samples:
        if name not in {REQUESTS_TOTAL, EXCUSED_TOTAL}:
            continue
        if not 0 <= value <= MAX_COUNT:  # NaN is not in the range either
            raise MetricsError(f"{name} is {value}")
        is_generating = labels.get("route") in GENERATE_ROUTES
        code = labels.get("code", "")[:1]
        if name == EXCUSED_TOTAL:
            is_known = is_generating and labels.get("reason") in EXCUSES
            excused += int(value) if is_known else 0
            continue
        answers_5xx += int(value) if code == "5" else 0
        good += int(value) if is_generating and code == "2" else 0
        failed += int(value) if is_generating and code == "5" else 0
    if max(good + failed, answers_5xx, excused) > MAX_COUNT:
        raise MetricsError(f"{REQUESTS_TOTAL} adds up to more than {MAX_COUNT}")
    if excused > failed:
        raise MetricsError(f"{EXCUSED_TOTAL} is {excused}, but only {failed} answers were a 5xx")
    errors = failed - excused
    return OwnCounters(good + errors, errors, answers_5xx, excused)


def run(system: System, _call: Call, _request: Measure) -> Measurement:
    """
    Return the counters of every slot; one that cannot be read has no counters and the reason.
    """
    # The slots first: HAProxy, asked later, has sent everything that they have answered.
    own = {slot: _own(system.http(slot, "GET", METRICS, timeout_s=1.0)) for slot in SLOTS}
    servers = servers_or_none(system)
    units = units_or_none(system)
    slots = {}
    for slot in SLOTS:
        counters, problem = own[slot]
        slot_unit, server = units.get(unit(slot)), servers.get(slot)
        slots[slot] = SlotCounters(
            own=counters,
            proxy=_proxy(server) if server else None,
            problem=problem if server else "HAProxy does not answer on its runtime socket",
            restarts=slot_unit.restarts if slot_unit else 0,
            is_ready=counters is not None and runtime_api.is_ready(system, slot, timeout_s=1.0),
            unit=slot_unit.active if slot_unit else "unknown",
        )
    return Measurement(slots)


def servers_or_none(system: System) -> dict[str, Server]:
    """
    Return HAProxy's servers by name; empty when it does not answer.
    """
    try:
        return Haproxy(system).servers()
    except HostError:
        return {}


def units_or_none(system: System, also: Sequence[str] = ()) -> dict[str, systemd.Unit]:
    """
    Return the units of the slots, and *also*, by name; empty when systemd does not answer.
    """
    try:
        return systemd.show(system, [*(unit(slot) for slot in SLOTS), *also])
    except HostError:
        return {}


def _own(answer: HttpAnswer) -> tuple[OwnCounters | None, str | None]:
    """
    Return the counters in *answer*, or None and why it has none.
    """
    if answer.status is None:
        return None, f"{METRICS}: {answer.body[:200]}"
    if answer.status != 200:
        return None, f"{METRICS} answers {answer.status}"
    try:
        return count(parse_metrics(answer.body)), None
    except MetricsError as error:
        return None, f"{METRICS}: {error}"


def _proxy(server: Server) -> ProxyCounters:
    return ProxyCounters(sessions=server.sessions, **server.counters)
