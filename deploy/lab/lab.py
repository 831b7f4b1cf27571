"""
The lab's verbs, in the order that an operator meets them.

Every one reads the kernel first. Nothing is remembered in files but disks, keys, and what
ip_forward was: a lab whose commands were killed is as well known as one whose were not.
"""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.errors import LabError, UnknownHost
from deploy.lab import base, cgroups, common, host, keys, network, preflight, processes, sources
from deploy.lab.commands import PATH, environment
from deploy.lab.config import HostState, LabConfig, LabHost, LabStatus, number
from deploy.lab.mounts import mounted_below, remove_tree, unmount_below

Progress = Callable[[str], None]

INIT_WAIT_S = 2.0  # for the init of a host that boots


def up(
    hosts: int = 4, *, progress: Progress, fresh: bool = False, config: LabConfig | None = None
) -> LabStatus:
    """
    Boot n1 to n*hosts*, and return when sshd of each answers.

    Hosts that run stay as they are, but for being thawed and healed.

    Args:
        fresh: Stop them first and boot them from empty disks.

    Raises:
        LabError: The lab can't run here, or a host did not come up.
    """
    config = _config(config)
    names = config.names(hosts)
    machine = preflight.check(config)
    assert machine.cgroup_layout is not None, "without one there was an objection"
    layout = machine.cgroup_layout
    with _alone(config, progress):
        if machine.lacking:
            preflight.install(machine.lacking, progress)
        if fresh:
            host.power_off(config, names, layout)
            for name in names:
                host.erase(config, name)
        running = host.running_hosts(config)
        tree = _prepare_shared(config, names, is_idle=not running, progress=progress)
        network.up(config)
        for name in sorted(running & set(names), key=number):
            _make_reachable(config, name, layout, progress)
        booting = [name for name in names if name not in running]
        if booting:
            progress(f"booting {', '.join(booting)}")
        for name in booting:
            host.prepare(config, name, tree)
            host.boot(config, name, layout)
        host.wait_for_sshd(config, names, progress)
        return status(config=config)


def down(*, progress: Progress, keep: bool = False, config: LabConfig | None = None) -> None:
    """
    Stop every host and take everything out of the kernel that the lab put there.

    Goes by what the kernel says, so it also clears up after an `up` that was killed. The base
    tree and the keys stay for the next `up`.

    Args:
        keep: Keep the disks.

    Raises:
        LabError: Something is left; names it.
    """
    config = _config(config)
    with _alone(config, progress):
        layout = cgroups.detect()
        if found := host.running_hosts(config):
            progress(f"stopping {', '.join(sorted(found, key=number))}")
        if layout is not None:
            _kill_everything(config, layout)
        base.remove_unfinished(config, tuple(processes.all_processes()))
        host.forget_nspawn(config, host.hosts_with_disk(config))
        unmount_below(config.hosts)
        if shutil.which("nft", path=environment()["PATH"]):
            network.down(config)
        if layout is not None:
            cgroups.reset_units(config)
            cgroups.remove(config, layout)
        if not keep:
            for path in (config.hosts, config.common, config.common.with_name("common.new")):
                remove_tree(path)
        if left := leftovers(config):
            raise LabError(
                "the lab is not all gone",
                why="; ".join(left),
                fix="end what holds them, then inv lab.down again",
            )


def leftovers(config: LabConfig | None = None) -> list[str]:
    """
    Return what of the lab the kernel still has, each in words.
    """
    config = _config(config)
    layout = cgroups.detect()
    folders = layout.folders(config) if layout else ()
    found = [f"process {pid}" for pid in sorted(_processes(config, folders))]
    found += [f"mount {path}" for path in mounted_below(config.hosts)]
    found += [f"cgroup {path}" for path in folders]
    found += [f"link {name}" for name in network.links(config)]
    if shutil.which("nft", path=environment()["PATH"]):
        tables = sorted(network.tables())
        found += [f"nft table {family} {name}" for family, name in tables if name == config.table]
    return found


