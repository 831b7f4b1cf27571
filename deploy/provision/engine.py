"""
Brings every host to its site, all at once, each at its own pace.  Runs in the worker alone.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from pyinfra.api.config import Config
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State, StateStage
from pyinfra.context import ctx_config, ctx_host, ctx_state

from deploy.errors import CommandFailed, DeployError
from deploy.provision import operations
from deploy.provision.connector import BoundedConnector
from deploy.provision.differences import (
    Step,
    bootstrap_steps,
    next_steps,
    question_of,
    refusal_of,
    steps_to,
)
from deploy.provision.report import EventKind, ProvisionEvent
from deploy.provision.seen import Seen
from deploy.provision.worker_request import HostJob, Job

_ROUNDS = 5  # packages, disk, what runs, the assertion, and one to spare
_LOGINS_AT_ONCE = 8  # sshd drops new logins when it has ten unfinished ones (MaxStartups)

Say = Callable[[ProvisionEvent], None]


class Refused(DeployError):
    """
    The host is not as provisioning needs it; `error` is the class to report it as.
    """

    def __init__(self, host: str, error: str, why: str, fix: str) -> None:
        super().__init__(f"{host}: refused", why=why, fix=fix, host=host)
        self.error = error


def run(job: Job, say: Say, count: Callable[[str, int], None]) -> None:
    """
    Do *job*; every host ends with an event that is OK or FAILED.

    Args:
        count: Told at the end how many remote commands each host was sent.
    """
    state = _state(job)
    logins = BoundedSemaphore(_LOGINS_AT_ONCE)
    with ctx_state.use(state):
        hosts = {host.name: host for host in state.inventory}
        tasks = [
            gevent.spawn(_host, state, hosts[one.name], one, job.check, say, count, logins)
            for one in job.hosts
        ]
        gevent.joinall(tasks, raise_error=True)


def _state(job: Job) -> State:
    sudo = {one.name: {"_sudo": True} if one.ssh["user"] != "root" else {} for one in job.hosts}
    names = [(one.name, sudo[one.name]) for one in job.hosts]
    inventory = Inventory((names, {}))  # type: ignore[no-untyped-call]
    # Facts are asked for once, when an operation runs: there is no separate prediction.
    config = Config()  # type: ignore[no-untyped-call]
    state = State(inventory, config, check_for_changes=False)
    jobs = {one.name: one for one in job.hosts}
    for host in inventory:
        host.connector = BoundedConnector(state, host, jobs[host.name].host)
        state.activate_host(host)
    state.current_stage = StateStage.Prepare
    # From here on an operation runs at the line that calls it.
    state.is_executing = True
    return state


def _host(
    state: State,
    host: PyinfraHost,
    job: HostJob,
    check: bool,
    say: Say,
    count: Callable[[str, int], None],
    logins: BoundedSemaphore,
) -> None:
    connector = host.connector
    assert isinstance(connector, BoundedConnector)
    try:
        with ctx_config.use(state.config.copy()), ctx_host.use(host):
            say(ProvisionEvent(job.name, EventKind.CONNECTING))
            with logins:
                host.connect(raise_exceptions=True, show_errors=False)
            _Visit(host, connector, job, say).make_so(check)
        say(ProvisionEvent(job.name, EventKind.OK))
    except Exception as error:  # one host's trouble is not the others'
        if not isinstance(error, DeployError | PyinfraError | ConnectError):
            traceback.print_exc()
        say(_failed(job.name, connector, error))
    finally:
        count(job.name, connector.commands)
        connector.disconnect()


class _Visit:
    """
    One host while it is connected.
    """

    def __init__(
        self, host: PyinfraHost, connector: BoundedConnector, job: HostJob, say: Say
    ) -> None:
        self._host, self._connector, self._job, self._say = host, connector, job, say

    def make_so(self, check: bool) -> None:
        site = self._job.site
        seen = self._look()
        if seen is None:
            steps = bootstrap_steps(site)
            if check:
                self._show(steps)
                return
            self._change(steps, None)
            seen = self._look()
            if seen is None:
                raise Refused(
                    self._job.name,
                    "CommandFailed",
                    "python3 was installed and is not found",
                    "look at PATH of the SSH user on the host",
                )
        if not steps_to(site, seen):
            return
        self._require(seen)
        if check:
            self._show(steps_to(site, seen))
            return
        for _ in range(_ROUNDS):
            steps = next_steps(site, seen)
            if not steps:
                return
            self._change(steps, seen)
            seen = self._look() or seen
        left = ", ".join(step.resource.name for step in next_steps(site, seen))
        raise Refused(
            self._job.name,
            "CommandFailed",
            f"still not as it should be after {_ROUNDS} rounds: {left}",
            "something on the host changes it back: look there for another configuration tool",
        )

    def _look(self) -> Seen | None:
        self._say(ProvisionEvent(self._job.name, EventKind.LOOKING))
        self._connector.doing = "looking at the host"
        question = question_of(self._job.site)
        with self._failing_as("the host could not be looked at"):
            found: Seen | None = self._host.get_fact(
                operations.Look, _stdin=operations.look_input(question)
            )
        if found is None and self._connector.said:
            raise self._said_no("the host could not be looked at")
        return found

    def _require(self, seen: Seen) -> None:
        refusal = refusal_of(self._job.site, seen)
        if refusal is not None:
            raise Refused(self._job.name, refusal.error, refusal.why, refusal.fix)

    def _show(self, steps: tuple[Step, ...]) -> None:
        for number, step in enumerate(steps, 1):
            self._tell(EventKind.WOULD_CHANGE, step, number, len(steps))

    def _change(self, steps: tuple[Step, ...], seen: Seen | None) -> None:
        for number, step in enumerate(steps, 1):
            self._tell(EventKind.CHANGING, step, number, len(steps))
            started_s = time.monotonic()
            self._connector.doing = f"{step.resource.name}: {step.difference.change}"
            self._connector.said = ""
            with self._failing_as(f"{step.resource.name}: {step.difference.change}"):
                operations.apply(step.resource, seen)
            took_s = time.monotonic() - started_s
            self._tell(EventKind.CHANGED, step, number, len(steps), took_s)

    def _tell(
        self, kind: EventKind, step: Step, number: int, of: int, took_s: float | None = None
    ) -> None:
        shown = kind in (EventKind.WOULD_CHANGE, EventKind.CHANGED)
        self._say(
            ProvisionEvent(
                self._job.name,
                kind,
                resource=step.resource.name,
                change=step.difference.change,
                diff=step.difference.diff if shown else None,
                done=number,
                of=of,
                took_s=took_s,
            )
        )

    @contextlib.contextmanager
    def _failing_as(self, what: str) -> Iterator[None]:
        try:
            yield
        except PyinfraError as error:
            raise self._said_no(what, error) from error
        if self._connector.lost is not None:
            raise self._connector.lost

    def _said_no(self, what: str, error: Exception | None = None) -> DeployError:
        if self._connector.lost is not None:
            return self._connector.lost
        name = self._job.name
        return CommandFailed(
            f"{name}: {what}",
            why=f"{what}: {self._connector.said or error or 'it said nothing'}",
            fix=f"see to that on the host, then: inv provision --limit {name}",
            host=name,
        )


def _failed(name: str, connector: BoundedConnector, error: Exception) -> ProvisionEvent:
    known: Any = connector.lost or error
    if not isinstance(known, DeployError):
        known = CommandFailed(
            f"{name}: provisioning failed",
            why=f"{type(error).__name__}: {error}",
            fix=f"see to that on the host, then: inv provision --limit {name}",
        )
    kind = known.error if isinstance(known, Refused) else type(known).__name__
    return ProvisionEvent(name, EventKind.FAILED, why=known.why, fix=known.fix, resource=kind)
