"""
The lab's verbs: up, down, status, ssh, and the faults (cut, freeze, crash) with their repairs.

Each verb reads the state of the lab from the kernel.  Files hold only disks, keys and the former
value of ip_forward, so a command that was killed leaves no wrong state behind.

All verbs need root.  Without *config* they work on the lab that the environment names.
"""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.errors import LabError, UnknownHost
from deploy.lab import (
    base,
    cgroups,
    common,
    host,
    keys,
    network,
    observe,
    preflight,
    processes,
    sources,
)
from deploy.lab.commands import PATH
from deploy.lab.config import MAX_HOSTS, LabConfig, LabStatus, number
from deploy.lab.lock import exclusive
from deploy.lab.mounts import remove_tree, unmount_below

Progress = Callable[[str], None]

INIT_WAIT_S = 2.0  # longest wait for the init of a booting host


def up(
    hosts: int = 4, *, progress: Progress, fresh: bool = False, config: LabConfig | None = None
) -> LabStatus:
    """
    Boot n1 to n*hosts*; return when the sshd of each host answers.

    Hosts that run already are thawed and healed, and otherwise left alone.

    Args:
        hosts: Number of hosts.
        fresh: Stop these hosts first and boot them from empty disks.

    Raises:
        LabError: The lab cannot run on this machine, or a host did not come up.
    """
    config = _config(config)
    names = config.names(hosts)
    machine = preflight.check(config)
    assert machine.cgroup_layout is not None, "preflight.check refuses such a machine"
    layout = machine.cgroup_layout
    with exclusive(config, progress):
        if machine.missing_packages:
            preflight.install(machine.missing_packages, progress)
        if fresh:
            host.power_off(config, names, layout)
            for name in names:
                host.delete_disk(config, name)
        running = host.running_hosts(config)
        base_tree = _prepare_shared(config, names, is_idle=not running, progress=progress)
        network.up(config)
        for name in sorted(running & set(names), key=number):
            _thaw_and_heal(config, name, layout, progress)
        to_boot = [name for name in names if name not in running]
        if to_boot:
            progress(f"booting {', '.join(to_boot)}")
        for name in to_boot:
            host.prepare_disk(config, name, base_tree)
            host.boot(config, name, layout)
        host.wait_for_sshd(config, names, progress)
        return status(config=config)


def down(*, progress: Progress, keep: bool = False, config: LabConfig | None = None) -> None:
    """
    Stop all hosts and remove everything that the lab has created in the kernel.

    What to remove is read from the kernel, so `down` also cleans up after a killed `up`.  The base
    tree and the keys stay for the next `up`.

    Args:
        keep: Keep the disks.

    Raises:
        LabError: Something could not be removed; the error lists it.
    """
    config = _config(config)
    with exclusive(config, progress):
        layout = cgroups.detect()
        if running := host.running_hosts(config):
            progress(f"stopping {', '.join(sorted(running, key=number))}")
        if layout is not None:
            _kill_everything(config, layout)
        base.remove_unfinished(config, tuple(processes.all_processes()))
        host.remove_nspawn_state(config, host.hosts_with_disk(config))
        unmount_below(config.hosts)
        if observe.has_nft():
            network.down(config)
        if layout is not None:
            cgroups.reset_units(config)
            cgroups.remove(config, layout)
        if not keep:
            for path in (config.hosts, config.common, config.common.with_name("common.new")):
                remove_tree(path)
        if remaining := observe.find_leftovers(config):
            raise LabError(
                "the lab was not removed completely",
                why=f"these remain: {'; '.join(remaining)}",
                fix="end the processes that use them, then inv lab.down again",
            )


def leftovers(config: LabConfig | None = None) -> list[str]:
    """
    Return what the kernel still has of the lab; see `find_leftovers`.
    """
    return observe.find_leftovers(_config(config))


def status(*, config: LabConfig | None = None) -> LabStatus:
    """
    Return the state of every host that has a disk.
    """
    return observe.read_status(_config(config))


def ssh_argv(name: str, *, config: LabConfig | None = None) -> list[str]:
    """
    Return the ssh command line for *name*, with strict host-key checking.

    Append words to it to run a command on the host.
    """
    config = _require_host(name, config)
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
    # Without the operator's ~/.ssh/config, which may have other settings for these addresses.
    return ["ssh", "-F", "none", *options, f"root@{config.address(name)}"]


def inside(
    name: str, argv: Sequence[str], *, timeout_s: float = 30.0, config: LabConfig | None = None
) -> subprocess.CompletedProcess[str]:
    """
    Run *argv* as root inside *name*, through its namespaces and not through its network.

    Works on a host that is cut or frozen.  Do not use it during a reboot: the running command
    delays the shutdown.

    Raises:
        LabError: The host is stopped, or the command ran longer than *timeout_s*.
    """
    config = _require_host(name, config)
    init = host.leader(config, name, wait_s=INIT_WAIT_S)
    if init is None:
        raise _stopped_error(name)
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
            f"a command in lab host {name} timed out: {' '.join(argv)}",
            why=f"it ran for more than {timeout_s:.0f} s",
            fix=f"inv lab.thaw {name} if the host is frozen; else read {config.console(name)}",
            host=name,
        ) from None


