"""
Changes hosts until they have their resources, all hosts at once.  Runs in the worker only.
"""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace

import gevent
from gevent.lock import BoundedSemaphore
from pyinfra.api.config import Config
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.api.host import Host as PyinfraHost
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State, StateStage
from pyinfra.context import ctx_config, ctx_host, ctx_state

from deploy.errors import CommandFailed, DeployError
from deploy.foreign_text import says
from deploy.host import layout
from deploy.host.protocol import FactQuery, Facts
from deploy.provision import operations
from deploy.provision.apt_packages import Packages
from deploy.provision.apt_runner import AptRunner, check_bare
from deploy.provision.attempts import Round, reason_to_stop
from deploy.provision.connector import BoundedConnector, ConnectorTransport
from deploy.provision.differences import (
    ResourceStep,
    bootstrap_steps,
    fact_query,
    follow_up,
    next_steps,
    obstacle_of,
    refusal_of,
    steps_to,
)
from deploy.provision.orders import Orders
from deploy.provision.probe import read_facts
from deploy.provision.report import EventKind, ProvisionEvent, reboot_pairs
from deploy.provision.requirements import HostRefusal
from deploy.provision.worker_request import HostRequest, WorkerRequest
from deploy.transport.client import HostClient

_ROUNDS = 6  # packages, disk, what runs, the assertion, and two to spare
_LOGINS_MAX = 8  # sshd drops new logins when it has ten unfinished ones (MaxStartups)

Report = Callable[[ProvisionEvent], None]


class HostFailed(DeployError):
    """
    The host cannot be provisioned.

    Attributes:
        error: Name of the class of `deploy.errors` to report it as.
    """

    def __init__(self, host: str, error: str, why: str, fix: str) -> None:
        super().__init__(f"{host}: not provisioned", why=why, fix=fix, host=host)
        self.error = error


def run(
    request: WorkerRequest, report: Report, count: Callable[[str, int], None], orders: Orders
) -> None:
    """
    Change the hosts of *request*; each one ends with an event that is OK or FAILED.

    Args:
        count: Called at the end of each host with the number of its remote commands.
        orders: What stops the changes.
    """
    state = _state(request)
    logins = BoundedSemaphore(_LOGINS_MAX)
    with ctx_state.use(state):
        hosts = {host.name: host for host in state.inventory}
        tasks = [
            gevent.spawn(
                _run_host,
                state,
                hosts[one.name],
                one,
                request,
                report,
                count,
                logins,
                orders,
            )
            for one in request.hosts
        ]
        gevent.joinall(tasks, raise_error=True)


def _state(request: WorkerRequest) -> State:
    names = [(one.name, {"_sudo": True} if one.sudo else {}) for one in request.hosts]
    inventory = Inventory((names, {}))  # type: ignore[no-untyped-call]
    config = Config()  # type: ignore[no-untyped-call]
    # Without a prediction: an operation reads its own facts once, when it runs.
    state = State(inventory, config, check_for_changes=False)
    requests = {one.name: one for one in request.hosts}
    for host in inventory:
        host.connector = BoundedConnector(state, host, requests[host.name].host)
        state.activate_host(host)
    state.current_stage = StateStage.Prepare
    # From here on an operation runs at the line that calls it.
    state.is_executing = True
    return state


def _run_host(
    state: State,
    host: PyinfraHost,
    request: HostRequest,
    worker_request: WorkerRequest,
    report: Report,
    count: Callable[[str, int], None],
    logins: BoundedSemaphore,
    orders: Orders,
) -> None:
    connector = host.connector
    assert isinstance(connector, BoundedConnector)
    orders.watch(request.name, connector)
    try:
        with ctx_config.use(state.config.copy()), ctx_host.use(host):
            report(ProvisionEvent(request.name, EventKind.CONNECTING))
            with logins:
                host.connect(raise_exceptions=True, show_errors=False)
            facts = HostRun(connector, request, worker_request, report, orders).run()
        report(ProvisionEvent(request.name, EventKind.OK, reboot=reboot_pairs(facts)))
    except Exception as error:  # the other hosts go on
        if not isinstance(error, DeployError | PyinfraError | ConnectError):
            traceback.print_exc()
        report(_failed(request.name, connector, error))
    finally:
        count(request.name, connector.commands)
        connector.disconnect()


class StepNotes:
    """
    Reports what the change of one resource is at.
    """

    def __init__(self, host: str, resource: str, report: Report) -> None:
        self._host, self._resource, self._report = host, resource, report
        self._said = ""

    def wait(self, text: str) -> None:
        if text != self._said:
            self._said = text
            event = ProvisionEvent(
                self._host, EventKind.WAITING, resource=self._resource, change=text
            )
            self._report(event)

    def warn(self, about: str, why: str, fix: str) -> None:
        self._report(
            ProvisionEvent(self._host, EventKind.WARNING, resource=about, why=why, fix=fix)
        )


