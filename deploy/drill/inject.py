"""
Injects the faults of the drill into lab hosts, and repairs what they leave.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from deploy.drill.checkout import Operator
from deploy.drill.drill_lab import LEASE_S, DrillLab
from deploy.drill.faults import Fault
from deploy.errors import DeployError
from deploy.host.layout import HAPROXY_UNIT
from deploy.lab import lab

FREEZE_S = LEASE_S + 2.0  # longer than a lease, so that it has ended when the host runs again
CLOCK_JUMP_S = 3600
_FILLER = "filler"
_OFFSET_FILE = "run/slipway-drill-clock"
# Read by every Python of the host at its start; a .pth line that begins with "import" is executed.
_CLOCK_HOOK = "usr/lib/python3/dist-packages/slipway-drill-clock.pth"
_CLOCK_CODE = (
    "import time, os; time.time = (lambda real, path: lambda: real() + (float(open(path).read())"
    f" if os.path.exists(path) else 0.0))(time.time, '/{_OFFSET_FILE}')\n"
)


class Injector:
    """
    The faults of one lab.

    Args:
        second: Starts the second operator.
    """

    def __init__(
        self, on: DrillLab, second: Callable[[], Operator], progress: Callable[[str], None]
    ) -> None:
        self._lab, self._second, self._progress = on, second, progress
        self._config = on.config
        self._timer: threading.Timer | None = None

    def unavailable(self, fault: Fault) -> str | None:
        """
        Return why this machine cannot inject *fault*; None if it can.
        """
        if fault is Fault.DISK and not self._lab.has_small_disks:
            return "the machine cannot mount a file system for each host"
        return None

    def inject(self, fault: Fault, host: str, operator: Operator) -> None:
        """
        Inject *fault* on *host*, while the operator stands still; it goes on afterwards.
        """
        if not fault.ends_operator:
            operator.send(signal.SIGSTOP)
        match fault:
            case Fault.SIGKILL:
                operator.send(signal.SIGKILL)
            case Fault.SIGTERM:
                operator.send(signal.SIGTERM)
            case Fault.SECOND:
                operator.send(signal.SIGCONT)
                self._second().wait(90.0)
            case Fault.CUT:
                lab.cut(host, only_ssh=True, config=self._config)
            case Fault.REBOOT:
                self._lab.unwatch(host)
                self._inside(host, "systemctl", "reboot", "--no-block")
            case Fault.CRASH:
                self._lab.unwatch(host)
                lab.crash(host, progress=self._progress, config=self._config)
                operator.send(signal.SIGCONT)
                lab.start(host, progress=self._progress, config=self._config)
            case Fault.FREEZE:
                lab.freeze(host, config=self._config)
                self._timer = threading.Timer(FREEZE_S, self._thaw, (host,))
                self._timer.start()
            case Fault.DISK:
                fill(self._config.host_dir(host) / _FILLER)
            case Fault.HAPROXY:
                self._inside(host, "systemctl", "kill", "--signal=KILL", HAPROXY_UNIT)
            case Fault.CLOCK:
                (self._config.root(host) / _OFFSET_FILE).write_text(str(CLOCK_JUMP_S))
        operator.send(signal.SIGCONT)

    def prepare(self) -> None:
        """
        Make the clock of each host's Python movable: the hosts share the clock of this machine.
        """
        for host in self._lab.names:
            hook = self._config.root(host) / _CLOCK_HOOK
            hook.write_text(_CLOCK_CODE)
            hook.chmod(0o644)

    def repair(self) -> None:
        """
        End what a fault left on any host.
        """
        if self._timer is not None:
            self._timer.join()
            self._timer = None
        for host in self._lab.names:
            lab.heal(host, config=self._config)
            (self._config.host_dir(host) / _FILLER).unlink(missing_ok=True)
            (self._config.root(host) / _OFFSET_FILE).unlink(missing_ok=True)

    def _thaw(self, host: str) -> None:
        with contextlib.suppress(DeployError):
            lab.thaw(host, config=self._config)

    def _inside(self, host: str, *argv: str) -> None:
        lab.inside(host, argv, timeout_s=10.0, config=self._config)


def fill(path: Path) -> None:
    """
    Allocate all free space of the file system of *path*.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        size, step = 0, 1 << 30
        while step >= 4096:
            try:
                os.posix_fallocate(descriptor, size, step)
                size += step
            except OSError:
                step //= 2
    finally:
        os.close(descriptor)