def status(*, config: LabConfig | None = None) -> LabStatus:
    """
    Return every host that has a disk, and what the kernel says of it.
    """
    config = _config(config)
    layout = cgroups.detect()
    running = tuple(processes.all_processes())
    containers = processes.containers(config, running)
    cut_off = network.cut_hosts(config) if containers else frozenset()
    found = []
    for name in host.hosts_with_disk(config):
        init = processes.leader_of(containers[name], running) if name in containers else None
        if init is None or layout is None:
            state = HostState.STOPPED
        elif layout.is_frozen(config, name):
            state = HostState.FROZEN
        else:
            state = HostState.CUT if name in cut_off else HostState.RUNNING
        memory_bytes = layout.memory_bytes(config, name) if init and layout else 0
        found.append(
            LabHost(
                name=name,
                address=config.address(name),
                state=state,
                leader=init,
                memory_mib=memory_bytes // 2**20,
                disk_mib=host.disk_mib(config, name),
            )
        )
    return LabStatus(config.directory, config.bridge, config.subnet, tuple(found))


def ssh_argv(name: str, *, config: LabConfig | None = None) -> list[str]:
    """
    Return the ssh command to *name*, with strict host-key checking; append a command to run it.
    """
    config = _existing(name, config)
    options = [
        *("-i", str(keys.user_key(config))),
        *("-o", "IdentitiesOnly=yes"),
        *("-o", "StrictHostKeyChecking=yes"),
        *("-o", f"UserKnownHostsFile={keys.known_hosts(config)}"),
        *("-o", "GlobalKnownHostsFile=none"),
        *("-o", "BatchMode=yes"),
        *("-o", "ConnectTimeout=5"),
        *("-o", "LogLevel=ERROR"),
    ]
    # Not the operator's own ~/.ssh/config: it may know these addresses as something else.
    return ["ssh", "-F", "none", *options, f"root@{config.address(name)}"]