class HostRun:
    """
    The changes of one connected host.
    """

    def __init__(
        self,
        connector: BoundedConnector,
        request: HostRequest,
        worker_request: WorkerRequest,
        report: Report,
        orders: Orders,
    ) -> None:
        self._connector, self._request, self._report = connector, request, report
        self._orders = orders
        self._packed_program, self._deep = worker_request.packed_program, worker_request.deep
        self._transport = ConnectorTransport(connector)
        self._client = HostClient(self._transport, actor="provision", sudo=request.sudo)
        self._client.fence = request.fence

    def run(self) -> Facts:
        """
        Change the host until it has its resources; return its last facts.

        Raises:
            DeployError: It cannot be changed, or differs again after every change.
        """
        resources = self._request.resources
        # Read again: a release may have begun while other hosts were read.
        facts = self._read_facts()
        if facts is None:
            check_bare(resources, self._client, StepNotes(self._request.name, "", self._report))
            self._change(bootstrap_steps(resources), None)
            facts = self._read_facts() or self._restore_python()
        self._end_if(refusal_of(resources, self._without_own_lease(facts)))
        facts = self._change_until_same(facts)
        self._end_if(refusal_of(resources, self._without_own_lease(facts)))
        return facts

    def _change_until_same(self, facts: Facts) -> Facts:
        """
        Change what differs, round by round; return the facts with which nothing does.
        """
        resources = self._request.resources
        rounds: list[Round] = []
        while steps := next_steps(resources, facts):
            differing = steps_to(resources, facts)
            before = {step.resource.name: step.difference.change for step in differing}
            self._end_if(obstacle_of(resources, facts) or reason_to_stop(rounds, before, _ROUNDS))
            rounds.append(Round(frozenset(step.resource.name for step in steps), before))
            self._change(steps, facts)
            facts = self._read_facts() or facts
        return facts

    def _end_if(self, refusal: HostRefusal | None) -> None:
        if refusal is not None:
            raise HostFailed(self._request.name, refusal.error, refusal.why, refusal.fix)

    def _restore_python(self) -> Facts:
        """
        Install a Python again that the host has as a package, and that is not there.
        """
        what = "install python3 again"
        self._connector.doing = what
        self._connector.said = ""
        placed = self._request.resources.placed
        packages = next(resource for resource in placed if isinstance(resource, Packages))
        with self._orders.change(), self._failing_as(what):
            notes = StepNotes(self._request.name, packages.name, self._report)
            AptRunner(self._client, notes).change(packages.restored_python)
        facts = self._read_facts()
        if facts is None:
            raise HostFailed(
                self._request.name,
                "CommandFailed",
                f"the package python3 is installed, and {layout.PYTHON} does not run",
                f"on the host: ls -lL {layout.PYTHON}; apt-get install --reinstall python3-minimal",
            )
        return facts

    def _without_own_lease(self, facts: Facts) -> Facts:
        """
        Return *facts* as if the lease of this run were none: that of another run refuses the host.
        """
        is_own = facts.lease is not None and facts.lease.fence == self._request.fence
        return replace(facts, lease=None) if is_own else facts

    def _read_facts(self) -> Facts | None:
        self._report(ProvisionEvent(self._request.name, EventKind.LOOKING))
        self._connector.doing = "reading facts"
        resources = self._request.resources
        query = fact_query(resources, deep=self._deep)
        facts = self._ask(query)
        more = follow_up(resources, query, facts) if facts is not None else None
        return facts if more is None else self._ask(more)

    def _ask(self, query: FactQuery) -> Facts | None:
        return read_facts(
            self._transport,
            sudo=self._request.sudo,
            packed_program=self._packed_program,
            query=query,
            timeout_s=self._connector.target.ssh.command_timeout,
        )

    def _change(self, steps: tuple[ResourceStep, ...], facts: Facts | None) -> None:
        for number, step in enumerate(steps, 1):
            self._report_step(EventKind.CHANGING, step, number, len(steps))
            started_s = time.monotonic()
            what = f"{step.resource.name}: {step.difference.change}"
            self._connector.doing = what
            self._connector.said = ""
            with self._orders.change(), self._failing_as(what):
                notes = StepNotes(self._request.name, step.resource.name, self._report)
                operations.apply(step.resource, facts, self._client, notes)
            took_s = time.monotonic() - started_s
            self._report_step(EventKind.CHANGED, step, number, len(steps), took_s)

    def _report_step(
        self, kind: EventKind, step: ResourceStep, number: int, of: int, took_s: float | None = None
    ) -> None:
        self._report(
            ProvisionEvent(
                self._request.name,
                kind,
                resource=step.resource.name,
                change=step.difference.change,
                diff=step.difference.diff if kind is EventKind.CHANGED else None,
                done=number,
                of=of,
                took_s=took_s,
            )
        )

    @contextlib.contextmanager
    def _failing_as(self, what: str) -> Iterator[None]:
        """
        Raise pyinfra's errors as DeployErrors that name *what*.
        """
        try:
            yield
        except PyinfraError as error:
            if self._connector.lost is not None:
                raise self._connector.lost from error
            name = self._request.name
            raise CommandFailed(
                f"{name}: {what}",
                why=f"{what}: {says(name, self._connector.said or str(error))}",
                fix=f"correct that on the host, then: inv provision --limit {name}",
                host=name,
            ) from error
        if self._connector.lost is not None:
            raise self._connector.lost


def _failed(name: str, connector: BoundedConnector, error: Exception) -> ProvisionEvent:
    known = connector.lost or error
    if not isinstance(known, DeployError):
        known = CommandFailed(
            f"{name}: provisioning failed",
            why=f"{type(error).__name__}: {error}",
            fix=f"correct that on the host, then: inv provision --limit {name}",
        )
    kind = known.error if isinstance(known, HostFailed) else type(known).__name__
    return ProvisionEvent(name, EventKind.FAILED, why=known.why, fix=known.fix, resource=kind)
