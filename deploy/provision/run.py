"""
`inv provision`: compares every host with its specification, and has a worker change what differs.
"""

import time
from collections.abc import Callable, Mapping

from deploy.bundle.host_program import build_host_program
from deploy.clock import SystemClock
from deploy.errors import DeployError, TransportError
from deploy.host.protocol import Facts
from deploy.inventory.schema import Fleet, Host
from deploy.leases.keeper import LeaseClient, LeaseKeeper
from deploy.leases.owner import owner
from deploy.leases.signals import signals_interrupt
from deploy.provision.apt_runner import DRIVER_TRANSACTION_S, TRANSACTION_S
from deploy.provision.differences import (
    bootstrap_steps,
    fact_query,
    follow_up,
    installs_driver,
    needs_environment,
    refusal_of,
    steps_to,
)
from deploy.provision.lease_clients import PURPOSE, lease_clients
from deploy.provision.probe import pack_program
from deploy.provision.report import (
    HERE,
    EventKind,
    ProvisionEvent,
    ProvisionReport,
    reboot_pairs,
)
from deploy.provision.report_builder import ReportBuilder
from deploy.provision.resource_set import ResourceSet
from deploy.provision.spec import check_inputs
from deploy.provision.survey import Survey, unreadable

# Longer than that of a release, for which the host's own way back waits: a renewal may come late
# from a busy machine, or beside the wheels that are sent over the same link.
LEASE_S = 120.0
_SLACK_S = 600.0  # for what comes beside the longest transaction of packages
# For all hosts together; a host that has not ended by then has failed.
DEADLINE_S = TRANSACTION_S + _SLACK_S
DRIVER_S = DRIVER_TRANSACTION_S + _SLACK_S  # more, where a driver is installed

Progress = Callable[[ProvisionEvent], None]


def provision(
    fleet: Fleet,
    *,
    check: bool = False,
    deep: bool = False,
    progress: Progress,
    env: Mapping[str, str],
    deadline_s: float = DEADLINE_S,
    lease_s: float = LEASE_S,
) -> ProvisionReport:
    """
    Bring every host of *fleet* to its pinned state, or with *check* report what that would change.

    Failures of single hosts are in the report; the other hosts go on.

    Args:
        deep: Compare every file of the Python environments by its hash.
        env: Environment variables; secrets of the fleet may be among them.
        deadline_s: Longest time that the hosts get, in seconds.
        lease_s: Time to live of the leases; what a killed run keeps others waiting.

    Raises:
        InventoryError: A row, secret or file of the fleet is missing; no host was asked.
        CommandFailed: The wheels that a host needs could not be fetched; no host was changed.
        UsageError: The user of this process has no name, so no lease can be taken; no host was
            changed.
    """
    started_s = time.monotonic()
    builder = ReportBuilder([host.name for host in fleet.hosts], progress)
    check_inputs(fleet, env)
    survey = Survey(fleet.hosts, builder.add)  # connects while the specifications are made
    try:
        # Slow to import (templates), so imported while the hosts answer.
        from deploy.provision.fleet_specs import resource_sets, with_wheels

        host_program = build_host_program()
        wanted = resource_sets(fleet, host_program, env, is_check=check)
        packed_program = pack_program()
        end_s = time.monotonic() + deadline_s
        queries = {name: fact_query(resources, deep=deep) for name, resources in wanted.items()}
        differing: dict[str, Facts | None] = {}
        for name, answer in survey.ask(
            packed_program,
            queries,
            end_s,
            lambda name, facts: follow_up(wanted[name], queries[name], facts),
        ):
            if isinstance(answer, DeployError):
                builder.add(_failed(name, answer))
            elif _differs_safely(name, wanted[name], answer, check, builder.add):
                differing[name] = answer
        hosts = [host for host in fleet.hosts if host.name in differing]
        lacking = [one for one in hosts if needs_environment(wanted[one.name], differing[one.name])]
        holder = owner() if hosts else ""  # before anything is fetched
        if lacking:
            started_fetch_s = time.monotonic()
            wanted = with_wheels(fleet, wanted, lacking, lambda text: progress(_fetching(text)))
            end_s += time.monotonic() - started_fetch_s  # the deadline is one of the hosts
            # The room that an environment takes is known now; a lease would leave a file there.
            hosts = [
                one for one in hosts
                if not _is_refused(one.name, wanted[one.name], differing[one.name], builder.add)
            ]  # fmt: skip
        if any(installs_driver(wanted[host.name], differing[host.name]) for host in hosts):
            end_s += DRIVER_S
        if hosts:
            clients = lease_clients(hosts, survey, differing, packed_program)
            _change(hosts, clients, wanted, packed_program, deep, builder, end_s, holder, lease_s)
        builder.add_commands(survey.commands)
    finally:
        survey.close()
    fix = "check the load of the host, then: inv provision"
    builder.fail_rest("the run's deadline passed", fix, TransportError)
    return builder.report(check, time.monotonic() - started_s)


