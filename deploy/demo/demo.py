"""
The demo on the lab: boot, provision, two good releases, two bad ones, a rollback, verify.

Live traffic runs from the first release to the rollback; the report says what its clients saw.
They verify the certificates of the hosts and send the token of an API key.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.api_keys.commands import KeyOptions, add_key, rotate_key
from deploy.api_keys.spread import read_lists
from deploy.certificates.authority import CERTIFICATE
from deploy.cli.report import event_line
from deploy.demo.load import LoadGenerator
from deploy.demo.report import DemoReport, DemoStep
from deploy.errors import CanaryRejected, ReleaseReverted
from deploy.inventory.schema import Fleet
from deploy.lab import lab
from deploy.provision import provision
from deploy.release.desired import Ending
from deploy.release.events import ReleaseEvent, ReleaseOutcome
from deploy.release.rollback import RollbackPlan
from deploy.verify import verify
from deploy.wiring import certificates
from deploy.wiring.bundles import checked_bundle, make_bundle
from deploy.wiring.checkout import ROOT
from deploy.wiring.checkout import fleet as load_fleet
from deploy.wiring.hosts import Hosts, connect
from deploy.wiring.lab_models import make_lab_model
from deploy.wiring.releases import make_plan, make_rollback, run_release, run_rollback

FLEET = "demo"
HOSTS = 4
KEY, KEY_SECONDS = "demo", 86400  # name and validity of the clients' API key
RATE_RPS = 40.0  # over all hosts; hosts, operator and clients share the cores of this machine
CONNECTIONS = 16  # kept alive
STREAMS = 4
MAX_TOKENS = 4  # of plain requests
STREAM_TOKENS = 24
STREAM_PAUSE_S = 1.0
CANARY_PCT = 10

GOOD_1, GOOD_2, BAD, GARBLED = "v1.0.0", "v1.1.0", "v1.2.0", "v1.3.0"
# In the order of building.  The newest bundle is the default of `inv release`, so it is a good one.
_MODELS = {GARBLED: "garbled", BAD: "nan", GOOD_1: "good-v1", GOOD_2: "good-v2"}
_BY_CANARY, _BY_GOLDEN = "refused by its canary", "refused by its golden prompts"

Progress = Callable[[str], None]
ReportResult = Callable[[str, str], None]  # called with the result of a step, and a detail


class _DemoRun:
    """
    Steps and events of a running demo.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.began, self.began_s = datetime.now(UTC), time.monotonic()
        self.steps: list[DemoStep] = []
        self.events: list[ReleaseEvent] = []

    @contextmanager
    def step(self, name: str, expected: str) -> Iterator[ReportResult]:
        """
        Time and record one step; the block reports its result with the function that it gets.
        """
        at_s = time.monotonic() - self.began_s
        actual, detail = "nothing", ""

        def report_result(result: str, result_detail: str = "") -> None:
            nonlocal actual, detail
            actual, detail = result, result_detail

        self.progress(f"== {name}")
        try:
            yield report_result
        finally:
            took_s = time.monotonic() - self.began_s - at_s
            step = DemoStep(name, round(at_s, 1), round(took_s, 1), expected, actual, detail)
            self.steps.append(step)
            mark = "" if step.passed else f" (expected: {expected})"
            self.progress(f"   {actual}{mark} in {took_s:.1f} s  {detail}")

    def on_event(self, event: ReleaseEvent) -> None:
        self.events.append(event)
        self.progress(event_line(event))


def run_demo(*, keep: bool, fresh: bool, progress: Progress) -> DemoReport:
    """
    Run the demo and return its report.

    Args:
        keep: Leave the lab up; otherwise it is down afterwards.
        fresh: Boot the hosts from empty disks.

    Raises:
        DeployError: A step failed that the later ones need: the lab, provisioning, a bundle.
    """
    demo = _DemoRun(progress)
    try:
        return _run(demo, fresh=fresh)
    finally:
        if not keep:
            lab.down(progress=progress)


