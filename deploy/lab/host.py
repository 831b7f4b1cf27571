"""
One lab host: its disk, its power switch, its freezer.
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
from deploy.lab.mounts import mount_overlay, remove_tree

BOOT_TIMEOUT_S = 60.0
TELL_EVERY_S = 10.0
CONSOLE_LINES = 15  # of a host that did not come up, in the error
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
    Return the names of the hosts that exist, running or not, in the order of their numbers.
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

    A host that boots has none for a moment: before nspawn starts it, and while it becomes another
    program.  That is waited for, up to *wait_s*.
    """
    deadline_s = time.monotonic() + wait_s
    while True:
        running = tuple(processes.all_processes())
        container = processes.containers(config, running).get(host)
        found = processes.leader_of(container, running) if container else None
        if found or not container or time.monotonic() >= deadline_s:
            return found
        time.sleep(0.05)


def prepare(config: LabConfig, host: str, base: Path) -> None:
    """
    Mount *host*'s disk, after making it if there is none.
    """
    folder = config.host_dir(host)
    if not (folder / "upper").is_dir():
        _make_disk(config, host, base)
    # A disk that was kept lies over the base that it was made on, whatever the recipe is now.
    made_on = Path((folder / "base").read_text())
    if not made_on.is_dir():
        raise LabError(
            f"lab host {host} can't boot from its disk",
            why=f"the base tree under it is gone: {made_on}",
            fix="inv lab.down, then inv lab.up: with new disks",
            host=host,
        )
    mount_overlay(
        f"{config.tag}-{host}",
        layers=[config.common, made_on],
        upper=folder / "upper",
        work=folder / "work",
        at=config.root(host),
    )


def _make_disk(config: LabConfig, host: str, base: Path) -> None:
    folder = config.host_dir(host)
    # A rename: a disk that is there is whole.
    making = folder / "upper.new"
    remove_tree(making)
    etc = making / "etc"
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
    making.rename(folder / "upper")


def boot(config: LabConfig, host: str, layout: cgroups.Layout) -> None:
    """
    Start *host*'s supervisor; its disk is mounted. Returns before the host is up.
    """
    python = [sys.executable, *processes.supervisor_argv(config, host)]
    # Its own session, and no child of this process: neither a signal nor its end reaches it.
    launcher = layout.launcher(config, host, folder=PROJECT) or ["setsid", "--fork"]
    with config.console(host).open("ab") as console:
        subprocess.run(
            [*launcher, *python],
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
    Wait until sshd of every one of *hosts* says its banner.

    Raises:
        LabError: One did not within a minute, or stopped; with the last lines of its console.
    """
    deadline_s = time.monotonic() + BOOT_TIMEOUT_S
    tell_at_s = time.monotonic() + TELL_EVERY_S
    waiting = list(hosts)
    while waiting:
        waiting = [host for host in waiting if not _has_sshd(config.address(host))]
        if not waiting:
            return
        gone = set(waiting) - running_hosts(config)
        if gone or time.monotonic() > deadline_s:
            host = min(gone or waiting)
            reason = "it stopped" if gone else f"no sshd after {BOOT_TIMEOUT_S:.0f} s"
            raise LabError(
                f"lab host {host} did not come up",
                why=f"{reason}; its console says last:\n{console_tail(config, host)}",
                fix=f"see {config.console(host)}; inv lab.down and inv lab.up begin anew",
                host=host,
            )
        if time.monotonic() > tell_at_s:
            tell_at_s += TELL_EVERY_S
            left_s = deadline_s - time.monotonic()
            progress(f"waiting for sshd of {', '.join(waiting)} ({left_s:.0f} s left)")
        time.sleep(0.05)


def _has_sshd(address: str) -> bool:
    # The banner is enough: one connect, no key exchange.
    try:
        with socket.create_connection((address, 22), timeout=0.5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def console_tail(config: LabConfig, host: str, lines: int = CONSOLE_LINES) -> str:
    """
    Return the last *lines* of *host*'s console.
    """
    path = config.console(host)
    if not path.exists():
        return "    (nothing)"
    with path.open("rb") as console:
        console.seek(max(0, path.stat().st_size - 200 * lines))
        text = console.read().decode(errors="replace")
    shown = [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"    {line}" for line in shown) or "    (nothing)"


def forget_nspawn(config: LabConfig, hosts: Collection[str]) -> None:
    """
    Delete what systemd-nspawn leaves in /run for *hosts*, which are stopped and mounted.
    """
    for host in hosts:
        root = config.root(host)
        if root.exists():
            found = root.stat()
            (NSPAWN / f"locks/inode-{found.st_dev}:{found.st_ino}").unlink(missing_ok=True)
        for folder in ("propagate", "unix-export"):
            remove_tree(NSPAWN / folder / config.machine(host))


def power_off(config: LabConfig, hosts: Collection[str], layout: cgroups.Layout) -> None:
    """
    Kill *hosts* as a power cut does: nothing of them gets a last word. Disks stay mounted.
    """
    for host in hosts:
        # A frozen process does not even die.
        layout.set_frozen(config, host, frozen=False)
    running = tuple(processes.all_processes())
    supervisors = _pick(hosts, processes.supervisors(config, running))
    containers = _pick(hosts, processes.containers(config, running))
    inits = {processes.leader_of(pid, running) for pid in containers} - {None}
    processes.kill_all(pid for pid in inits if pid is not None)
    # With its init gone nspawn takes its link and folders away, and then the supervisor ends.
    processes.wait_for_end(supervisors, timeout_s=2.0)
    processes.kill_all(supervisors | containers)
    links = {config.link(host) for host in hosts}
    for link in links & set(network.links(config)):
        network.delete_link(link)


def _pick(hosts: Collection[str], pids: Mapping[str, int]) -> frozenset[int]:
    return frozenset(pid for host, pid in pids.items() if host in hosts)


def erase(config: LabConfig, host: str) -> None:
    """
    Delete the disk of *host*, which is stopped.
    """
    remove_tree(config.host_dir(host))


def disk_mib(config: LabConfig, host: str) -> int:
    """
    Return what *host* has written over the base.
    """
    seen: set[int] = set()
    blocks = 0
    for folder, _, names in os.walk(config.host_dir(host) / "upper"):
        for name in names:
            try:
                found = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - thousands of files
            except OSError:
                continue  # the host deleted it meanwhile
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                blocks += found.st_blocks
    return blocks * 512 // 2**20


def inside_argv(pid: int, argv: Sequence[str]) -> list[str]:
    """
    Return *argv* as run in all namespaces of the host whose init is *pid*. Pure.
    """
    namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]
    return ["nsenter", "--target", str(pid), *namespaces, "--", *argv]
