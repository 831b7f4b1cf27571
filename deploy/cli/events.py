"""
Events of a provisioning run or a release, as lines, and what each of them leaves to wait for.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from deploy.cli.progress import Progress
from deploy.cli.report import event_line, failure_text
from deploy.cli.terminal import print_change
from deploy.foreign_text import visible
from deploy.inventory.schema import Fleet
from deploy.provision.report import HERE, EventKind, Failure, ProvisionEvent, ProvisionReport
from deploy.release.events import ReleaseEvent
from deploy.release.plan import Step

_MEASURE_S = 10.0  # a canary's verdict comes with the measurement after its time is up
_LIMIT = 4000  # characters of an event's line
_NOT_SHOWN = ("action.started", "action.ended")  # what they do has events of its own
_AWAITED = {
    Step.REVIVE: "what serves to run again",
    Step.STAGE: "the bundle to be there and verified",
    Step.ARM: "its own way back to be armed",
    Step.ARM_BACK: "its own way back to be armed",
    Step.CLEAR: "the slot to be cleared",
    Step.START: "the start of the slot",
    Step.GOLDEN: "the golden answers",
    Step.CANARY: "its share of the traffic",
    Step.JUDGE: "the verdict on the canary",
    Step.PROMOTE: "all the traffic",
    Step.BAKE: "the verdict on all hosts",
    Step.CHECK: "an answer through its public port",
    Step.CONFIRM: "the confirmation",
    Step.RETIRE: "the other slot to drain",
    Step.TAKE_BACK: "the way back to what served before",
    Step.HOLD: "the old release to have all the traffic",
}
_CONCLUSIONS = ("release.promoted", "release.reverted", "release.paused", "release.rolled_back")


class ProvisionProgress:
    """
    Prints every change once, as it is made, and every failure once.

    Changes are the result, so they go to standard output; where that is a JSON document, to
    standard error.
    """

    def __init__(self, progress: Progress, hosts: Iterable[str], *, as_json: bool) -> None:
        self._progress, self._as_json = progress, as_json
        self._failed: set[str] = set()
        progress.wait_for("the connection", hosts)

    def __call__(self, event: ProvisionEvent) -> None:
        progress, hosts = self._progress, (event.host,)
        match event.kind:
            case EventKind.FETCHING:
                progress.write(visible(str(event), limit=_LIMIT))
                progress.wait_for("the wheels", hosts)  # its host is this machine
            case EventKind.CONNECTING | EventKind.LOOKING:
                what = "the connection" if event.kind is EventKind.CONNECTING else "its state"
                progress.end_wait(HERE)
                progress.wait_for(what, hosts)
                progress.write(visible(str(event), limit=_LIMIT))
            case EventKind.CHANGING:
                counted = f" [{event.done}/{event.of}]" if event.of else ""
                progress.wait_for(f"{event.resource}: {event.change}{counted}", hosts)
            case EventKind.CHANGED | EventKind.WOULD_CHANGE:
                progress.write(
                    visible(str(event), limit=_LIMIT), None if self._as_json else print_change
                )
                progress.wait_for("the next step", hosts)
            case EventKind.FAILED:
                progress.end_wait(event.host)
                self._failed.add(event.host)
                progress.write(failure_text(event.host, event.why or "", event.fix or ""))
            case EventKind.REBOOTING:
                progress.wait_for("its reboot", hosts)
                progress.write(visible(str(event), limit=_LIMIT))
            case EventKind.OK | EventKind.REBOOTED:
                progress.end_wait(event.host)
                progress.write(visible(str(event), limit=_LIMIT))

    def print_remaining_failures(self, report: ProvisionReport) -> None:
        """
        Print the failures that no event told: hosts that the run gave up.
        """
        for failure in self._remaining(report):
            self._progress.write(failure_text(failure.host, failure.why, failure.fix))

    def _remaining(self, report: ProvisionReport) -> list[Failure]:
        return [failure for failure in report.failed if failure.host not in self._failed]


class ReleaseProgress:
    """
    Prints the timeline of a release or rollback.

    How it ended is the result, and is left to it.
    """

    def __init__(
        self, progress: Progress, fleet: Fleet, hosts: Iterable[str], *, as_json: bool
    ) -> None:
        self._progress, self._hosts, self._as_json = progress, tuple(hosts), as_json
        policy = fleet.release
        self._canary_s = policy.canary.give_up_after + _MEASURE_S
        progress.wait_for("the leases", self._hosts)

    @property
    def printed(self) -> tuple[str, ...]:
        return self._progress.printed

    def __call__(self, event: ReleaseEvent) -> None:
        self._follow(event)
        if event.name in _NOT_SHOWN:
            return
        if self._as_json:
            self._progress(event_line(event))
        elif event.name not in _CONCLUSIONS:
            is_repeated = event.name == "release.stopped" and self._has_printed(event.text)
            self._progress(event_line(replace(event, text="") if is_repeated else event))

    def _has_printed(self, text: str) -> bool:
        return any(visible(text) in line for line in self.printed)

    def _follow(self, event: ReleaseEvent) -> None:
        progress = self._progress
        hosts = (event.host,) if event.host else self._hosts
        match event.name:
            case "lease.acquired":
                progress.end_wait()
                progress.wait_for("the state of the hosts")
            case "action.started":
                progress.end_wait("")
                step = Step(event.data["step"])
                limit_s = event.data["deadline_s"] if event.host else self._canary_s
                progress.wait_for(_AWAITED[step], hosts, limit_s)
            case "action.ended":
                progress.end_wait(*hosts)
                if not progress.is_waiting:
                    progress.wait_for("the state of the hosts")
            case name if name in _CONCLUSIONS:
                progress.end_wait()


@contextmanager
def provisioning(hosts: Iterable[str], *, as_json: bool) -> Iterator[ProvisionProgress]:
    """
    Yield where a provisioning run of *hosts* reports its events.
    """
    with Progress().beating() as progress:
        yield ProvisionProgress(progress, hosts, as_json=as_json)


@contextmanager
def releasing(fleet: Fleet, hosts: Iterable[str], *, as_json: bool) -> Iterator[ReleaseProgress]:
    """
    Yield where a release or a rollback of *hosts* reports its events.
    """
    with Progress().beating() as progress:
        yield ReleaseProgress(progress, fleet, hosts, as_json=as_json)
