"""
Keeps one lab host running: python -m deploy.lab.supervisor DIR BASES BRIDGE PREFIX HOST

A process of its own session and of the host's cgroup, so that it outlives the command that
started it. It boots the host again when the host reboots, and ends when the host does. When it
is killed the host dies with it: never a host that nobody would boot again.
"""

import fcntl
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from deploy.lab import cgroups
from deploy.lab.commands import attempt, environment
from deploy.lab.common import INIT
from deploy.lab.config import LabConfig

# Source: systemd-nspawn(1), --keep-unit: the container asked for a reboot.
REBOOT = 133
ALREADY_SUPERVISED = 3


def nspawn_argv(config: LabConfig, host: str) -> list[str]:
    """
    Return the command that boots *host*. Pure.
    """
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        "systemd-nspawn",
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--settings=no",
        f"--directory={config.root(host)}",
        f"--machine={config.machine(host)}",
        f"--hostname={host}",
        f"--network-bridge={config.bridge}",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        INIT,
    ]


def main(argv: list[str]) -> int:
    """
    Supervise one host until it ends; return nspawn's last exit status.
    """
    directory, bases, bridge, prefix, host = argv
    config = LabConfig(Path(directory), Path(bases), bridge, prefix)
    os.chdir("/")
    with (
        (config.host_dir(host) / "supervisor.lock").open("w") as lock,
        config.console(host).open("a", buffering=1) as console,
    ):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ALREADY_SUPERVISED
        layout = cgroups.detect()
        if layout is None:
            return 1
        layout.enter(config, host)
        while True:
            # The link of a host that was killed goes away a moment later than the host.
            attempt(["ip", "link", "del", config.link(host)])
            console.write(f"--- {_now()} boot\n")
            done = subprocess.run(
                [*layout.placer(config, host), *nspawn_argv(config, host)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=environment(),
                check=False,
            )
            console.write(f"--- {_now()} nspawn ended with {done.returncode}\n")
            if done.returncode != REBOOT:
                return done.returncode


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