def _run(demo: _DemoRun, *, fresh: bool) -> DemoReport:
    with demo.step("lab.up", "up") as report_result:
        lab.up(HOSTS, progress=demo.progress, fresh=fresh)
        report_result("up", f"{HOSTS} hosts")
    fleet = load_fleet(FLEET)
    authority = certificates.authority_directory(fleet) / CERTIFICATE
    if not authority.exists():
        certificates.create(fleet)
    numbers: dict[str, Any] = {}
    with demo.step("provision", "provisioned") as report_result:
        _provision(demo, fleet, report_result, numbers, "first")
    with demo.step("provision again", "0 changes") as report_result:
        _provision(demo, fleet, report_result, numbers, "second")
    models: dict[str, Path] = {}
    digests: dict[str, str] = {}
    with demo.step("models and bundles", "built") as report_result:
        for version, kind in _MODELS.items():
            models[version] = make_lab_model(kind, None, demo.progress)
            bundle = make_bundle(fleet, models[version], version, demo.progress)
            digests[version] = bundle.digest
        report_result("built", ", ".join(_MODELS))
    with connect(fleet) as hosts:
        with demo.step("API key", "added") as report_result:
            token = _add_key(hosts, report_result)
        _release(demo, hosts, GOOD_1, digests[GOOD_1], Ending.PROMOTED, "first release")
        load = LoadGenerator(
            [f"https://{host.address}:{fleet.service.port}" for host in fleet.hosts],
            prompts=json.loads((models[BAD] / "live_prompts.json").read_text()),
            rate_rps=RATE_RPS,
            connections=CONNECTIONS,
            streams=STREAMS,
            max_tokens=MAX_TOKENS,
            stream_max_tokens=STREAM_TOKENS,
            stream_pause_s=STREAM_PAUSE_S,
            authority=authority,
            token=token,
        )
        load.start()
        try:
            _release(
                demo,
                hosts,
                GOOD_2,
                digests[GOOD_2],
                Ending.PROMOTED,
                f"a good release, {CANARY_PCT} % canary",
            )
            _release(demo, hosts, BAD, digests[BAD], _BY_CANARY, "a release that fails users")
            _release(
                demo, hosts, GARBLED, digests[GARBLED], _BY_GOLDEN, "a release with wrong answers"
            )
            _rollback(demo, hosts)
        finally:
            load_report = load.stop()
    with demo.step("verify", "passed") as report_result:
        report = verify(fleet, junit=ROOT / "reports" / "verify.xml", progress=demo.progress)
        report_result("failed" if report.error else "passed", f"{report.passed} assertions")
    return DemoReport(
        steps=tuple(demo.steps),
        events=tuple(demo.events),
        load=load_report,
        refused={version: load_report.exposure(version) for version in (BAD, GARBLED)},
        began=demo.began,
        took_s=time.monotonic() - demo.began_s,
        numbers=numbers,
    )


def _provision(
    demo: _DemoRun,
    fleet: Fleet,
    report_result: ReportResult,
    numbers: dict[str, Any],
    which: str,
) -> None:
    report = provision(
        fleet, progress=lambda event: demo.progress(str(event)), env=dict(os.environ)
    )
    error = report.error
    if error:
        raise error
    numbers[f"{which}_provision"] = {
        "took_s": round(report.took_s, 1),
        "changes": len(report.changes),
        "commands_per_host": dict(report.commands),
    }
    changes = len(report.changes)
    detail = f"{changes} changes on {len(fleet.hosts)} hosts"
    report_result("provisioned" if which == "first" else f"{changes} changes", detail)


def _add_key(hosts: Hosts, report_result: ReportResult) -> str:
    """
    Add the clients' API key on all hosts; return its token.

    Hosts that were kept from an earlier demo have a key of that name: its token is replaced.
    """
    lists, now = read_lists(hosts.clients), int(time.time())
    if lists.merged.get(KEY) is None:
        issued = add_key(hosts.clients, KEY, KeyOptions(expires_s=KEY_SECONDS), now)
    else:
        issued = rotate_key(hosts.clients, KEY, 0, KEY_SECONDS, now)
    if issued.error:
        raise issued.error
    report_result("added", f"{KEY}, on {len(issued.spread.hosts)} hosts")
    return issued.token


def _release(
    demo: _DemoRun, hosts: Hosts, version: str, digest: str, expected: str, name: str
) -> None:
    with demo.step(f"release {version}: {name}", expected) as report_result:
        bundle = checked_bundle(hosts.fleet, digest)
        # Built before the good ones, or in an earlier run: see _MODELS.
        plan = make_plan(hosts, bundle, CANARY_PCT, allow_older=True)
        outcome = run_release(hosts, bundle, plan, demo.on_event)
        report_result(_result_of(outcome), outcome.reason)


def _rollback(demo: _DemoRun, hosts: Hosts) -> None:
    with demo.step("rollback", Ending.ROLLED_BACK) as report_result:
        plan: RollbackPlan = make_rollback(hosts, None)
        outcome = run_rollback(hosts, plan, demo.on_event)
        # Unlike a refused release, a successful rollback has no error.
        if outcome.error:
            report_result("failed", str(outcome.error))
        else:
            report_result(outcome.ending, outcome.reason)


def _result_of(outcome: ReleaseOutcome) -> str:
    if isinstance(outcome.error, CanaryRejected):
        return _BY_CANARY
    if isinstance(outcome.error, ReleaseReverted) and "golden prompts" in outcome.reason:
        return _BY_GOLDEN
    return str(outcome.ending) if outcome.error is None else outcome.error.what