def _differs_safely(
    name: str, resources: ResourceSet, facts: Facts | None, check: bool, report: Progress
) -> bool:
    """
    Return `_differs`; facts that it cannot compare are an error of their host alone.
    """
    try:
        return _differs(name, resources, facts, check, report)
    except Exception as error:
        report(_failed(name, unreadable(name, error)))
        return False


def _differs(
    name: str,
    resources: ResourceSet,
    facts: Facts | None,
    check: bool,
    report: Progress,
) -> bool:
    """
    Report how the host compares; return True if it is to be changed.
    """
    steps = bootstrap_steps(resources) if facts is None else steps_to(resources, facts)
    if _is_refused(name, resources, facts, report):
        return False
    if steps and not check:
        return True
    for number, step in enumerate(steps, 1):
        report(
            ProvisionEvent(
                name,
                EventKind.WOULD_CHANGE,
                resource=step.resource.name,
                change=step.difference.change,
                diff=step.difference.diff,
                done=number,
                of=len(steps),
            )
        )
    report(ProvisionEvent(name, EventKind.OK, reboot=reboot_pairs(facts)))
    return False


def _is_refused(name: str, resources: ResourceSet, facts: Facts | None, report: Progress) -> bool:
    """
    Report why the host must not be changed; return False if it may be.
    """
    refusal = refusal_of(resources, facts) if facts is not None else None
    if refusal is None:
        return False
    report(
        ProvisionEvent(
            name, EventKind.FAILED, why=refusal.why, fix=refusal.fix, resource=refusal.error
        )
    )
    return True


def _change(
    hosts: list[Host],
    clients: Mapping[str, LeaseClient],
    wanted: Mapping[str, ResourceSet],
    packed_program: bytes,
    deep: bool,
    builder: ReportBuilder,
    end_s: float,
    holder: str,
    lease_s: float,
) -> None:
    """
    Change *hosts* under their leases; one that another operator holds is a failed host.
    """
    from deploy.provision.supervise import WorkerInput, run_worker
    from deploy.provision.worker_request import HostRequest, WorkerRequest

    orders = WorkerInput()
    keeper = LeaseKeeper(
        clients,
        owner=holder,
        release=PURPOSE,
        ttl_s=lease_s,
        clock=SystemClock(),
        needs_settled=True,
        on_loss=orders.stop,
    )
    with signals_interrupt():
        try:
            refused = keeper.take_all(clients)
            for name, error in refused.items():
                builder.add(_failed(name, error))
            requests = [
                HostRequest.of(host, wanted[host.name], clients[host.name].fence or 0)
                for host in hosts
                if host.name not in refused
            ]
            if requests:
                request = WorkerRequest(
                    packed_program=packed_program, deep=deep, hosts=tuple(requests)
                )
                run_worker(request, builder, end_s, orders)
        finally:
            keeper.release_all()


def _failed(name: str, error: DeployError) -> ProvisionEvent:
    kind = type(error).__name__
    return ProvisionEvent(name, EventKind.FAILED, why=error.why, fix=error.fix, resource=kind)


def _fetching(text: str) -> ProvisionEvent:
    return ProvisionEvent(HERE, EventKind.FETCHING, change=text)
