"""
The effects of a release on one host.  Each may be repeated; none decides.
"""

from dataclasses import dataclass
from typing import Any

from deploy.errors import CommandFailed
from deploy.release.gates import Reading
from deploy.transport.host_tool import HostTool

_GRACE_S = 15.0  # what a command may take beyond the time that it was given on the host


@dataclass(frozen=True, slots=True)
class Limits:
    """
    How long each step may take, in seconds, and how many good releases a host keeps.
    """

    start_s: float
    drain_s: float
    golden_s: float
    keep: int


def clear(tool: HostTool, slot: str, stable: str | None, limits: Limits) -> None:
    """
    Take the traffic from *slot*, if it has any, and stop it.
    """
    shift(tool, {slot: 0, stable: 100} if stable else {slot: 0})
    stop(tool, slot, limits)


def start(tool: HostTool, slot: str, bundle: str, limits: Limits) -> None:
    """
    Start *bundle* in *slot* and return when it is warm.

    Raises:
        CommandFailed: It did not come up in time; `why` has its last log lines.
    """
    args = {"slot": slot, "bundle": bundle, "timeout_s": limits.start_s}
    tool.call("slot.start", args, timeout_s=limits.start_s + _GRACE_S)


def golden(tool: HostTool, slot: str, limits: Limits) -> dict[str, Any]:
    """
    Return how many of the bundle's golden prompts *slot* answered as recorded.

    Raises:
        CommandFailed: One or more answers differ; `why` shows the first.
    """
    args = {"slot": slot, "timeout_s": limits.golden_s}
    found = tool.call("golden", args, timeout_s=limits.golden_s + _GRACE_S)
    if found["passed"] == found["total"] and found["total"] > 0:
        return found
    if not found["failures"]:
        why = "the bundle has no golden prompts"
    else:
        first = found["failures"][0]
        why = (
            f"{found['total'] - found['passed']} of {found['total']} answers are not as recorded; "
            f"the first: expected {first['expected']!r}, got {first['got']!r}"
        )
    raise CommandFailed(
        f"{tool.host}: the golden prompts failed",
        why=why,
        fix="the weights are not those that the answers were recorded with, or they are damaged: "
        "rebuild the bundle from a model that answers",
        host=tool.host,
    )


def shift(tool: HostTool, weights: dict[str, int]) -> dict[str, int]:
    """
    Split the host's traffic by *weights*, in percent, and return the split as read back.

    All weights at 0 leave the host without service: only where nothing served before.
    """
    args: dict[str, Any] = {"weights": weights}
    if not any(weights.values()):
        args["force"] = True
    read: dict[str, int] = tool.call("traffic.set", args, timeout_s=30.0)["weights"]
    return read


def stop(tool: HostTool, slot: str, limits: Limits) -> None:
    """
    Wait for the requests in flight on *slot*, then stop it.

    What is still in flight after the drain time gets as long again from the runtime itself.
    """
    args = {"slot": slot, "timeout_s": limits.drain_s}
    tool.call("traffic.drain", args, timeout_s=limits.drain_s + _GRACE_S)
    stop_s = limits.drain_s + _GRACE_S
    args = {"slot": slot, "timeout_s": stop_s}
    tool.call("slot.stop", args, timeout_s=stop_s + _GRACE_S)


def measure(tool: HostTool, slot: str, now_s: float, timeout_s: float = 10.0) -> Reading:
    """
    Return the counters of *slot* as they are now.
    """
    seen = tool.call("measure", timeout_s=timeout_s)["slots"][slot]
    return Reading(
        at_s=now_s,
        requests=seen["requests"],
        errors=seen["errors"],
        broken=seen["broken"],
        restarts=seen["restarts"],
        is_whole=seen["metrics"] and seen["haproxy"] is not None,
        is_ready=seen["ready"],
        is_failed=seen["unit"] == "failed",
    )


def record(tool: HostTool, step: str, **data: Any) -> None:
    """
    Write an event of the whole release into the host's journal.
    """
    tool.call("journal.append", {"step": step, "data": data})
