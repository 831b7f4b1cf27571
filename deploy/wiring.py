"""
Chooses the real transport, clock, stores and owner; the only place that does.
"""

import getpass
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy import errors
from deploy.bundle.build import build_bundle
from deploy.bundle.check import check_bundle
from deploy.bundle.send import stage
from deploy.bundle.sign import sign_bundle
from deploy.bundle.store import Bundle, BundleStore
from deploy.errors import (
    CommandFailed,
    DeployError,
    PreconditionError,
    ProvisionFailed,
    TransportError,
    UsageError,
)
from deploy.inventory.load import load_fleet
from deploy.inventory.schema import Fleet
from deploy.provision.report import ProvisionReport
from deploy.release import steps
from deploy.release.events import Outcome, ReleaseEvent, release_id
from deploy.release.executor import ReleaseExecutor
from deploy.release.observe import Observed, observe
from deploy.release.plan import ReleasePlan, plan_release
from deploy.release.rollback import BACK_TO, RollbackPlan, plan_rollback, roll_back
from deploy.transport.host_tool import HostTool
from deploy.transport.ssh import SshTransport
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import ensure_lock

ROOT = Path(__file__).parents[1]
WHEELS = Path("~/.cache/slipway/wheels").expanduser()
_GOLDEN_S = 60.0


