"""
Report of the demo: its steps, the timeline of events and traffic, and the totals.  Pure.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from deploy.demo.load_report import Exposure, LoadReport
from deploy.release.events import ReleaseEvent

# Events that the text report shows; the JSON document has all of them.
_SHOWN_EVENTS = {
    "traffic.shifted",
    "canary.passed",
    "canary.rejected",
    "canary.paused",
    "host.failed",
    "host.stuck",
    "release.promoted",
    "release.reverted",
    "release.rolled_back",
    "release.stopped",
}
_SMOOTHING_S = 5  # a canary with 10 % on one host of four does not answer in every second


@dataclass(frozen=True, slots=True)
class DemoStep:
    """
    One step of the demo.

    Attributes:
        at_s: Start of the step, in seconds since the demo began.
        took_s: Duration in seconds.
        expected: Result with which the step passes.
        actual: Result that it had.
        detail: One line for people.
    """

    name: str
    at_s: float
    took_s: float
    expected: str
    actual: str
    detail: str

    @property
    def passed(self) -> bool:
        return self.expected == self.actual

    def as_json(self) -> dict[str, Any]:
        """
        Return the step as an entry of `steps` in `inv demo --json`.
        """
        return {
            "step": self.name,
            "at_s": self.at_s,
            "took_s": self.took_s,
            "wanted": self.expected,
            "outcome": self.actual,
            "detail": self.detail,
        }


@dataclass(frozen=True)
class DemoReport:
    """
    Result of the demo.

    Attributes:
        refused: {version: exposure} of the releases that must be refused; None for a version that
            never reached a user.
        began: UTC.
        took_s: Duration of the whole demo in seconds.
        numbers: Further figures of `inv demo --json`, such as the changes of each provision run.
    """

    steps: tuple[DemoStep, ...]
    events: tuple[ReleaseEvent, ...]
    load: LoadReport
    refused: dict[str, Exposure | None]
    began: datetime
    took_s: float
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """
        True if every step passed, and no request was lost and no stream cut.
        """
        return (
            all(step.passed for step in self.steps)
            and self.load.requests > 0
            and self.load.lost_requests == 0
            and self.load.cut_streams == 0
        )

    def as_json(self) -> dict[str, Any]:
        """
        Return the document of `inv demo --json`.
        """
        errors = self.load.errors_by_version
        return {
            "outcome": "ok" if self.is_good else "failed",
            "requests": self.load.requests,
            "streams": self.load.streams,
            "lost_requests": self.load.lost_requests,
            "cut_streams": self.load.cut_streams,
            "user_errors": {version: dict(counts) for version, counts in errors.items()},
            "requests_by_version": dict(self.load.requests_by_version),
            "latency_s": dict(self.load.latency_s),
            "refused": [_exposure_json(*item) for item in self.refused.items()],
            "steps": [step.as_json() for step in self.steps],
            "timeline": self._timeline(),
            "numbers": self.numbers,
            "took_s": round(self.took_s, 1),
        }

    def lines(self) -> list[str]:
        """
        Return the timeline, the steps and the totals as lines of text.
        """
        lines = ["", "timeline (share of traffic by version, measured by its clients)"]
        lines += _timeline_lines(self._timeline())
        lines += ["", "steps"]
        for step in self.steps:
            mark = "ok  " if step.passed else "FAIL"
            lines.append(f"  {mark} {step.took_s:6.1f}s  {step.name:34} {step.detail}")
        lines += ["", f"requests {self.load.requests}, of them streams {self.load.streams}"]
        lines.append(f"lost {self.load.lost_requests}, cut streams {self.load.cut_streams}")
        lines += [_refused_line(*item) for item in self.refused.items()]
        lines.append(f"{'ok' if self.is_good else 'FAILED'} in {self.took_s:.0f} s")
        return lines

    def _timeline(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            {
                "t_s": round((event.at - self.began).total_seconds(), 1),
                "host": event.host,
                "event": event.name,
                "text": event.text,
            }
            for event in self.events
        ]
        rows += _traffic_rows(self.load, self.began.timestamp())
        return sorted(rows, key=lambda row: float(row["t_s"]))


def _traffic_rows(load: LoadReport, began_at: float) -> list[dict[str, Any]]:
    """
    Return one row for each second: the share of each version over all hosts.
    """
    answered: dict[int, Counter[str]] = {}
    lost: Counter[int] = Counter()
    for second in load.timeline:
        answered.setdefault(second.at, Counter()).update(second.answered)
        lost[second.at] += second.lost
    return [
        {
            "t_s": round(at - began_at, 1),
            "event": "traffic",
            "share_pct": {v: round(100 * n / max(1, counts.total()), 1) for v, n in counts.items()},
            "requests": counts.total(),
            "lost": lost[at],
        }
        for at, counts in sorted(answered.items())
    ]


def _timeline_lines(timeline: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    Return a line for each shown event, and one where the set of versions in the traffic changes.

    A version joins the set with its first answer and leaves it after _SMOOTHING_S without one.
    """
    lines: list[str] = []
    current_versions: set[str] = set()
    traffic = [row for row in timeline if row["event"] == "traffic"]
    traffic_index = -1
    for row in timeline:
        at = f"{row['t_s']:7.1f}s"
        if row["event"] == "traffic":
            traffic_index += 1
            versions = set(row["share_pct"])
            window = traffic[traffic_index : traffic_index + _SMOOTHING_S]
            shares = _mean_shares(window, current_versions | versions)
            if versions - current_versions or current_versions - set(shares):
                text = "  ".join(f"{v} {pct:.0f} %" for v, pct in sorted(shares.items()))
                lines.append(f"{at}           traffic            {text}")
                current_versions = set(shares)
        elif row["event"] in _SHOWN_EVENTS:
            lines.append(f"{at}  {row['host'] or '':8} {row['event']:18} {row['text']}")
    return lines


def _mean_shares(rows: Sequence[Mapping[str, Any]], versions: set[str]) -> dict[str, float]:
    """
    Return the share of each of *versions* over *rows*, in percent; without those at 0.
    """
    answered: dict[str, float] = {}
    for row in rows:
        for version in versions & set(row["share_pct"]):
            share_pct = row["share_pct"][version]
            answered[version] = answered.get(version, 0.0) + share_pct * row["requests"]
    total = sum(answered.values())
    return {version: 100 * count / total for version, count in answered.items() if total}


def _exposure_json(version: str, exposure: Exposure | None) -> dict[str, Any]:
    return {
        "version": version,
        "reached_users_s": round(exposure.seconds, 1) if exposure else 0.0,
        "share_pct": round(100 * exposure.share, 2) if exposure else 0.0,
        "requests": exposure.requests if exposure else 0,
        "errors": exposure.errors if exposure else 0,
    }


def _refused_line(version: str, exposure: Exposure | None) -> str:
    if exposure is None:
        return f"refused {version}: never reached a user"
    return (
        f"refused {version}: reached users for {exposure.seconds:.1f} s at "
        f"{100 * exposure.share:.1f} % of the traffic: it answered {exposure.requests} requests, "
        f"{exposure.errors} of them with an error"
    )
