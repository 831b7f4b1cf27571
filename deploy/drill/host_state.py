"""
What a host serves, read from inside it: HAProxy's weights and the answer to a request.  Pure.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class HostState:
    """
    One look at a host.

    Attributes:
        at_s: When it was taken, by the machine's monotonic clock, which hosts share.
        weights: Share of each slot in percent; empty when HAProxy did not answer.
        version: Version that answered a request through the public port; None: none did.
        is_armed: The host has a change that it takes back by itself.
        boot_id: Changes with each boot.
    """

    at_s: float
    weights: Mapping[str, int]
    version: str | None
    is_armed: bool
    boot_id: str

    @property
    def serves_one(self) -> bool:
        """
        True if one slot has all the traffic, and a request was answered.
        """
        return sorted(self.weights.values()) == [0, 100] and self.version is not None

    @property
    def text(self) -> str:
        shares = "/".join(f"{slot} {pct}" for slot, pct in sorted(self.weights.items()))
        armed = ", armed" if self.is_armed else ""
        return f"{self.version or 'no answer'} ({shares or 'no HAProxy'}{armed})"


def parse_state(line: str) -> HostState | None:
    """
    Return the state that the probe of `host_watch` wrote as *line*; None for a torn line.
    """
    try:
        document = json.loads(line)
        weights = {slot: _share(server) for slot, server in document["servers"].items()}
        return HostState(
            at_s=float(document["at_s"]),
            weights=weights,
            version=document["version"],
            is_armed=bool(document["is_armed"]),
            boot_id=str(document["boot_id"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _share(server: Mapping[str, Any]) -> int:
    """
    Return the weight of a server; one in maintenance gets no request, whatever its weight.
    """
    return 0 if str(server["status"]).startswith("MAINT") else int(server["weight"])