class SystemClock:
    def monotonic_s(self) -> float:
        return time.monotonic()

    def utc(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def store() -> BundleStore:
    """
    Return the store of this checkout.
    """
    return BundleStore(ROOT / ".slipway")


def fleet(name: str, limit: str | None = None) -> Fleet:
    """
    Return the fleet called *name*, or the hosts of it that *limit* selects.

    Raises:
        InventoryError: The file is missing or wrong.
        UnknownHost: *limit* selects nothing.
    """
    return load_fleet(name, root=ROOT, limit=limit, known_rows=[r.name for r in load_matrix().rows])


def provision_error(report: ProvisionReport) -> DeployError | None:
    """
    Return what a provisioning run should fail with; None when every host is as pinned.

    A failure that all failed hosts share keeps its own kind, and so its own exit code.
    """
    if not report.failed:
        return None
    kinds = {failure.error for failure in report.failed}
    kind = getattr(errors, kinds.pop()) if len(kinds) == 1 else ProvisionFailed
    first = report.failed[0]
    hosts = ", ".join(failure.host for failure in report.failed)
    error: DeployError = kind(f"not as pinned: {hosts}", why=first.why, fix=first.fix)
    return error


def actor() -> str:
    """
    Return who acts, as journals name them: user@machine.
    """
    return f"{getpass.getuser()}@{socket.gethostname()}"


@dataclass(frozen=True)
class Hosts:
    """
    A fleet with a connection to each of its hosts.
    """

    fleet: Fleet
    tools: Mapping[str, HostTool]
    transports: Mapping[str, SshTransport]

    def seen(self) -> dict[str, Observed | DeployError]:
        """
        Return what every host looks like, or why it could not be read.
        """
        return observe(self.tools.values(), timeout_s=20.0)

    def observed(self) -> dict[str, Observed]:
        """
        Return what every host looks like.

        Raises:
            DeployError: One or more hosts could not be read; all are named.
        """
        seen = self.seen()
        found = {n: s for n, s in seen.items() if isinstance(s, Observed)}
        failed = {n: s for n, s in seen.items() if isinstance(s, DeployError)}
        if len(failed) == 1:
            raise next(iter(failed.values()))
        if failed:
            kinds = {type(error) for error in failed.values()}
            kind = kinds.pop() if len(kinds) == 1 else TransportError
            raise kind(
                f"{', '.join(failed)}: cannot be read",
                why="; ".join(f"{name}: {error.why}" for name, error in failed.items()),
                fix=f"bring them back, or go on without: --limit {','.join(found) or 'HOSTS'}",
            )
        return found

    @property
    def limits(self) -> steps.Limits:
        policy, service = self.fleet.release, self.fleet.service
        return steps.Limits(
            start_s=service.start_timeout,
            drain_s=policy.drain_timeout,
            golden_s=_GOLDEN_S,
            keep=policy.keep,
        )


@contextmanager
def hosts(of: Fleet) -> Iterator[Hosts]:
    """
    Yield connections to the hosts of *of*; they are opened at first use and closed at the end.
    """
    transports = {host.name: SshTransport(host) for host in of.hosts}
    tools = {
        host.name: HostTool(transports[host.name], actor=actor(), sudo=host.ssh.user != "root")
        for host in of.hosts
    }
    try:
        yield Hosts(of, tools, transports)
    finally:
        for transport in transports.values():
            transport.close()


def make_bundle(of: Fleet, model: Path, version: str, progress: Callable[[str], None]) -> Bundle:
    """
    Build, sign and store a bundle for the fleet's row; return it.

    Raises:
        ModelPathError: *model* is absent, unreadable or not a model.
        PreconditionError: The signing key is missing.
    """
    row = load_matrix().row(_one_row(of))
    lock = ensure_lock(row, cache=WHEELS, progress=progress)
    made = build_bundle(
        model=model,
        version=version,
        row_name=row.name,
        lock=lock,
        identity=of.signing.identity,
        runtime_dir=ROOT / "runtime",
        store=store(),
    )
    return sign_bundle(made, key=of.signing.key)


def _one_row(of: Fleet) -> str:
    rows = sorted({host.row for host in of.hosts})
    if len(rows) > 1:
        raise UsageError(
            f"{of.name}: its hosts stand on different rows of the version matrix",
            why=", ".join(rows),
            fix="a bundle is for one row: give the others a fleet file of their own",
        )
    return rows[0]


def checked_bundle(of: Fleet, version: str | None) -> Bundle:
    """
    Return the bundle called *version*, or the newest, after checking signature and hashes.

    Raises:
        BundleUnsigned, BundleTampered, BundleTruncated: It is not what was signed.
    """
    found = store().get(version) if version else store().newest()
    check_bundle(found, allowed_signers=of.signing.allowed_signers)
    return found


def check_digest(plan: ReleasePlan, digest: str | None) -> None:
    """
    Refuse a plan that is not the approved one.

    Raises:
        PreconditionError: The world, the bundle or the policy changed since the approval.
    """
    if digest is not None and digest != plan.digest:
        raise PreconditionError(
            f"plan {digest} does not hold any more",
            why=f"as the hosts are now, the plan is {plan.digest}",
            fix="look at what changed with inv plan, and approve that",
        )


def make_lab_model(kind: str, out: Path | None, progress: Callable[[str], None]) -> Path:
    """
    Make a lab model of *kind* in a process of its own (it needs torch) and return its directory.

    Raises:
        CommandFailed: It could not be made.
    """
    target = out or ROOT / ".slipway" / "models" / kind
    progress(f"lab model {kind}: {target}")
    argv = [sys.executable, "-m", "deploy.lab.models", "--kind", kind, "--out", str(target)]
    argv += ["--cache", str(ROOT / ".slipway" / "lab-weights")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(
            f"lab model {kind}: could not be made",
            why=" / ".join(done.stderr.strip().splitlines()[-3:]),
            fix="inv lab.model --kind good-v1, good-v2, nan or garbled",
        )
    return target


def make_plan(on: Hosts, bundle: Bundle, canary_pct: int) -> ReleasePlan:
    """
    Return what releasing *bundle* on *on* takes, as its hosts are now.

    Raises:
        PreconditionError: The bundle is for another row of the matrix than a host stands on.
    """
    for host in on.fleet.hosts:
        if host.row != bundle.manifest.row:
            raise PreconditionError(
                f"{host.name}: bundle {bundle.version} is not for this host",
                why=f"it was built for {bundle.manifest.row}, the host stands on {host.row}",
                fix=f"inv bundle --hosts {on.fleet.name}, then release that",
                host=host.name,
            )
    return plan_release(
        fleet=on.fleet.name,
        bundle=bundle.digest,
        version=bundle.manifest.version,
        canary_pct=canary_pct,
        policy=on.fleet.release,
        observed=on.observed(),
    )


def run_release(
    on: Hosts, bundle: Bundle, plan: ReleasePlan, report: Callable[[ReleaseEvent], None]
) -> Outcome:
    """
    Do *plan* and return how it ended.
    """
    clock = SystemClock()

    def stage_one(tool: HostTool) -> dict[str, Any]:
        return stage(bundle, tool=tool, transport=tool.transport, wheels=WHEELS)

    executor = ReleaseExecutor(
        plan,
        release=release_id(plan.version, clock.utc()),
        owner=_owner(),
        tools=on.tools,
        stage=stage_one,
        policy=on.fleet.release,
        limits=on.limits,
        clock=clock,
        report=report,
        recheck=lambda: check_digest(make_plan(on, bundle, plan.canary_pct), plan.digest),
    )
    return executor.run()


def make_rollback(on: Hosts, to: str | None) -> RollbackPlan:
    """
    Return the way back of every host, as they are now.
    """
    return plan_rollback(on.observed(), to)


def run_rollback(
    on: Hosts,
    plan: RollbackPlan,
    report: Callable[[ReleaseEvent], None],
    to: str | None = None,
) -> Outcome:
    """
    Do *plan*, which was made for *to*, and return how it ended.
    """
    clock = SystemClock()

    def recheck() -> None:
        now = make_rollback(on, to)
        if now.hosts != plan.hosts:
            raise PreconditionError(
                "the hosts are not any more as the rollback assumed",
                why=f"the way back is now: {now.reason}",
                fix="inv rollback again",
            )

    version = plan.target.version if plan.target else "nothing"
    return roll_back(
        plan,
        release=release_id(f"{BACK_TO}{version}", clock.utc()),
        owner=_owner(),
        tools=on.tools,
        policy=on.fleet.release,
        limits=on.limits,
        clock=clock,
        report=report,
        recheck=recheck,
    )


def _owner() -> str:
    # Two runs of one person are two owners.
    return f"{actor()}:{os.getpid()}:{secrets.token_hex(4)}"
