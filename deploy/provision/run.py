"""
`inv provision`: gathers what the hosts should be, has a worker make them so, and collects.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import uv

from deploy.bundle.host_program import build_host_program
from deploy.errors import CommandFailed, DeployError, TransportError
from deploy.inventory.schema import Fleet
from deploy.provision.goal import Goal, read_allowed_signers, resolve_tokens, weigh
from deploy.provision.job import HostJob, Job
from deploy.provision.report import (
    HERE,
    Change,
    EventKind,
    Failure,
    ProvisionEvent,
    ProvisionReport,
)
from deploy.provision.site import plan_site
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import Lock, ensure_lock

DEADLINE_S = 1200.0  # of all hosts together; whoever has not answered by then has failed
_ROOT = Path(__file__).parents[2]

Progress = Callable[[ProvisionEvent], None]


def provision(
    fleet: Fleet,
    *,
    check: bool = False,
    progress: Progress,
    env: Mapping[str, str],
    deadline_s: float = DEADLINE_S,
) -> ProvisionReport:
    """
    Bring every host of *fleet* to its pinned state, or with *check* say what that would change.

    Failures of single hosts are in the report; the other hosts go on.

    Args:
        env: Where secrets that are environment variables are found.
        deadline_s: Longest time that the hosts get, in seconds, whatever they do.

    Raises:
        InventoryError: A row, secret or file of the fleet is missing; no host was touched.
        CommandFailed: The wheels could not be fetched; no host was touched.
    """
    started_s = time.monotonic()
    collected = _Collected([host.name for host in fleet.hosts], progress)
    worker = _start()  # it imports while we gather
    try:
        job = Job(check=check, hosts=_jobs(fleet, env, progress))
        _work(worker, job, collected, time.monotonic() + deadline_s)
    finally:
        worker.kill()
        worker.wait()
    return collected.report(check, time.monotonic() - started_s)


def _jobs(fleet: Fleet, env: Mapping[str, str], progress: Progress) -> tuple[HostJob, ...]:
    def fetching(text: str) -> None:
        progress(ProvisionEvent(HERE, EventKind.FETCHING, change=text))

    matrix = load_matrix()
    rows = {name: matrix.row(name) for name in sorted({host.row for host in fleet.hosts})}
    tokens = resolve_tokens(fleet, env)
    signers = read_allowed_signers(fleet)
    tool = build_host_program()
    binary = weigh(Path(uv.find_uv_bin()))
    locks: dict[str, Lock] = {}
    for name, row in rows.items():
        locks[name] = ensure_lock(row, progress=fetching)
    jobs = []
    for host in fleet.hosts:
        goal = Goal(
            host=host,
            row=rows[host.row],
            lock=locks[host.row],
            service=fleet.service,
            release=fleet.release,
            mirrors=fleet.mirrors,
            api_tokens=tokens,
            allowed_signers=signers,
            host_tool=tool,
            uv=binary,
        )
        jobs.append(HostJob.of(host, plan_site(goal)))
    return tuple(jobs)


class _Collected:
    """
    What the worker said so far.
    """

    def __init__(self, hosts: list[str], progress: Progress) -> None:
        self._hosts, self._progress = hosts, progress
        self._ok: list[str] = []
        self._changes: list[Change] = []
        self._failed: list[Failure] = []
        self._commands: dict[str, int] = {}
        self._doing: dict[str, str] = {}

    def take(self, line: str) -> None:
        """
        Take one line of the worker.
        """
        document = json.loads(line)
        if "commands" in document:
            told = document["commands"]
            self._commands[told["host"]] = told["commands"]
            return
        fields = document["event"]
        event = ProvisionEvent(**fields | {"kind": EventKind(fields["kind"])})
        self._doing[event.host] = f"{event.resource or event.kind.value}"
        if event.kind is EventKind.OK:
            self._ok.append(event.host)
        elif event.kind is EventKind.FAILED:
            why, fix = event.why or "", event.fix or ""
            self._failed.append(Failure(event.host, why, fix, event.resource or ""))
        elif event.kind in (EventKind.CHANGED, EventKind.WOULD_CHANGE):
            changed = (event.host, event.resource or "", event.change or "", event.diff)
            self._changes.append(Change(*changed))
        self._progress(event)

    def give_up(self, why: str, fix: str, kind: type[DeployError]) -> None:
        """
        Fail every host that has not ended.
        """
        ended = {*self._ok, *(failure.host for failure in self._failed)}
        for host in self._hosts:
            if host not in ended:
                doing = self._doing.get(host, "starting")
                self._failed.append(Failure(host, f"{why}, at: {doing}", fix, kind.__name__))

    def report(self, check: bool, took_s: float) -> ProvisionReport:
        return ProvisionReport(
            check=check,
            ok=tuple(sorted(self._ok, key=self._hosts.index)),
            changes=tuple(sorted(self._changes, key=lambda c: self._hosts.index(c.host))),
            failed=tuple(sorted(self._failed, key=lambda f: self._hosts.index(f.host))),
            commands=dict(sorted(self._commands.items())),
            took_s=took_s,
        )


def _start() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.provision.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env=_environment(),
        start_new_session=True,  # a Ctrl-C is ours to hand on: closing its input ends it
    )


def _work(worker: "subprocess.Popen[str]", job: Job, collected: _Collected, end_s: float) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stderr is not None
    timed_out = threading.Event()
    timer = threading.Timer(max(0.0, end_s - time.monotonic()), _kill, (worker, timed_out))
    complaints: list[str] = []
    listener = threading.Thread(target=_drain, args=(worker.stderr, complaints), daemon=True)
    timer.start()
    listener.start()
    try:
        # Its input stays open: when we die, it sees the end and stops.
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(job.model_dump_json() + "\n")
            worker.stdin.flush()
        for line in worker.stdout:
            collected.take(line)
        worker.wait()
    finally:
        timer.cancel()
    listener.join(timeout=1)
    if timed_out.is_set():
        fix = "see what the host is busy with, then: inv provision"
        collected.give_up("the run's deadline passed", fix, TransportError)
    else:
        said = " / ".join(line for line in complaints[-3:] if line)
        why = f"provisioning broke on this machine, status {worker.returncode} ({said})"
        fix = "this is not about the host: is .venv whole?  ./inv makes it anew from the lock"
        collected.give_up(why, fix, CommandFailed)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(_ROOT)}


def _kill(worker: "subprocess.Popen[str]", timed_out: threading.Event) -> None:
    timed_out.set()
    worker.kill()


def _drain(pipe: IO[str], into: list[str]) -> None:
    into.extend(line.rstrip() for line in pipe)
