"""
State of a lab, read from the kernel: its hosts, its processes, and everything it has created.
"""

import shutil

from deploy.lab import cgroups, host, network, processes
from deploy.lab.commands import environment
from deploy.lab.config import HostState, LabConfig, LabHost, LabStatus
from deploy.lab.mounts import mounted_below


def read_status(config: LabConfig) -> LabStatus:
    """
    Return the state of every host that has a disk.
    """
    layout = cgroups.detect()
    running = tuple(processes.all_processes())
    containers = processes.containers(config, running)
    cut_off = network.cut_hosts(config) if containers else frozenset()
    hosts = []
    for name in host.hosts_with_disk(config):
        init = processes.leader_of(containers[name], running) if name in containers else None
        if init is None or layout is None:
            state = HostState.STOPPED
        elif layout.is_frozen(config, name):
            state = HostState.FROZEN
        else:
            state = HostState.CUT if name in cut_off else HostState.RUNNING
        memory_bytes = layout.memory_bytes(config, name) if init and layout else 0
        hosts.append(
            LabHost(
                name=name,
                address=config.address(name),
                state=state,
                leader=init,
                memory_mib=memory_bytes // 2**20,
                disk_mib=host.disk_mib(config, name),
            )
        )
    return LabStatus(config.directory, config.bridge, config.subnet, tuple(hosts))


def find_leftovers(config: LabConfig) -> list[str]:
    """
    Return what the kernel still has of the lab, each as kind and name: "mount /x", "link slip0".
    """
    layout = cgroups.detect()
    folders = layout.folders(config) if layout else ()
    leftovers = [f"process {pid}" for pid in sorted(lab_pids(config))]
    leftovers += [f"mount {path}" for path in mounted_below(config.hosts)]
    leftovers += [f"cgroup {path}" for path in folders]
    leftovers += [f"link {name}" for name in network.links(config)]
    if has_nft():
        tables = sorted(network.tables())
        leftovers += [f"nft table {kind} {name}" for kind, name in tables if name == config.table]
    return leftovers


def lab_pids(config: LabConfig) -> frozenset[int]:
    """
    Return the process ids of the lab: supervisors, containers, inits, and members of its cgroups.
    """
    layout = cgroups.detect()
    running = tuple(processes.all_processes())
    containers = processes.containers(config, running)
    inits = (processes.leader_of(pid, running) for pid in containers.values())
    return frozenset(
        {
            *processes.supervisors(config, running).values(),
            *containers.values(),
            *(init for init in inits if init is not None),
            *cgroups.process_ids(layout.folders(config) if layout else ()),
        }
    )


def has_nft() -> bool:
    """
    Return True if this machine has the command nft.
    """
    return shutil.which("nft", path=environment()["PATH"]) is not None
