"""
Collects the events of a provisioning run into its report.
"""

from collections.abc import Callable, Mapping, Sequence

from deploy.errors import DeployError
from deploy.provision.report import (
    Change,
    EventKind,
    Failure,
    ProvisionEvent,
    ProvisionReport,
    RebootNeed,
)


class ReportBuilder:
    """
    Args:
        hosts: Names of all hosts of the run, in the order of the report.
        progress: Called with every event.
    """

    def __init__(self, hosts: Sequence[str], progress: Callable[[ProvisionEvent], None]) -> None:
        self._hosts, self._progress = list(hosts), progress
        self._ok: list[str] = []
        self._changes: list[Change] = []
        self._failed: list[Failure] = []
        self._reboots: list[RebootNeed] = []
        self._commands: dict[str, int] = {}
        self._latest: dict[str, str] = {}  # what each host was last reported to be at

    def add(self, event: ProvisionEvent) -> None:
        self._latest[event.host] = event.resource or event.kind.value
        if event.kind is EventKind.OK:
            self._ok.append(event.host)
            if event.reboot:
                self._reboots.append(RebootNeed(event.host, event.reboot))
        elif event.kind is EventKind.FAILED:
            why, fix = event.why or "", event.fix or ""
            self._failed.append(Failure(event.host, why, fix, event.resource or ""))
        elif event.kind in (EventKind.CHANGED, EventKind.WOULD_CHANGE):
            self._changes.append(
                Change(event.host, event.resource or "", event.change or "", event.diff)
            )
        self._progress(event)

    def add_commands(self, commands: Mapping[str, int]) -> None:
        """
        Count *commands*, by host, that were sent.
        """
        for host, count in commands.items():
            self._commands[host] = self._commands.get(host, 0) + count

    def fail_rest(self, why: str, fix: str, kind: type[DeployError]) -> None:
        """
        Fail every host that is neither OK nor failed.
        """
        ended = {*self._ok, *(failure.host for failure in self._failed)}
        for host in self._hosts:
            if host not in ended:
                latest = self._latest.get(host, "starting")
                self._failed.append(Failure(host, f"{why}, at: {latest}", fix, kind.__name__))

    def report(self, check: bool, took_s: float) -> ProvisionReport:
        return ProvisionReport(
            check=check,
            ok=tuple(sorted(self._ok, key=self._hosts.index)),
            changes=tuple(sorted(self._changes, key=lambda c: self._hosts.index(c.host))),
            failed=tuple(sorted(self._failed, key=lambda f: self._hosts.index(f.host))),
            commands=dict(sorted(self._commands.items())),
            took_s=took_s,
            reboots=tuple(sorted(self._reboots, key=lambda n: self._hosts.index(n.host))),
        )
