"""
One lab host: create its disk, boot it, wait for its sshd, power it off.
"""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from deploy.errors import LabError
from deploy.lab import cgroups, keys, network, processes
from deploy.lab.commands import TIMEOUT_S, environment
from deploy.lab.config import LabConfig
from deploy.lab.mounts import mount_image, mount_overlay, remove_tree

BOOT_TIMEOUT_S = 60.0
PROGRESS_EVERY_S = 10.0
CONSOLE_LINES = 15  # console lines in the error about a host that did not come up
NSPAWN = Path("/run/systemd/nspawn")
PROJECT = Path(__file__).parents[2]

_NETWORK = """\
[Match]
Name=host0

[Network]
Address={address}/24
Gateway={gateway}
LinkLocalAddressing=no
IPv6AcceptRA=no
LLDP=no
EmitLLDP=no
"""


def hosts_with_disk(config: LabConfig) -> tuple[str, ...]:
    """
    Return the names of the hosts that have a disk, running or not, ordered by number.
    """
    names = [path.parent.name for path in config.hosts.glob("n*/upper")]
    return tuple(sorted(names, key=lambda name: (len(name), name)))


def running_hosts(config: LabConfig) -> frozenset[str]:
    """
    Return the hosts that have a supervisor or a container.
    """
    running = tuple(processes.all_processes())
    return frozenset(processes.supervisors(config, running) | processes.containers(config, running))


def leader(config: LabConfig, host: str, *, wait_s: float = 0.0) -> int | None:
    """
    Return the process id of *host*'s init on this machine; None when it is stopped.

    A booting host has no init for a moment: until nspawn starts it, and while it executes another
    program.

    Args:
        wait_s: Longest wait for the init of a booting host, in seconds.
    """
    deadline_s = time.monotonic() + wait_s
    while True:
        running = tuple(processes.all_processes())
        container = processes.containers(config, running).get(host)
        init = processes.leader_of(container, running) if container else None
        if init or not container or time.monotonic() >= deadline_s:
            return init
        time.sleep(0.05)


def prepare_disk(config: LabConfig, host: str, base: Path) -> None:
    """
    Mount *host*'s disk; create it first, on top of *base*, if there is none.

    Raises:
        LabError: The disk was created on a base tree that no longer exists.
    """
    folder = config.host_dir(host)
    mount_image(config.disk_image(host), at=folder)
    if not (folder / "upper").is_dir():
        _create_disk(config, host, base)
    # An older disk stays on the base that it was created on, even if the recipe has changed.
    own_base = Path((folder / "base").read_text())
    if not own_base.is_dir():
        raise LabError(
            f"lab host {host} cannot boot from its disk",
            why=f"the base tree of the disk does not exist: {own_base}",
            fix="inv lab.down, then inv lab.up: all hosts get new disks",
            host=host,
        )
    mount_overlay(
        f"{config.tag}-{host}",
        layers=[config.common, own_base],
        upper=folder / "upper",
        work=folder / "work",
        at=config.root(host),
    )


