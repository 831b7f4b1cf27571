"""
Reboots of the hosts of a fleet, over their real connections.
"""

import os
from collections.abc import Callable
from dataclasses import replace

from deploy.bundle.host_program import build_host_program
from deploy.clock import SystemClock
from deploy.errors import PreconditionError, UsageError
from deploy.inventory.schema import Fleet
from deploy.leases.keeper import LeaseKeeper
from deploy.leases.owner import owner
from deploy.leases.signals import signals_interrupt
from deploy.provision.fleet_specs import resource_sets
from deploy.provision.reboots import PURPOSE, RebootOutcome, RebootPolicy, Reboots
from deploy.provision.report import ProvisionEvent, ProvisionReport, RebootNeed
from deploy.provision.waves import parse_waves
from deploy.provision.window import parse_window
from deploy.wiring.hosts import connect


def reboot_policy(
    fleet: Fleet, waves: str, window: str, *, interrupts: bool, check: bool
) -> RebootPolicy:
    """
    Return how hosts are rebooted, from the flags of `inv provision`.

    Raises:
        UsageError: A flag is wrong, or has no meaning with the others.
        PreconditionError: The window is closed now.
    """
    if not waves:
        raise UsageError(
            f"--{'window' if window else 'interrupt'}: without --waves nothing is rebooted",
            why="--waves says how many hosts may be away at once",
            fix="inv provision --waves 1",
        )
    if check:
        raise UsageError(
            "--waves: --check changes nothing, so it reboots nothing",
            why="both were given",
            fix="inv provision --check shows which hosts need a reboot",
        )
    policy = RebootPolicy(
        waves=parse_waves(waves),
        window=parse_window(window) if window else None,
        interrupts=interrupts,
        drain_s=fleet.release.drain_timeout,
        start_s=fleet.service.start_timeout,
        facts_s=max(host.ssh.command_timeout for host in fleet.hosts),
    )
    if policy.window is not None and not policy.window.is_open(SystemClock().utc()):
        raise PreconditionError(
            "the window for reboots is closed",
            why=f"it is {policy.window}; no host was connected to",
            fix=f"run the same command from {policy.window.begin:%H:%M} on",
        )
    return policy


def reboot_in_waves(
    fleet: Fleet, policy: RebootPolicy, report: Callable[[ProvisionEvent], None]
) -> RebootOutcome:
    """
    Reboot the hosts of *fleet* that need it, as *policy* says.
    """
    wanted = resource_sets(fleet, build_host_program(), os.environ, is_check=True)
    with connect(fleet) as on, signals_interrupt():
        clock = SystemClock()
        keeper = LeaseKeeper(
            on.clients,
            owner=owner(),
            release=PURPOSE,
            ttl_s=fleet.release.lease_ttl,
            clock=clock,
            needs_settled=True,
        )
        chosen = [host.name for host in fleet.hosts]
        return Reboots(on.clients, chosen, keeper, wanted, policy, clock, report).run()


def with_reboots(report: ProvisionReport, outcome: RebootOutcome) -> ProvisionReport:
    """
    Return *report* with what was rebooted, and what was not.
    """
    before = {need.host: need.reasons for need in report.reboots}
    left = {
        host: tuple((reason.cause, reason.observed) for reason in reasons)
        for host, reasons in outcome.left.items()
    }
    needs = [RebootNeed(host, before.get(host, ()), rebooted=True) for host in outcome.rebooted]
    needs += [RebootNeed(host, reasons) for host, reasons in left.items()]
    return replace(report, reboots=tuple(needs))
