"""
What a release reports while it runs, and what it ends with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from deploy.errors import DeployError
from deploy.release.desired import Ending


@dataclass(frozen=True, slots=True)
class ReleaseEvent:
    """
    One thing that happened, for the timeline and the terminal.

    Attributes:
        at: UTC.
        name: `noun.past_verb`, such as host.started; all are listed in docs/reference/events.md.
        host: None for what concerns the whole fleet.
    """

    at: datetime
    name: str
    text: str
    host: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReleaseOutcome:
    """
    How a release or rollback ended.

    Attributes:
        reason: One line with the numbers that decided.
        evidence: Those numbers, and the state that each host ended in.
        error: What a caller should fail with; None when it did what was asked.
        share: How far it came, in words: "10 %", "100 %".
    """

    release: str
    ending: Ending
    reason: str
    evidence: Mapping[str, Any]
    error: DeployError | None = None
    version: str = ""
    share: str = ""

    def as_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "release": self.release,
            "version": self.version,
            "share": self.share,
            "outcome": str(self.ending),
            "reason": self.reason,
            "evidence": dict(self.evidence),
        }
        return document | ({"error": self.error.as_json()} if self.error else {})


Report = Callable[[ReleaseEvent], None]  # where events go


def release_id(version: str, now: datetime) -> str:
    """
    Return the id of a release of *version* that begins *now*.
    """
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%S}-{version}"