def _create_disk(config: LabConfig, host: str, base: Path) -> None:
    folder = config.host_dir(host)
    # Renamed at the end, so that a disk under its final name is always complete.
    incomplete = folder / "upper.new"
    remove_tree(incomplete)
    etc = incomplete / "etc"
    (etc / "systemd/network").mkdir(parents=True)
    (etc / "ssh").mkdir()
    (etc / "hostname").write_text(f"{host}\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{config.address(host)} {host}\n")
    (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
    (etc / "machine-id").chmod(0o444)
    (etc / "systemd/network/10-host0.network").write_text(
        _NETWORK.format(address=config.address(host), gateway=config.gateway)
    )
    key = keys.host_key(config, host)
    for suffix, mode in (("", 0o600), (".pub", 0o644)):
        target = etc / "ssh" / f"ssh_host_ed25519_key{suffix}"
        target.touch(mode=mode)
        target.write_bytes(Path(f"{key}{suffix}").read_bytes())
    (folder / "base").write_text(str(base))
    incomplete.rename(folder / "upper")


def boot(config: LabConfig, host: str, layout: cgroups.CgroupLayout) -> None:
    """
    Start *host*'s supervisor.  The disk must be mounted.  Returns before the host is up.
    """
    python = [sys.executable, *processes.supervisor_argv(config, host)]
    # A session of its own, and no child of this process: it gets none of this process's signals
    # and outlives it.
    prefix = layout.supervisor_prefix(config, host, folder=PROJECT) or ["setsid", "--fork"]
    with config.console(host).open("ab") as console:
        subprocess.run(
            [*prefix, *python],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env=environment(),
            timeout=TIMEOUT_S,
            check=True,
        )


def wait_for_sshd(config: LabConfig, hosts: Sequence[str], progress: Callable[[str], None]) -> None:
    """
    Wait until sshd on all *hosts* sends its banner.

    Raises:
        LabError: A host stopped, or its sshd did not answer within BOOT_TIMEOUT_S.  The error has
            the last lines of the host's console.
    """
    deadline_s = time.monotonic() + BOOT_TIMEOUT_S
    next_progress_s = time.monotonic() + PROGRESS_EVERY_S
    waiting = list(hosts)
    while waiting:
        waiting = [host for host in waiting if not _has_sshd(config.address(host))]
        if not waiting:
            return
        stopped = set(waiting) - running_hosts(config)
        if stopped or time.monotonic() > deadline_s:
            host = min(stopped or waiting)
            reason = "it stopped" if stopped else f"no sshd after {BOOT_TIMEOUT_S:.0f} s"
            raise LabError(
                f"lab host {host} did not come up",
                why=f"{reason}; the last lines of its console:\n{console_tail(config, host)}",
                fix=f"read {config.console(host)}; inv lab.down, then inv lab.up: new disks",
                host=host,
            )
        if time.monotonic() > next_progress_s:
            next_progress_s += PROGRESS_EVERY_S
            left_s = deadline_s - time.monotonic()
            progress(f"waiting for sshd of {', '.join(waiting)} ({left_s:.0f} s left)")
        time.sleep(0.05)


def _has_sshd(address: str) -> bool:
    # The banner is proof enough, and cheap: one connection without a key exchange.
    try:
        with socket.create_connection((address, 22), timeout=0.5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def console_tail(config: LabConfig, host: str, lines: int = CONSOLE_LINES) -> str:
    """
    Return the last *lines* non-empty lines of *host*'s console, indented.
    """
    path = config.console(host)
    if not path.exists():
        return "    (nothing)"
    with path.open("rb") as console:
        console.seek(max(0, path.stat().st_size - 200 * lines))
        text = console.read().decode(errors="replace")
    shown = [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"    {line}" for line in shown) or "    (nothing)"


def remove_nspawn_state(config: LabConfig, hosts: Collection[str]) -> None:
    """
    Delete the files that systemd-nspawn leaves in /run for *hosts*.

    The hosts must be stopped and their disks still mounted: a lock's name has the inode of the
    mounted root.
    """
    for host in hosts:
        root = config.root(host)
        if root.exists():
            inode = root.stat()
            (NSPAWN / f"locks/inode-{inode.st_dev}:{inode.st_ino}").unlink(missing_ok=True)
        for folder in ("propagate", "unix-export"):
            remove_tree(NSPAWN / folder / config.machine(host))


def power_off(config: LabConfig, hosts: Collection[str], layout: cgroups.CgroupLayout) -> None:
    """
    Kill all processes of *hosts* with SIGKILL, as in a power cut.  Disks stay mounted.
    """
    for host in hosts:
        # A frozen process does not react to SIGKILL.
        layout.set_frozen(config, host, frozen=False)
    running = tuple(processes.all_processes())
    supervisors = _pids_of(hosts, processes.supervisors(config, running))
    containers = _pids_of(hosts, processes.containers(config, running))
    inits = {processes.leader_of(pid, running) for pid in containers} - {None}
    processes.kill_all(pid for pid in inits if pid is not None)
    # After its init has died, nspawn removes its link and folders; then the supervisor ends.
    processes.wait_for_end(supervisors, timeout_s=2.0)
    processes.kill_all(supervisors | containers)
    links = {config.link(host) for host in hosts}
    for link in links & set(network.links(config)):
        network.delete_link(link)


def _pids_of(hosts: Collection[str], pid_by_host: Mapping[str, int]) -> frozenset[int]:
    return frozenset(pid for host, pid in pid_by_host.items() if host in hosts)


def delete_disk(config: LabConfig, host: str) -> None:
    """
    Delete the disk of *host*, which must be stopped.
    """
    remove_tree(config.host_dir(host))


def disk_mib(config: LabConfig, host: str) -> int:
    """
    Return the size of the files that *host* has written on top of the base.

    A file with several names (hard links) counts once.
    """
    counted_inodes: set[int] = set()
    blocks = 0  # of 512 bytes
    for folder, _, names in os.walk(config.host_dir(host) / "upper"):
        for name in names:
            try:
                file = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - thousands of files
            except OSError:
                continue  # the host has deleted it since it was listed
            if file.st_ino not in counted_inodes:
                counted_inodes.add(file.st_ino)
                blocks += file.st_blocks
    return blocks * 512 // 2**20


def inside_argv(pid: int, argv: Sequence[str]) -> list[str]:
    """
    Return the command that runs *argv* in all namespaces of the host whose init is *pid*. Pure.
    """
    namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]
    return ["nsenter", "--target", str(pid), *namespaces, "--", *argv]