def cut(name: str, *, only_ssh: bool = False, config: LabConfig | None = None) -> None:
    """
    Drop all frames to and from *name*; its link stays up, so the host notices only the silence.

    Args:
        only_ssh: Drop those of its sshd alone: the controller loses the host, and users do not.
    """
    network.cut(_require_running(name, config), name, only_ssh=only_ssh)


def heal(name: str, *, config: LabConfig | None = None) -> None:
    """
    Undo `cut`.
    """
    network.heal(_require_host(name, config), name)


def freeze(name: str, *, config: LabConfig | None = None) -> None:
    """
    Suspend all processes of *name*; the kernel still accepts its connections and acknowledges data.
    """
    config = _require_running(name, config)
    _require_cgroups().set_frozen(config, name, frozen=True)


def thaw(name: str, *, config: LabConfig | None = None) -> None:
    """
    Undo `freeze`.
    """
    _require_cgroups().set_frozen(_require_host(name, config), name, frozen=False)


def crash(name: str, *, progress: Progress, config: LabConfig | None = None) -> None:
    """
    Kill *name* as in a power cut.  The disk keeps what was written until then.
    """
    config = _require_host(name, config)
    with exclusive(config, progress):
        host.power_off(config, [name], _require_cgroups())


def start(name: str, *, progress: Progress, config: LabConfig | None = None) -> None:
    """
    Boot *name* from its disk; return when its sshd answers.

    Raises:
        LabError: The host did not come up.
    """
    config = _require_host(name, config)
    with exclusive(config, progress):
        _start(config, name, progress)


def wipe(name: str, *, progress: Progress, config: LabConfig | None = None) -> None:
    """
    Boot *name* from an empty disk; the host keeps its host key.

    Raises:
        LabError: The host did not come up.
    """
    config = _require_host(name, config)
    with exclusive(config, progress):
        host.power_off(config, [name], _require_cgroups())
        host.delete_disk(config, name)
        _start(config, name, progress)


def _start(config: LabConfig, name: str, progress: Progress) -> None:
    layout = _require_cgroups()
    if name not in (running := host.running_hosts(config)):
        base_tree = _prepare_shared(config, (name,), is_idle=not running, progress=progress)
        network.up(config)
        host.prepare_disk(config, name, base_tree)
        host.boot(config, name, layout)
    host.wait_for_sshd(config, [name], progress)


def _prepare_shared(
    config: LabConfig, names: tuple[str, ...], *, is_idle: bool, progress: Progress
) -> Path:
    """
    Create what all hosts share (base tree, keys, common layer); return the base tree.

    Args:
        is_idle: No host runs, so the common layer may be replaced.
    """
    package_sources = sources.read(preflight.os_release(), config.suite)
    base_tree = base.ensure_base(config, package_sources, now=time.monotonic, progress=progress)
    if is_idle:
        # The layers of a mounted overlay must not change.
        unmount_below(config.hosts)
    keys.ensure_keys(config, names, fresh=is_idle and not host.hosts_with_disk(config))
    if is_idle:
        common.write_common(config, package_sources)
    return base_tree


def _thaw_and_heal(
    config: LabConfig, name: str, layout: cgroups.CgroupLayout, progress: Progress
) -> None:
    if layout.is_frozen(config, name):
        progress(f"{name} is frozen: thawing it")
        layout.set_frozen(config, name, frozen=False)
    if name in network.cut_hosts(config):
        progress(f"{name} is cut off: healing its link")
        network.heal(config, name)


def _kill_everything(config: LabConfig, layout: cgroups.CgroupLayout) -> None:
    # Up to three rounds: a process may start another one while it is being killed.
    for _ in range(3):
        in_cgroups = {path.name for folder in layout.folders(config) for path in folder.glob("n*")}
        host.power_off(config, in_cgroups | host.running_hosts(config), layout)
        if not processes.kill_all(observe.lab_pids(config)):
            return


def _config(config: LabConfig | None) -> LabConfig:
    return config or LabConfig.from_env(os.environ)


def _require_host(name: str, config: LabConfig | None) -> LabConfig:
    """
    Return the lab's config, after checking that this is root and that host *name* has a disk.
    """
    if os.geteuid() != 0:
        raise preflight.root_required()
    config = _config(config)
    host_number = number(name)
    names = host.hosts_with_disk(config)
    if name not in names:
        raise UnknownHost(
            f"the lab has no host {name}",
            why=f"its hosts are {', '.join(names)}" if names else "it is down",
            fix=f"inv lab.up --hosts {host_number}"
            if host_number <= MAX_HOSTS
            else f"name a host from n1 to n{MAX_HOSTS}",
        )
    return config


def _require_running(name: str, config: LabConfig | None) -> LabConfig:
    config = _require_host(name, config)
    if name not in host.running_hosts(config):
        raise _stopped_error(name)
    return config


def _stopped_error(name: str) -> LabError:
    return LabError(
        f"lab host {name} is stopped",
        why="it has a disk, and no process of it runs",
        fix=f"inv lab.start {name}",
        host=name,
    )


def _require_cgroups() -> cgroups.CgroupLayout:
    layout = cgroups.detect()
    if layout is None:
        raise preflight.cgroups_required()
    return layout
