"""
Cumulative counters of the slots, read only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from deploy.host.layout import SLOTS, unit
from deploy.host.protocol import Call, HostError, Measure, Measurement, SlotCounters
from deploy.host.slots import runtime_api, systemd
from deploy.host.slots.haproxy import Haproxy, Server
from deploy.host.system import System

if TYPE_CHECKING:
    from deploy.host.sockets import HttpAnswer

# As in `runtime.contract`; a test compares the two.
REQUESTS_TOTAL = "slipway_http_requests_total"
GENERATE_ROUTES = ("/generate", "/v1/completions")
METRICS = "/metrics"

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+\S+)?$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


class Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


def parse_metrics(text: str) -> list[Sample]:
    """
    Return the samples of *text* in the Prometheus text format.

    Raises:
        ValueError: A value is not a number.

    Source: "Exposition formats", Prometheus documentation; read with prometheus-client 0.22.
    """
    samples = []
    for line in text.splitlines():
        if line and not line.startswith("#") and (match := _SAMPLE.match(line.strip())):
            labels = {name: _unescape(value) for name, value in _LABEL.findall(match[2] or "")}
            samples.append(Sample(match[1], labels, float(match[3])))
    return samples


def count(samples: Iterable[Sample]) -> tuple[int, int]:
    """
    Return requests and errors (5xx) of the routes that generate, over all labels.
    """
    requests = errors = 0
    for name, labels, value in samples:
        if name == REQUESTS_TOTAL and labels.get("route") in GENERATE_ROUTES:
            requests += int(value)
            errors += int(value) if labels.get("code", "").startswith("5") else 0
    return requests, errors


def run(system: System, _call: Call, _request: Measure) -> Measurement:
    """
    Return the counters of every slot.

    A request that one slot failed and the other answered counts as an error of the first, though
    no client saw it and HAProxy's own count of 5xx does not have it.
    """
    servers = servers_or_none(system)
    units = units_or_none(system)
    return Measurement(
        {slot: _slot(system, slot, servers.get(slot), units.get(unit(slot))) for slot in SLOTS}
    )


def servers_or_none(system: System) -> dict[str, Server]:
    """
    Return HAProxy's servers by name; empty when it does not answer.
    """
    try:
        return Haproxy(system).servers()
    except HostError:
        return {}


def units_or_none(system: System) -> dict[str, systemd.Unit]:
    """
    Return the units of the slots by name; empty when systemd does not answer.
    """
    try:
        return systemd.show(system, [unit(slot) for slot in SLOTS])
    except HostError:
        return {}


def _slot(
    system: System, slot: str, server: Server | None, slot_unit: systemd.Unit | None
) -> SlotCounters:
    counts = _counts(system.http(slot, "GET", METRICS, timeout_s=1.0))
    has_metrics = counts is not None
    requests, errors = counts or (0, 0)
    counters = server.counters if server else None
    return SlotCounters(
        requests=requests,
        errors=errors,
        broken=counters["connection_errors"] + counters["response_errors"] if counters else 0,
        restarts=slot_unit.restarts if slot_unit else 0,
        is_whole=has_metrics and counters is not None,
        is_ready=has_metrics and runtime_api.is_ready(system, slot, timeout_s=1.0),
        unit=slot_unit.active if slot_unit else "unknown",
    )


def _counts(answer: HttpAnswer) -> tuple[int, int] | None:
    """
    Return the requests and errors of the metrics in *answer*; None if it has none.
    """
    if answer.status != 200:
        return None
    try:
        return count(parse_metrics(answer.body))
    except (ValueError, OverflowError):  # a value that is no number, NaN, infinity
        return None


def _unescape(value: str) -> str:
    return _ESCAPED.sub(lambda m: "\n" if m[1] == "n" else m[1], value)
