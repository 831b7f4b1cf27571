"""
What the slots have done since they started: cumulative counters, read only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from deploy.remote import systemd, unix_http
from deploy.remote.envelope import HostError, Request
from deploy.remote.haproxy import Haproxy, Server
from deploy.remote.layout import SLOTS, Layout, unit
from deploy.remote.slots import linked_bundle, manifest_of
from deploy.remote.world import World

# The same values as `runtime.contract`; a test compares the two.
REQUESTS_TOTAL = "slipway_http_requests_total"
REQUEST_SECONDS = "slipway_http_request_seconds"
GENERATE_ROUTES = ("/generate", "/v1/completions")
READYZ, METRICS = "/readyz", "/metrics"

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

    Source: "Exposition formats", Prometheus documentation; read with prometheus-client 0.22.
    """
    samples = []
    for line in text.splitlines():
        if line and not line.startswith("#") and (match := _SAMPLE.match(line.strip())):
            labels = {name: _unescape(value) for name, value in _LABEL.findall(match[2] or "")}
            samples.append(Sample(match[1], labels, float(match[3])))
    return samples


def count(samples: Iterable[Sample]) -> dict[str, Any]:
    """
    Return requests, errors and latency_buckets of the routes that generate, over all labels.

    A bucket counts the requests that took at most that many seconds.
    """
    requests = errors = 0
    buckets: dict[str, int] = {}
    for name, labels, value in samples:
        if labels.get("route") not in GENERATE_ROUTES:
            continue
        if name == REQUESTS_TOTAL:
            requests += int(value)
            errors += int(value) if labels.get("code", "").startswith("5") else 0
        elif name == f"{REQUEST_SECONDS}_bucket":
            edge = labels["le"]
            buckets[edge] = buckets.get(edge, 0) + int(value)
    return {"requests": requests, "errors": errors, "latency_buckets": buckets}


def run(world: World, request: Request) -> dict[str, Any]:
    """
    Return the counters of every slot.

    requests, errors (5xx) and latency_buckets are of the runtime's present process, and 0 with
    "metrics" false when it doesn't answer.  A request that one slot failed and the other answered
    is among the errors of the first, though no client saw it and HAProxy's own count of 5xx
    doesn't have it.  broken counts what HAProxy got no answer to and could not bring elsewhere.
    """
    request.args.done()
    servers = servers_or_none(world.layout)
    units = units_or_none(world)
    return {
        "at": world.clock.wall_s(),
        "boot_id": world.boot_id(),
        "slots": {slot: _slot(world, slot, servers, units) for slot in SLOTS},
    }


def servers_or_none(layout: Layout) -> dict[str, Server]:
    """
    Return HAProxy's servers by name; empty when it doesn't answer.
    """
    try:
        return Haproxy(layout.haproxy_socket).servers()
    except HostError:
        return {}


def units_or_none(world: World) -> dict[str, systemd.Unit]:
    """
    Return the units of the slots by name; empty when systemd doesn't answer.
    """
    try:
        return systemd.show(world, [unit(slot) for slot in SLOTS])
    except HostError:
        return {}


def _slot(
    world: World, slot: str, servers: dict[str, Server], units: dict[str, systemd.Unit]
) -> dict[str, Any]:
    bundle = linked_bundle(world.layout, slot)
    server, seen = servers.get(slot), units.get(unit(slot))
    path = world.layout.runtime_socket(slot)
    answer = unix_http.request(path, "GET", METRICS, timeout_s=1.0)
    has_metrics = answer.status == 200
    counted = count(parse_metrics(answer.body) if has_metrics else [])
    proxied = server.counters if server else None
    return {
        "version": manifest_of(world.layout, bundle).get("version"),
        "bundle": bundle,
        "weight": server.weight if server else None,
        "sessions": server.sessions if server else None,
        "metrics": has_metrics,
        **counted,
        "broken": proxied["connection_errors"] + proxied["response_errors"] if proxied else 0,
        "haproxy": proxied,
        "restarts": seen.restarts if seen else 0,
        "unit": seen.active if seen else "unknown",
        "ready": has_metrics and unix_http.is_ready(world.layout, slot, timeout_s=1.0),
    }


def _unescape(value: str) -> str:
    return _ESCAPED.sub(lambda m: "\n" if m[1] == "n" else m[1], value)
