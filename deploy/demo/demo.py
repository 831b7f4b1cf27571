"""
The main job in one run: lab, provision, two good releases, two bad ones, rollback, verify.

Live traffic from the first release to the end; what its users saw is in the report.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy import wiring
from deploy.cli.report import event_line
from deploy.demo.load import LoadGenerator
from deploy.demo.load_report import Exposure, LoadReport
from deploy.errors import CanaryRejected, ReleaseReverted
from deploy.inventory.schema import Fleet
from deploy.lab import lab
from deploy.provision import provision
from deploy.release.events import Ending, ReleaseEvent, ReleaseOutcome
from deploy.release.rollback import RollbackPlan
from deploy.verify import verify

HOSTS = 4
# Over all hosts.  Hosts, operator and users share this machine's cores.
RATE_RPS = 40.0
CONNECTIONS = 16  # kept alive
STREAMS = 4
MAX_TOKENS = 8
STREAM_TOKENS = 24
STREAM_PAUSE_S = 1.0
CANARY_PCT = 10

GOOD_1, GOOD_2, BAD, GARBLED = "v1.0.0", "v1.1.0", "v1.2.0", "v1.3.0"
# Built in this order: the newest bundle is the one that `inv release` takes, and must be good.
_MODELS = {GARBLED: "garbled", BAD: "nan", GOOD_1: "good-v1", GOOD_2: "good-v2"}
_BY_CANARY, _BY_GOLDEN = "refused by its canary", "refused by its golden prompts"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """
    One part of the demo.

    Attributes:
        at_s, took_s: Seconds since the demo began, and how long the part took.
        wanted: What it was to end with; `found` is what it did.
    """

    name: str
    at_s: float
    took_s: float
    wanted: str
    found: str
    detail: str

    @property
    def is_good(self) -> bool:
        return self.wanted == self.found


@dataclass(frozen=True)
class DemoReport:
    steps: tuple[Step, ...]
    events: tuple[ReleaseEvent, ...]
    load: LoadReport
    refused: dict[str, Exposure | None]  # None: it never reached a user
    began: datetime
    took_s: float
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        return (
            all(step.is_good for step in self.steps)
            and self.load.requests > 0
            and self.load.lost_requests == 0
            and self.load.cut_streams == 0
        )

    def as_json(self) -> dict[str, Any]:
        """
        Return the document of `inv demo --json`.
        """
        return {
            "outcome": "ok" if self.is_good else "failed",
            "requests": self.load.requests,
            "streams": self.load.streams,
            "lost_requests": self.load.lost_requests,
            "cut_streams": self.load.cut_streams,
            "user_errors": {v: dict(kinds) for v, kinds in self.load.errors_by_version.items()},
            "requests_by_version": dict(self.load.requests_by_version),
            "latency_s": dict(self.load.latency_s),
            "refused": [_exposed(version, seen) for version, seen in self.refused.items()],
            "steps": [
                {
                    "step": s.name,
                    "at_s": s.at_s,
                    "took_s": s.took_s,
                    "wanted": s.wanted,
                    "outcome": s.found,
                    "detail": s.detail,
                }
                for s in self.steps
            ],
            "timeline": self._timeline(),
            "numbers": self.numbers,
            "took_s": round(self.took_s, 1),
        }

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
        rows += _shares(self.load, self.began.timestamp())
        return sorted(rows, key=lambda row: float(row["t_s"]))

    def text(self) -> str:
        """
        Return the timeline and the sums, as a person reads them.
        """
        lines = ["", "timeline (share of traffic by version, as the users saw it)"]
        shown: set[str] = set()
        timeline = self._timeline()
        traffic = [row for row in timeline if row["event"] == "traffic"]
        for row in timeline:
            at = f"{row['t_s']:7.1f}s"
            if row["event"] == "traffic":
                # A row when a version comes, or is gone for five seconds: a canary of 10 % on one
                # host of four does not answer somebody every second.
                at_index = traffic.index(row)
                coming = set(row["share_pct"])
                mixture = _mixed(traffic[at_index : at_index + 5], shown | coming)
                if coming - shown or shown - set(mixture):
                    now = "  ".join(f"{v} {pct:.0f} %" for v, pct in sorted(mixture.items()))
                    lines.append(f"{at}           traffic            {now}")
                    shown = set(mixture)
            elif row["event"] in _SHOWN:
                lines.append(f"{at}  {row['host'] or '':8} {row['event']:18} {row['text']}")
        lines += ["", "steps"]
        for step in self.steps:
            mark = "ok  " if step.is_good else "FAIL"
            lines.append(f"  {mark} {step.took_s:6.1f}s  {step.name:34} {step.detail}")
        lines += ["", f"requests {self.load.requests}, of them streams {self.load.streams}"]
        lines.append(f"lost {self.load.lost_requests}, cut streams {self.load.cut_streams}")
        for version, seen in self.refused.items():
            if seen is None:
                lines.append(f"refused {version}: never reached a user")
                continue
            lines.append(
                f"refused {version}: reached users for {seen.seconds:.1f} s at "
                f"{100 * seen.share:.1f} % of the traffic: {seen.requests} requests answered by "
                f"it, {seen.errors} of them errors that a user saw"
            )
        lines.append(f"{'ok' if self.is_good else 'FAILED'} in {self.took_s:.0f} s")
        return "\n".join(lines)


_SHOWN = {
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


class _Demo:
    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.began, self.began_s = datetime.now(UTC), time.monotonic()
        self.steps: list[Step] = []
        self.events: list[ReleaseEvent] = []

    @contextmanager
    def step(self, name: str, wanted: str) -> Iterator[Callable[[str, str], None]]:
        """
        Time one part; the caller says what it ended with.
        """
        at_s = time.monotonic() - self.began_s
        found, detail = "nothing", ""

        def say(what: str, more: str = "") -> None:
            nonlocal found, detail
            found, detail = what, more

        self.progress(f"== {name}")
        try:
            yield say
        finally:
            took_s = time.monotonic() - self.began_s - at_s
            step = Step(name, round(at_s, 1), round(took_s, 1), wanted, found, detail)
            self.steps.append(step)
            mark = "" if step.is_good else f" (wanted: {wanted})"
            self.progress(f"   {found}{mark} in {took_s:.1f} s  {detail}")

    def heard(self, event: ReleaseEvent) -> None:
        self.events.append(event)
        self.progress(event_line(event))


def run_demo(*, keep: bool, fresh: bool, progress: Progress) -> DemoReport:
    """
    Run all of it and return what happened; the lab is down afterwards unless *keep*.

    Raises:
        DeployError: A part could not be done at all: the lab, provisioning, a bundle.
    """
    demo = _Demo(progress)
    try:
        return _run(demo, fresh=fresh)
    finally:
        if not keep:
            lab.down(progress=progress)


def _run(demo: _Demo, *, fresh: bool) -> DemoReport:
    with demo.step("lab.up", "up") as say:
        lab.up(HOSTS, progress=demo.progress, fresh=fresh)
        say("up", f"{HOSTS} hosts")
    fleet = wiring.fleet("lab")
    numbers: dict[str, Any] = {}
    with demo.step("provision", "provisioned") as say:
        _provision(demo, fleet, say, numbers, "first")
    with demo.step("provision again", "0 changes") as say:
        _provision(demo, fleet, say, numbers, "second")
    models: dict[str, Path] = {}
    digests: dict[str, str] = {}
    with demo.step("models and bundles", "built") as say:
        for version, kind in _MODELS.items():
            models[version] = wiring.make_lab_model(kind, None, demo.progress)
            made = wiring.make_bundle(fleet, models[version], version, demo.progress)
            digests[version] = made.digest
        say("built", ", ".join(_MODELS))
    with wiring.hosts(fleet) as on:
        _release(demo, on, GOOD_1, digests[GOOD_1], Ending.PROMOTED, "first release")
        load = LoadGenerator(
            [f"http://{host.address}:{fleet.service.port}" for host in fleet.hosts],
            prompts=json.loads((models[BAD] / "live_prompts.json").read_text()),
            rate_rps=RATE_RPS,
            connections=CONNECTIONS,
            streams=STREAMS,
            max_tokens=MAX_TOKENS,
            stream_max_tokens=STREAM_TOKENS,
            stream_pause_s=STREAM_PAUSE_S,
        )
        load.start()
        try:
            _release(
                demo,
                on,
                GOOD_2,
                digests[GOOD_2],
                Ending.PROMOTED,
                f"a good release, {CANARY_PCT} % canary",
            )
            _release(demo, on, BAD, digests[BAD], _BY_CANARY, "a release that fails users")
            _release(
                demo, on, GARBLED, digests[GARBLED], _BY_GOLDEN, "a release with wrong answers"
            )
            _rollback(demo, on)
        finally:
            seen = load.stop()
    with demo.step("verify", "passed") as say:
        report = verify(fleet, junit=wiring.ROOT / "reports" / "verify.xml", progress=demo.progress)
        say("failed" if report.error else "passed", f"{report.passed} assertions")
    refused = {version: seen.exposure(version) for version in (BAD, GARBLED)}
    took_s = time.monotonic() - demo.began_s
    return DemoReport(
        tuple(demo.steps), tuple(demo.events), seen, refused, demo.began, took_s, numbers
    )


def _provision(
    demo: _Demo, fleet: Fleet, say: Callable[[str, str], None], numbers: dict[str, Any], which: str
) -> None:
    report = provision(
        fleet, progress=lambda event: demo.progress(str(event)), env=dict(os.environ)
    )
    error = wiring.provision_error(report)
    if error:
        raise error
    numbers[f"{which}_provision"] = {
        "took_s": round(report.took_s, 1),
        "changes": len(report.changes),
        "commands_per_host": dict(report.commands),
    }
    changes = len(report.changes)
    detail = f"{changes} changes on {len(fleet.hosts)} hosts"
    say("provisioned" if which == "first" else f"{changes} changes", detail)


def _release(
    demo: _Demo, on: wiring.Hosts, version: str, digest: str, wanted: str, name: str
) -> None:
    with demo.step(f"release {version}: {name}", wanted) as say:
        bundle = wiring.checked_bundle(on.fleet, digest)
        plan = wiring.make_plan(on, bundle, CANARY_PCT)
        outcome = wiring.run_release(on, bundle, plan, demo.heard)
        _ended(outcome, say)


def _rollback(demo: _Demo, on: wiring.Hosts) -> None:
    with demo.step("rollback", Ending.ROLLED_BACK) as say:
        plan: RollbackPlan = wiring.make_rollback(on, None)
        outcome = wiring.run_rollback(on, plan, demo.heard)
        # A refused release ends with an error; a rollback that did its job does not.
        if outcome.error:
            say("failed", str(outcome.error))
        else:
            say(outcome.ending, outcome.reason)


def _ended(outcome: ReleaseOutcome, say: Callable[[str, str], None]) -> None:
    found = str(outcome.ending)
    if isinstance(outcome.error, CanaryRejected):
        found = _BY_CANARY
    elif isinstance(outcome.error, ReleaseReverted) and "golden prompts" in outcome.reason:
        found = _BY_GOLDEN
    elif outcome.error is not None:
        found = outcome.error.what
    say(found, outcome.reason)


def _exposed(version: str, seen: Exposure | None) -> dict[str, Any]:
    return {
        "version": version,
        "reached_users_s": round(seen.seconds, 1) if seen else 0.0,
        "share_pct": round(100 * seen.share, 2) if seen else 0.0,
        "requests": seen.requests if seen else 0,
        "errors": seen.errors if seen else 0,
    }


def _mixed(rows: list[dict[str, Any]], versions: set[str]) -> dict[str, float]:
    """
    Return the share of each of *versions* over *rows*, in percent.
    """
    answered: dict[str, float] = {}
    for row in rows:
        for version in versions & set(row["share_pct"]):
            pct = row["share_pct"][version]
            answered[version] = answered.get(version, 0.0) + pct * row["requests"]
    total = sum(answered.values())
    return {version: 100 * count / total for version, count in answered.items() if total}


def _shares(load: LoadReport, began_at: float) -> list[dict[str, Any]]:
    """
    Return a row for each second: the share of each version over all hosts.
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