def inside(
    name: str, argv: Sequence[str], *, timeout_s: float = 30.0, config: LabConfig | None = None
) -> subprocess.CompletedProcess[str]:
    """
    Run *argv* as root in *name* without its network or sshd; also while it is cut or frozen.

    Not while it reboots: a command that is there keeps the host from going down.

    Raises:
        LabError: The host is stopped, or the command was not done within *timeout_s*.
    """
    config = _existing(name, config)
    init = host.leader(config, name, wait_s=INIT_WAIT_S)
    if init is None:
        raise _is_stopped(name)
    try:
        return subprocess.run(
            host.inside_argv(init, argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env={"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", "TERM": "dumb"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LabError(
            f"{' '.join(argv)} in lab host {name}",
            why=f"it was not done after {timeout_s:.0f} s",
            fix=f"is the host shutting down, or does the command need what is frozen? see {name}'s"
            f" console: {config.console(name)}",
            host=name,
        ) from None


def cut(name: str, *, config: LabConfig | None = None) -> None:
    """
    Let no frame reach or leave *name*, in silence: its links stay up.
    """
    network.cut(_running(name, config), name)


def heal(name: str, *, config: LabConfig | None = None) -> None:
    """
    Undo `cut`.
    """
    network.heal(_existing(name, config), name)


def freeze(name: str, *, config: LabConfig | None = None) -> None:
    """
    Stop every process of *name* where it is; its kernel still acknowledges what it is sent.
    """
    config = _running(name, config)
    _layout().set_frozen(config, name, frozen=True)


def thaw(name: str, *, config: LabConfig | None = None) -> None:
    """
    Undo `freeze`.
    """
    _layout().set_frozen(_existing(name, config), name, frozen=False)


def crash(name: str, *, progress: Progress, config: LabConfig | None = None) -> None:
    """
    Cut *name*'s power. Its disk stays as it was at that moment.
    """
    config = _existing(name, config)
    with _alone(config, progress):
        host.power_off(config, [name], _layout())


def start(name: str, *, progress: Progress, config: LabConfig | None = None) -> None:
    """
    Boot *name* from the disk that it has, and return when its sshd answers.

    Raises:
        LabError: It did not come up.
    """
    config = _existing(name, config)
    with _alone(config, progress):
        _start(config, name, progress)


def wipe(name: str, *, progress: Progress, config: LabConfig | None = None) -> None:
    """
    Boot *name* from an empty disk, with the host key that it had.
    """
    config = _existing(name, config)
    with _alone(config, progress):
        host.power_off(config, [name], _layout())
        host.erase(config, name)
        _start(config, name, progress)


def _start(config: LabConfig, name: str, progress: Progress) -> None:
    layout = _layout()
    if name not in (running := host.running_hosts(config)):
        tree = _prepare_shared(config, (name,), is_idle=not running, progress=progress)
        network.up(config)
        host.prepare(config, name, tree)
        host.boot(config, name, layout)
    host.wait_for_sshd(config, [name], progress)


def _prepare_shared(
    config: LabConfig, names: tuple[str, ...], *, is_idle: bool, progress: Progress
) -> Path:
    """
    Return the base tree, after making what the hosts share: keys and the middle layer.
    """
    found = sources.read(preflight.os_release())
    tree = base.ensure_base(config, found, now=time.monotonic, progress=progress)
    if is_idle:
        # What lies under a mounted overlay must not change.
        unmount_below(config.hosts)
    keys.ensure_keys(config, names, fresh=is_idle and not host.hosts_with_disk(config))
    if is_idle:
        common.write_common(config, found)
    return tree


def _make_reachable(
    config: LabConfig, name: str, layout: cgroups.Layout, progress: Progress
) -> None:
    if layout.is_frozen(config, name):
        progress(f"{name} was frozen: thawing it")
        layout.set_frozen(config, name, frozen=False)
    if name in network.cut_hosts(config):
        progress(f"{name} was cut off: healing its link")
        network.heal(config, name)


def _kill_everything(config: LabConfig, layout: cgroups.Layout) -> None:
    # Several rounds, for what was started meanwhile.
    for _ in range(3):
        folders = layout.folders(config)
        named = {path.name for folder in folders for path in folder.glob("n*")}
        host.power_off(config, named | host.running_hosts(config), layout)
        if not processes.kill_all(_processes(config, folders)):
            return


def _processes(config: LabConfig, folders: tuple[Path, ...]) -> frozenset[int]:
    running = tuple(processes.all_processes())
    containers = processes.containers(config, running)
    inits = (processes.leader_of(pid, running) for pid in containers.values())
    return frozenset(
        {
            *processes.supervisors(config, running).values(),
            *containers.values(),
            *(init for init in inits if init is not None),
            *cgroups.processes(folders),
        }
    )


@contextmanager
def _alone(config: LabConfig, progress: Progress) -> Iterator[None]:
    """
    Keep other commands on this lab waiting; the kernel ends the wait if this process dies.
    """
    if os.geteuid() != 0:
        raise preflight.needs_root()
    config.directory.mkdir(parents=True, exist_ok=True)
    with config.lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            progress(f"waiting for another lab command to end (process {lock.read().strip()})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def _config(config: LabConfig | None) -> LabConfig:
    return config or LabConfig.from_env(os.environ)


def _existing(name: str, config: LabConfig | None) -> LabConfig:
    if os.geteuid() != 0:
        raise preflight.needs_root()
    config = _config(config)
    number(name)
    names = host.hosts_with_disk(config)
    if name not in names:
        raise UnknownHost(
            f"the lab has no host {name}",
            why=f"it has {', '.join(names)}" if names else "it is not up",
            fix="inv lab.up",
        )
    return config


def _running(name: str, config: LabConfig | None) -> LabConfig:
    config = _existing(name, config)
    if name not in host.running_hosts(config):
        raise _is_stopped(name)
    return config


def _is_stopped(name: str) -> LabError:
    return LabError(
        f"lab host {name} is stopped",
        why="it has a disk and no process",
        fix=f"inv lab.start {name}",
        host=name,
    )


def _layout() -> cgroups.Layout:
    layout = cgroups.detect()
    if layout is None:
        raise LabError(
            "the lab needs cgroups with memory, pids and a freezer",
            why="they were not found in /sys/fs/cgroup",
            fix="run it on a machine that was booted by systemd",
        )
    return layout
