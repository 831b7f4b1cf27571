"""
The only way to run a program on what came in a bundle: as the build user, in a sandbox.

A wheel may run code wherever its environment's Python starts (`.pth` files, `sitecustomize`) and
where it is imported, so root never does either.  The sandbox has no network, no capability, no
access to secrets, sockets and state of the host, and writes to the directories given only; when
it ends, the kernel has ended every process in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.host import layout as paths
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.system import ProgramResult, System

UNIT = "slipway-build.service"
_STOP_S = 20.0
_JOURNAL_S = 10.0
_MARGIN_S = 15.0  # for systemd, beyond the time limit of the program

# Source: systemd.exec(5), systemd.resource-control(5), systemd.kill(5).
PROPERTIES = (
    # Processes.
    "KillMode=control-group",
    "KillSignal=SIGKILL",
    "TimeoutStopSec=5",
    "MemorySwapMax=0",
    "OOMScoreAdjust=1000",  # where memory ends, the build ends and not a slot
    "TasksMax=4096",  # uv starts threads for each processor
    "LimitCORE=0",
    "LimitFSIZE=16G",
    "CPUWeight=20",  # the serving slot has 100
    "IOWeight=20",
    # Rights.
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "RestrictSUIDSGID=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "LockPersonality=yes",
    "KeyringMode=private",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
    "SystemCallFilter=sched_setaffinity",
    "SystemCallErrorNumber=EPERM",
    # Network, and sockets of the host: nothing reaches any.  io_uring would do it without a system
    # call of its own.
    "PrivateNetwork=yes",
    "IPAddressDeny=any",
    "RestrictAddressFamilies=AF_UNIX",
    "SystemCallFilter=~io_uring_setup io_uring_enter io_uring_register",
    "PrivateIPC=yes",
    "RemoveIPC=yes",
    # Files.
    "UMask=0077",
    "PrivateMounts=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "ProtectProc=invisible",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectControlGroups=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    f"InaccessiblePaths=-{paths.ETC} -{paths.STATE} -{paths.STATE}-runtime -/var/log -/var/spool",
    # All users may write to them, or they have sockets of the host.
    f"TemporaryFileSystem={paths.OPT}:ro /run:ro /dev/shm",
    f"BindReadOnlyPaths=-{paths.PYTHONS}",
)
_GPUS = (
    # In place of PrivateDevices: the GPUs and the usual ones, as a slot with a GPU sees them.
    "DevicePolicy=closed",
    "DeviceAllow=char-nvidia* rw",
    "MemoryMax=16G",
    # libcuda listens on an abstract socket of its network namespace (@cuda-uvmfd-...), and does not
    # start where it cannot: error 304.  It connects to none and sends nothing.
    "SystemCallFilter=~connect sendto sendmsg sendmmsg",
)
_WITHOUT_GPUS = (
    "PrivateDevices=yes",
    "DevicePolicy=closed",
    "MemoryMax=4G",
    "SystemCallFilter=~socket connect bind listen",  # only socketpair(2) makes any
)
ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 - its own, which ends with it
    "LC_ALL": "C",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    # A library's thread pool for each processor is of no use here.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def sandboxed(
    system: System,
    argv: Sequence[str],
    *,
    timeout_s: float,
    writable: Sequence[Path],
    readable: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    sees_gpus: bool = False,
) -> ProgramResult:
    """
    Run *argv* in the sandbox and return its output; no process of it is left.

    Args:
        writable: Directories of the build user that it sees and may write.
        readable: Files and directories below /opt/slipway that it sees.
        sees_gpus: It may use the NVIDIA GPUs of the host.

    Raises:
        HostError: systemd could not run it, a process of the build user could not be ended, or
            memory ended before the program did.
    """
    program = argv[0]
    argv = command(
        argv,
        timeout_s=timeout_s,
        writable=writable,
        readable=readable,
        env=env,
        sees_gpus=sees_gpus,
    )
    end_all(system)
    began_s = system.wall_s()
    try:
        result = system.run(argv, timeout_s=timeout_s + _MARGIN_S)
    finally:
        end_all(system)
    if result.returncode != 0 and _memory_ended(system, began_s):
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            "memory ended while a bundle or an environment was built",
            f"the kernel has killed {program} in {UNIT} (oom-kill), which may take "
            f"{'16' if sees_gpus else '4'} GiB",
            "free -m and journalctl -k on the host; run it again where memory is free",
        )
    return result


def command(
    argv: Sequence[str],
    *,
    timeout_s: float,
    writable: Sequence[Path] = (),
    readable: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    reads_as: str | None = None,
    sees_gpus: bool = False,
) -> list[str]:
    """
    Return the command line that runs *argv* in the sandbox.

    Args:
        reads_as: Run it as a user of its own, which exists as long as it runs, with the rights of
            this group; None: as the build user.
        sees_gpus: It may use the NVIDIA GPUs of the host.
    """
    devices = _GPUS if sees_gpus else _WITHOUT_GPUS
    # systemd expands variables in the arguments of a service.
    assert not any("$" in word or "%" in word for word in argv), argv
    return [
        *("systemd-run", "--quiet", "--pipe", "--wait", "--collect", "--service-type=exec"),
        *(
            (f"--unit={UNIT}", f"--uid={paths.BUILD_USER}", f"--gid={paths.BUILD_USER}")
            if reads_as is None
            else ("--property=DynamicUser=yes", f"--property=SupplementaryGroups={reads_as}")
        ),
        "--working-directory=/",
        *(f"--property={each}" for each in (*PROPERTIES, *devices)),
        f"--property=RuntimeMaxSec={timeout_s:g}",
        *(f"--property=BindPaths={path}" for path in writable),
        *(f"--property=BindReadOnlyPaths={path}" for path in readable),
        *(f"--setenv={name}={value}" for name, value in {**ENVIRONMENT, **(env or {})}.items()),
        "--",
        *argv,
    ]


def _memory_ended(system: System, began_s: float) -> bool:
    """
    Return whether systemd says that the kernel has killed what was run since *began_s*.

    The program itself says nothing of it, or what it was at, and systemd-run the exit status of any
    failure.
    """
    argv = [
        "journalctl", "--quiet", "--no-pager", "--output", "cat", "--lines", "50",
        "--unit", UNIT, "--since", f"@{int(began_s)}",
    ]  # fmt: skip
    try:
        said = system.run(argv, timeout_s=_JOURNAL_S).stdout
    except HostError:
        return False
    # Source: systemd, src/core/service.c: "Failed with result 'oom-kill'."
    return "'oom-kill'" in said


def end_all(system: System) -> None:
    """
    End what an earlier run left, and make sure that no process of the build user runs.

    Raises:
        HostError: One does: what it wrote cannot be trusted to stay as it is.
    """
    system.run(["systemctl", "stop", UNIT], timeout_s=_STOP_S)
    left = system.processes_of(system.account(paths.BUILD_USER).uid)
    if left:
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            f"processes of {paths.BUILD_USER} are running outside of the sandbox",
            f"process {', '.join(map(str, left[:5]))}",
            f"find out what started them, then pkill -KILL -u {paths.BUILD_USER} on the host",
        )
