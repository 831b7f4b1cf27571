"""
The state of a fleet with its findings, and when each host was last read from this machine.
"""

import contextlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime

from deploy.errors import DeployError
from deploy.private_files import private_directory, write_private
from deploy.release.decide import is_converged
from deploy.release.desired import Desired
from deploy.release.findings import Finding, find
from deploy.release.observe import ANSWER_WITHIN_S, Observed
from deploy.wiring.checkout import ROOT
from deploy.wiring.hosts import Hosts
from deploy.wiring.state import reading_store

_LONGEST = 40  # characters of a time


def read(on: Hosts) -> tuple[dict[str, Observed | DeployError], tuple[Finding, ...]]:
    """
    Return the selected hosts and what is not as it should be on them.
    """
    seen = on.seen()
    times = last_seen(on.fleet.name, seen)
    store = reading_store(on, ANSWER_WITHIN_S, is_way_back=True)
    desired = None
    with contextlib.suppress(DeployError):  # too few hosts answer or agree: each has findings
        desired = store.read(seen)
    differs = _differences(desired, seen)
    found = find(
        seen,
        differs=differs,
        last_seen=times,
        unavailable=store.unavailable,
        now=datetime.now(UTC),
        wants_tls=on.fleet.service.tls.is_on,
        can_resume=desired is None or desired.can_resume,
        can_abort=desired is None or desired.can_abort,
    )
    return seen, found


def _differences(
    desired: Desired | None, seen: Mapping[str, Observed | DeployError]
) -> dict[str, str]:
    """
    Return what is not as the desired state says that has ended, by host.
    """
    if desired is None or desired.ending is None:
        return {}
    text = f"not as {desired.release} left it ({desired.ending}, {desired.plan.version})"
    return {
        name: text
        for name, state in seen.items()
        if isinstance(state, Observed)
        and name in desired.plan.by_name
        and not is_converged(desired, desired.plan.host(name), state)
    }


def last_seen(
    fleet: str, seen: Mapping[str, Observed | DeployError], now: datetime | None = None
) -> dict[str, str]:
    """
    Return when each host was last read, in UTC, with those of *seen* that were read now.

    It is kept in `.slipway/status/FLEET.json`; where it cannot be, the status is shown all the
    same.
    """
    path = ROOT / ".slipway" / "status" / f"{fleet}.json"
    times: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        times = _valid(json.loads(path.read_text(encoding="utf-8")))
    at = f"{now or datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    times |= {name: at for name, state in seen.items() if isinstance(state, Observed)}
    with contextlib.suppress(OSError, DeployError):
        private_directory(path.parent)
        write_private(path, json.dumps(times, indent=1, sort_keys=True) + "\n")
    return times


def _valid(document: object) -> dict[str, str]:
    if not isinstance(document, dict):
        return {}
    return {
        name: at
        for name, at in document.items()
        if isinstance(at, str) and len(at) <= _LONGEST and at.isascii() and at.isprintable()
    }
