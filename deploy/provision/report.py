"""
What a run of `inv provision` says while it runs, and at the end.  Nouns only.
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
    PortInUse,
    PreconditionError,
    ProvisionFailed,
    TransportError,
)

_ERRORS: Mapping[str, type[DeployError]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            CommandFailed,
            DiskTooSmall,
            HostKeyMismatch,
            LeaseHeld,
            PortInUse,
            PreconditionError,
            TransportError,
        )
    }
)

HERE = "here"  # stands for the host where an event is of this machine


class EventKind(StrEnum):
    FETCHING = "fetching"  # wheels, into this machine's cache
    CONNECTING = "connecting"
    LOOKING = "looking"
    CHANGING = "changing"  # about to change `resource`
    CHANGED = "changed"  # `resource` is now as it should be
    WOULD_CHANGE = "would_change"  # --check
    OK = "ok"  # the host is as it should be, and was asserted to be
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ProvisionEvent:
    """
    Something that happened on one host.

    Attributes:
        change: What changes about `resource`, in words.
        done, of: Which of how many changes this is, as far as is known.
        took_s: How long the change took, in seconds.
        diff: Of a text without secrets.
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

    def __str__(self) -> str:
        counted = f" [{self.done}/{self.of}]" if self.of else ""
        match self.kind:
            case EventKind.CHANGING | EventKind.WOULD_CHANGE | EventKind.CHANGED:
                took = f" ({self.took_s:.1f}s)" if self.took_s is not None else ""
                verb = self.kind.value.replace("_", " ")
                return f"{self.host}:{counted} {verb} {self.resource}: {self.change}{took}"
            case EventKind.FETCHING:
                return f"{self.host}: {self.change}"
            case EventKind.FAILED:
                return f"{self.host}: failed: {self.why}"
            case _:
                return f"{self.host}: {self.kind.value}"


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
        error: Class of `deploy.errors` that says what kind of failure it is.
    """

    host: str
    why: str
    fix: str
    error: str


@dataclass(frozen=True, slots=True)
class ProvisionReport:
    """
    Attributes:
        check: Nothing was changed; `changes` are those that a run would make.
        ok: Hosts that are as they should be (in a check: that could be looked at).
        failed: Hosts that are not; what was changed on them before is in `changes`.
        commands: Remote commands that each host was sent.
        took_s: Of the whole run, by this machine's monotonic clock.
    """

    check: bool
    ok: tuple[str, ...]
    changes: tuple[Change, ...]
    failed: tuple[Failure, ...]
    commands: dict[str, int] = field(default_factory=dict)
    took_s: float = 0.0

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
        }
