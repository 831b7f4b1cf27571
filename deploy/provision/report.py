"""
Events and report of a provisioning run.  Nouns only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from deploy.errors import (
    CommandFailed,
    DeployError,
    DiskTooSmall,
    HostKeyMismatch,
    LeaseHeld,
    LeaseLost,
    PortInUse,
    PreconditionError,
    ProvisionFailed,
    TransportError,
)
from deploy.host.protocol import Facts

_ERRORS: Mapping[str, type[DeployError]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            CommandFailed,
            DiskTooSmall,
            HostKeyMismatch,
            LeaseHeld,
            LeaseLost,
            PortInUse,
            PreconditionError,
            TransportError,
        )
    }
)

HERE = "here"  # host of events of this machine


class EventKind(StrEnum):
    FETCHING = "fetching"  # wheels, into this machine's cache
    CONNECTING = "connecting"
    LOOKING = "looking"
    CHANGING = "changing"  # `resource` is about to be changed
    CHANGED = "changed"  # `resource` was changed
    WOULD_CHANGE = "would_change"  # --check
    OK = "ok"  # the host has all its resources, by facts read after the changes
    REBOOTING = "rebooting"  # `change` says how far its reboot is
    REBOOTED = "rebooted"  # it serves again, and needs no reboot
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ProvisionEvent:
    """
    One step of a run on one host.

    Attributes:
        resource: Name of the resource; of FAILED, the class of `deploy.errors`.
        change: What changes about `resource`.
        diff: Unified diff of a text without secrets.
        done, of: Number of the change and count of changes, as far as known.
        took_s: Duration of the change in seconds.
        reboot: Of OK: cause and observation of each reason why the host has to be rebooted.
    """

    host: str
    kind: EventKind
    resource: str | None = None
    change: str | None = None
    diff: str | None = None
    done: int | None = None
    of: int | None = None
    took_s: float | None = None
    why: str | None = None
    fix: str | None = None
    reboot: tuple[tuple[str, str], ...] | None = None

    def __str__(self) -> str:
        counted = f" [{self.done}/{self.of}]" if self.of else ""
        match self.kind:
            case EventKind.CHANGING | EventKind.WOULD_CHANGE | EventKind.CHANGED:
                took = f" ({self.took_s:.1f}s)" if self.took_s is not None else ""
                verb = self.kind.value.replace("_", " ")
                return f"{self.host}:{counted} {verb} {self.resource}: {self.change}{took}"
            case EventKind.FETCHING | EventKind.REBOOTING:
                return f"{self.host}: {self.change}"
            case EventKind.REBOOTED:
                return f"{self.host}: serves again after {self.took_s or 0:.0f} s"
            case EventKind.FAILED:
                return f"{self.host}: failed: {self.why}"
            case _:
                return f"{self.host}: {self.kind.value}"


def reboot_pairs(facts: Facts | None) -> tuple[tuple[str, str], ...]:
    """
    Return cause and observation of each reason to reboot a host with *facts*.
    """
    reasons = facts.reboot_reasons if facts is not None else ()
    return tuple((reason.cause, reason.observed) for reason in reasons)


@dataclass(frozen=True, slots=True)
class Change:
    host: str
    resource: str
    change: str
    diff: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """
    Attributes:
        error: Name of the class of `deploy.errors`.
    """

    host: str
    why: str
    fix: str
    error: str


@dataclass(frozen=True, slots=True)
class RebootNeed:
    """
    A host that has to be rebooted, or was.

    Attributes:
        reasons: Cause and observation of each; empty where an earlier run had rebooted it.
    """

    host: str
    reasons: tuple[tuple[str, str], ...]
    rebooted: bool = False

    def __str__(self) -> str:
        why = "; ".join(f"{cause}: {seen}" for cause, seen in self.reasons)
        return f"{self.host} needs a reboot: {why}"


@dataclass(frozen=True, slots=True)
class ProvisionReport:
    """
    Attributes:
        check: Nothing was changed; `changes` are those that a run would make.
        ok: Hosts that have all their resources (of a check: hosts that could be compared).
        failed: The other hosts; changes made before the failure are in `changes`.
        commands: Number of remote commands by host.
        took_s: Duration of the run in seconds.
        reboots: Hosts that have to be rebooted, and those that were.
    """

    check: bool
    ok: tuple[str, ...]
    changes: tuple[Change, ...]
    failed: tuple[Failure, ...]
    commands: dict[str, int] = field(default_factory=dict)
    took_s: float = 0.0
    reboots: tuple[RebootNeed, ...] = ()

    @property
    def as_pinned(self) -> tuple[str, ...]:
        """
        Hosts that have all their resources now; of a check without those that a run would change.
        """
        differing = {change.host for change in self.changes} if self.check else set()
        return tuple(host for host in self.ok if host not in differing)

    @property
    def error(self) -> DeployError | None:
        """
        The error to exit with; None: every host is as pinned.

        A kind that all failed hosts share keeps its own exit code.
        """
        if not self.failed:
            return None
        kinds = {failure.error for failure in self.failed}
        kind = _ERRORS.get(kinds.pop(), ProvisionFailed) if len(kinds) == 1 else ProvisionFailed
        first = self.failed[0]
        hosts = ", ".join(failure.host for failure in self.failed)
        return kind(f"not as pinned: {hosts}", why=first.why, fix=first.fix)

    def as_json(self) -> dict[str, Any]:
        """
        Return the document of `inv provision --json`.
        """
        changes = [
            {"host": c.host, "resource": c.resource, "change": c.change}
            | ({"diff": c.diff} if c.diff else {})
            for c in self.changes
        ]
        failed = [
            {"host": f.host, "why": f.why, "fix": f.fix, "error": f.error} for f in self.failed
        ]
        return {
            "check": self.check,
            "ok": list(self.ok),
            "changes": changes,
            "failed": failed,
            "commands": self.commands,
            "took_s": round(self.took_s, 3),
            "reboots": [
                {
                    "host": need.host,
                    "reasons": [{"cause": cause, "observed": seen} for cause, seen in need.reasons],
                    "rebooted": need.rebooted,
                }
                for need in self.reboots
            ],
        }
