"""
The effects of a release on one host, as calls of the host program.  Each may be repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.errors import CommandFailed
from deploy.host.protocol import (
    TIMEOUT_MAX_S,
    Golden,
    GoldenResult,
    JournalAppend,
    Measure,
    Revive,
    SlotStart,
    SlotStop,
    TrafficDrain,
    TrafficSet,
)
from deploy.release.deadlines import MARGIN_S, SHIFT_S
from deploy.release.evidence import Reading
from deploy.transport.client import HostClient


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Time limits in seconds, and the number of good releases that a host keeps.
    """

    start_s: float
    drain_s: float
    golden_s: float
    keep: int


def clear(
    client: HostClient, slot: str, stable: str | None, limits: Limits, *, is_ready: bool = True
) -> None:
    """
    Move all traffic from *slot* to *stable*, then stop *slot*.
    """
    move_traffic(client, slot, stable, is_ready=is_ready)
    stop(client, slot, limits)


def move_traffic(
    client: HostClient, slot: str, stable: str | None, *, is_ready: bool = True
) -> dict[str, int]:
    """
    Move all traffic from *slot* to *stable*, and return the weights as read back.

    Without a stable slot nothing serves then.

    Args:
        is_ready: Refuse where *stable* is not UP.  False: it was not ready before either, and
            must not prevent that *slot* is stopped.
    """
    weights = {slot: 0, stable: 100} if stable else {slot: 0}
    return shift(client, weights, force=not is_ready)


def start(
    client: HostClient, slot: str, bundle: str, limits: Limits, *, allow_older: bool = False
) -> None:
    """
    Start *bundle* in *slot* and return when it is warm.

    Args:
        allow_older: It may be older than the newest release that the host recorded as good.

    Raises:
        CommandFailed: It did not become READY in time; `why` has its last log lines.
    """
    request = SlotStart(slot=slot, bundle=bundle, timeout_s=limits.start_s, allow_older=allow_older)
    client.call(request, timeout_s=limits.start_s + MARGIN_S)


def golden(client: HostClient, slot: str, limits: Limits) -> GoldenResult:
    """
    Ask *slot* the golden prompts of its bundle.

    Raises:
        CommandFailed: An answer differs from the recorded one; `why` shows the first.
    """
    request = Golden(slot=slot, timeout_s=limits.golden_s)
    result = client.call(request, timeout_s=limits.golden_s + MARGIN_S)
    if result.passed == result.total and result.total > 0:
        return result
    if not result.failures:
        why = "the bundle has no golden prompts"
    else:
        first = result.failures[0]
        why = (
            f"{result.total - result.passed} of {result.total} answers are not as recorded; "
            f"the first: expected {first.expected!r}, got {first.got!r}"
        )
    raise CommandFailed(
        f"{client.host}: the golden prompts failed",
        why=why,
        fix="the weights are not those that the answers were recorded with, or they are damaged: "
        "rebuild the bundle from a model that answers",
        host=client.host,
    )


def shift(client: HostClient, weights: Mapping[str, int], *, force: bool = False) -> dict[str, int]:
    """
    Split the host's traffic by *weights*, in percent; return the split as read back.

    All weights at 0 leave the host without service: only where nothing served before.

    Args:
        force: Do not wait until a slot that gains traffic is UP.
    """
    request = TrafficSet(weights=dict(weights), force=force or not any(weights.values()))
    return client.call(request, timeout_s=SHIFT_S).weights


def revive(client: HostClient, slots: tuple[str, ...], limits: Limits) -> tuple[str, ...]:
    """
    Bring back what should run on the host and does not; return what that was.

    Args:
        slots: Slots to wait for; others that have traffic are only started.
    """
    request = Revive(slots=slots, timeout_s=limits.start_s)
    return client.call(request, timeout_s=limits.start_s + 2 * MARGIN_S).done


def stop(client: HostClient, slot: str, limits: Limits) -> None:
    """
    Wait for the requests in flight on *slot*, then stop it.

    Requests still in flight after the drain time get as long again from the runtime itself.
    """
    drain = TrafficDrain(slot=slot, timeout_s=limits.drain_s)
    client.call(drain, timeout_s=limits.drain_s + MARGIN_S)
    stop_s = min(limits.drain_s + MARGIN_S, TIMEOUT_MAX_S)
    client.call(SlotStop(slot=slot, timeout_s=stop_s), timeout_s=stop_s + MARGIN_S)


def measure(client: HostClient, now_s: float, timeout_s: float = 10.0) -> dict[str, Reading]:
    """
    Return the counters of each slot, taken at *now_s* on the controller's monotonic clock.
    """
    slots = client.call(Measure(), timeout_s=timeout_s).slots
    return {slot: Reading(now_s, counters) for slot, counters in slots.items()}


def record(client: HostClient, step: str, **data: Any) -> None:
    """
    Write an event of the release into the host's journal.
    """
    client.call(JournalAppend(step=step, data=data))
