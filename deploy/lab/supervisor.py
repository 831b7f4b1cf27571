"""
Supervisor of one lab host: python -m deploy.lab.supervisor DIR BASES BRIDGE PREFIX HOST

It has its own session and runs in the host's cgroup, so it outlives the command that started it.
It boots the host again after a reboot, and ends when the host powers off.  If the supervisor is
killed, the host dies with it: a host without a supervisor would not survive a reboot.
"""

import fcntl
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from deploy.lab import cgroups
from deploy.lab.commands import attempt, environment
from deploy.lab.common import INIT
from deploy.lab.config import LabConfig

# Exit status of nspawn after a reboot in the container.  Source: systemd-nspawn(1), --keep-unit.
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


def systemd_version(tree: Path) -> int:
    """
    Return the version of systemd that *tree* has, from its shared library's name; 0 if it has none.
    """
    names = (
        path.name
        for folder in ("systemd", "*/systemd")
        for path in (tree / "usr/lib").glob(f"{folder}/libsystemd-shared-*.so")
    )
    numbers = (re.match(r"libsystemd-shared-(\d+)", name) for name in names)
    return max((int(number[1]) for number in numbers if number), default=0)


def main(argv: list[str]) -> int:
    """
    Run one host until it powers off or fails; return the last exit status of nspawn.
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
            # The link of a killed host may still exist; nspawn could not create it again.
            attempt(["ip", "link", "del", config.link(host)])
            console.write(f"--- {_now()} boot\n")
            nspawn = subprocess.run(
                [*layout.boot_prefix(config, host), *nspawn_argv(config, host)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=environment(layout.nspawn_variables(systemd_version(config.root(host)))),
                check=False,
            )
            console.write(f"--- {_now()} nspawn ended with {nspawn.returncode}\n")
            if nspawn.returncode != REBOOT:
                return nspawn.returncode


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
