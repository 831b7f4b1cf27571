"""
Units of systemd, through systemctl.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from deploy.host.protocol import ErrorKind, HostError
from deploy.host.reserve import give_back
from deploy.host.system import System
from deploy.host.text import one_line

_PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,Result,NRestarts,ExecMainStatus,Job,UnitFileState,"
    "InvocationID,TasksCurrent"
)
_TIMEOUT_S = 10.0
_LOG_CHARS = 4000  # of the log of a slot, whose lines may have any length
_FULL = "No space left on device"  # Source: errno(3), ENOSPC, in the locale C


class Unit(NamedTuple):
    """
    One unit.

    Attributes:
        active: ActiveState: active, activating, deactivating, inactive, failed.
        restarts: Number of automatic restarts.
        result: success, or the cause of its end: exit-code, signal, timeout, watchdog, oom-kill.
        has_job: A start or stop is queued.
        invocation: Id of its latest start, which its log lines have; empty before the first.
        tasks: Number of processes and threads in its control group.
    """

    name: str
    load: str
    active: str
    sub: str
    result: str
    restarts: int
    exit_status: int
    has_job: bool
    is_enabled: bool
    invocation: str
    tasks: int = 0

    @property
    def is_masked(self) -> bool:
        return self.load == "masked"

    @property
    def runs(self) -> bool:
        return self.active in {"active", "activating", "reloading"}

    @property
    def is_stopped(self) -> bool:
        return self.active in {"inactive", "failed"}

    @property
    def has_ended(self) -> bool:
        """
        Return whether it is stopped, no job changes that, and no process of it is left.
        """
        return self.is_stopped and not self.has_job and self.tasks == 0


def parse_show(text: str) -> dict[str, Unit]:
    """
    Return the units in the output of `systemctl show`, by name.
    """
    units = {}
    for block in text.strip().split("\n\n"):
        pairs = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in pairs:
            units[pairs["Id"]] = Unit(
                name=pairs["Id"],
                load=pairs.get("LoadState", ""),
                active=pairs.get("ActiveState", "unknown"),
                sub=pairs.get("SubState", ""),
                result=pairs.get("Result", ""),
                restarts=_number(pairs.get("NRestarts")),
                exit_status=_number(pairs.get("ExecMainStatus")),
                has_job=_number(pairs.get("Job")) > 0,
                is_enabled=pairs.get("UnitFileState") == "enabled",
                invocation=pairs.get("InvocationID", ""),
                tasks=_tasks(pairs.get("TasksCurrent")),
            )
    return units


def show(system: System, names: Sequence[str]) -> dict[str, Unit]:
    """
    Return the units called *names*, by name.
    """
    text = _systemctl(system, "show", f"--property={_PROPERTIES}", *names)
    units = parse_show(text)
    for name in names:
        if name not in units:
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                f"systemd reports nothing about {name}",
                one_line(text) or "the output of systemctl show is empty",
                "inv provision",
            )
    return units


def enable(system: System, name: str) -> None:
    """
    Start *name* at boot.
    """
    _systemctl(system, "enable", "--quiet", name)


def disable(system: System, name: str) -> None:
    _systemctl(system, "disable", "--quiet", name)


def begin_start(system: System, name: str) -> None:
    """
    Queue the start of *name* after resetting its failures; return at once.
    """
    # This fails for a unit that systemd has not loaded yet, which has nothing to reset.
    system.run(["systemctl", "reset-failed", name], timeout_s=_TIMEOUT_S)
    _systemctl(system, "start", "--no-block", name)


def restart(system: System, name: str) -> None:
    """
    Queue a restart of *name* after resetting its failures; it is started if it does not run.
    """
    system.run(["systemctl", "reset-failed", name], timeout_s=_TIMEOUT_S)
    _systemctl(system, "restart", "--no-block", name)


def check_startable(found: Unit) -> None:
    """
    Refuse a unit that systemd does not have, or was told never to start.

    Raises:
        HostError: It is one of them.
    """
    if found.is_masked:
        raise HostError(
            ErrorKind.PRECONDITION,
            f"{found.name} is masked",
            "LoadState=masked: systemd was told never to start it",
            f"on the host: {unmask_command(found.name)}",
        )
    if found.load == "not-found":
        raise HostError(
            ErrorKind.PRECONDITION,
            f"systemd has no unit {found.name}",
            "LoadState=not-found",
            "inv provision",
        )


def unmask_command(*names: str) -> str:
    """
    Return the command with which a person takes back `systemctl mask`, of both kinds.

    Without --runtime, a mask below /run stays, and the command does not say so.
    """
    listed = " ".join(names)
    return f"systemctl unmask {listed}; systemctl unmask --runtime {listed}"


def set_cpu_weight(system: System, name: str, weight: int) -> None:
    """
    Set the CPU weight of *name* until the next boot.

    Source: systemd.resource-control(5), CPUWeight=: 1 to 10000, default 100.
    """
    _systemctl(system, "set-property", "--runtime", name, f"CPUWeight={weight}")


def begin_stop(system: System, name: str) -> None:
    """
    Queue the stop of *name*; return at once.
    """
    _systemctl(system, "stop", "--no-block", name)


def kill(system: System, name: str) -> None:
    """
    Send SIGKILL to every process of *name*; no error if it has none.

    Nothing that a service tells systemd delays this, unlike the timeouts of its stop.
    Source: sd_notify(3), EXTEND_TIMEOUT_USEC=; systemctl(1), kill: all processes by default.
    """
    system.run(["systemctl", "kill", "--signal=SIGKILL", name], timeout_s=_TIMEOUT_S)


def unmount(system: System, name: str) -> None:
    """
    Stop the mount unit *name*, and return when it is unmounted; its next user mounts it empty.
    """
    _systemctl(system, "stop", name)


def last_log(system: System, name: str, since_s: float, lines: int = 10) -> str:
    """
    Return the last *lines* of the log of *name* since its latest start, joined into one line.

    If it logged nothing, return systemd's messages about it since *since_s*, seconds since 1970.
    """
    invocation = show(system, [name])[name].invocation
    searches = [["--unit", name, "--since", f"@{int(since_s)}"]]
    if invocation:
        searches.insert(0, [f"_SYSTEMD_INVOCATION_ID={invocation}"])
    for about in searches:
        options = ["--quiet", "--no-pager", "--output", "cat", "--lines", str(lines)]
        try:
            completed = system.run(["journalctl", *options, *about], timeout_s=_TIMEOUT_S)
        except HostError as error:
            return f"its log cannot be read: {error.why}"
        text = one_line(completed.stdout, last=lines)[-_LOG_CHARS:]
        if text:
            return text
    return "it logged nothing"


def _systemctl(system: System, *words: str) -> str:
    completed = system.run(["systemctl", *words], timeout_s=_TIMEOUT_S)
    # `enable` writes a link below /etc.
    while completed.returncode != 0 and _FULL in completed.stderr and give_back(system):
        completed = system.run(["systemctl", *words], timeout_s=_TIMEOUT_S)
    if completed.returncode != 0:
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            f"systemctl {' '.join(words)} failed",
            one_line(completed.stderr or completed.stdout) or f"exit status {completed.returncode}",
            "systemctl status on the host",
        )
    return completed.stdout


def _tasks(text: str | None) -> int:
    # "[not set]", or the largest number of 64 bits, without a control group.
    count = _number(text)
    return 0 if count >= 2**63 else count


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
