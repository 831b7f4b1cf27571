"""
Over files as the kernel writes them, below a directory.
"""

import os

import pytest

from runtime.engines.base.host_memory import AVAILABLE, HostMemory, read_host_memory

MIB = 2**20
V2_MOUNT = "35 24 0:31 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
OTHER_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"


class Host:
    """
    The files of one host: an API process, 100, and its engine, 101, beside others.
    """

    def __init__(self, root):
        self.root = root
        self.write(
            "proc/meminfo", "MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\nHugePages: 0\n"
        )
        self.process(1, 0, 5)
        self.process(100, 1, 64)
        self.process(101, 100, 200, name="py) 1 (thon")
        self.process(102, 101, 36)
        self.process(200, 1, 5000)

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def process(self, pid, parent, mib, name="python"):
        self.write(f"proc/{pid}/stat", f"{pid} ({name}) S {parent} 1 1 0 -1\n")
        status = (
            f"Name:\t{name}\nRssAnon:\t{(mib - 4) * 1024} kB\nRssFile:\t9 kB\nRssShmem:\t4096 kB\n"
        )
        self.write(f"proc/{pid}/status", status)

    def v2(self, path, *, limit="max", used=0, cached=0, high="max", own="/slot.slice/blue"):
        self.write("proc/self/cgroup", f"0::{own}\n")
        self.write("proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/root rw\n" + V2_MOUNT)
        folder = f"sys/fs/cgroup{path}"
        self.write(f"{folder}/memory.max", f"{limit}\n")
        self.write(f"{folder}/memory.high", f"{high}\n")
        self.write(f"{folder}/memory.current", f"{used}\n")
        stat = f"anon 1\ninactive_file {cached}\nactive_file 1048576\nslab_reclaimable 1048576\n"
        self.write(f"{folder}/memory.stat", stat)

    def v1(self, path, *, limit=2**63 - 4096, used=0, cached=0, own="/slot.slice/blue"):
        cgroup = f"9:name=systemd:/\n4:memory:{own}\n2:cpu,cpuacct:/elsewhere\n0::/\n"
        self.write("proc/self/cgroup", cgroup)
        self.write("proc/self/mountinfo", OTHER_MOUNT + V1_MOUNT)
        folder = f"sys/fs/cgroup/memory{path}"
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{used}\n")
        self.write(f"{folder}/memory.stat", f"inactive_file 7\ntotal_inactive_file {cached}\n")

    def read(self, pid=100):
        return read_host_memory(pid, self.root)


OWN = 300 * MIB  # of 100, 101 and 102


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def test_without_a_limit_it_is_half_of_what_the_host_has_available(host):
    """
    And what the runtime's own processes use already: it is theirs.
    """
    wanted = HostMemory((16 * 1024 * MIB + OWN) // 2, AVAILABLE)
    assert host.read() == wanted
    host.v2("/slot.slice/blue", used=OWN)
    assert host.read() == wanted
    host.v1("/slot.slice/blue", used=OWN)
    assert host.read() == wanted


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_limit_of_the_cgroup_counts(host, version):
    """
    Its own processes and cached files leave the whole limit; other processes take a part.
    """
    write = getattr(host, version)
    write("/slot.slice/blue", limit=3 << 30, used=OWN + 900 * MIB, cached=900 * MIB)
    found = host.read()
    assert found.total_bytes == 3 << 30
    assert found.limit.startswith("/sys/fs/cgroup")
    assert "/slot.slice/blue/memory." in found.limit
    write("/slot.slice/blue", limit=3 << 30, used=OWN + 900 * MIB, cached=800 * MIB)
    assert 0 < (3 << 30) - host.read().total_bytes <= 100 * MIB


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_limit_above_the_unit_counts_too(host, version):
    """
    The tightest wins, also that of the whole mount.
    """
    write = getattr(host, version)
    write("/slot.slice/blue", limit=3 << 30)
    write("/slot.slice", limit=2 << 30, used=OWN + (1 << 30), cached=0)
    found = host.read()
    assert abs(found.total_bytes - (1 << 29)) <= 2 * MIB
    assert "/slot.slice/memory." in found.limit
    write("", limit=1 << 29)
    assert host.read().total_bytes == 1 << 28


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("taken", [0.0, 0.1, 0.5, 1.0])
def test_two_slots_never_plan_more_than_the_host_has(host, version, taken):
    """
    The second starts when the first has touched none, a part or all of what it planned, and gets
    as much.  A limit of its own unit is not divided.
    """
    unit = "/slipway.slice/slipway-runtime@blue.service"
    write = getattr(host, version)
    total = 16 * 1024 * MIB + OWN  # what both may have
    write(unit, own=unit, used=OWN)
    first = host.read().total_bytes
    used = int(taken * (first - OWN)) // 1024 * 1024
    host.write("proc/meminfo", f"MemAvailable: {(total - OWN - used) // 1024} kB\n")
    write("/slipway.slice", own=unit, used=OWN + used)
    second = host.read().total_bytes
    assert first + second <= total
    assert second >= first - MIB * 3
    write(unit, own=unit, used=OWN, limit=3 << 30)
    assert host.read().total_bytes == 3 << 30


def test_memory_high_is_a_limit(host):
    """
    Above it the kernel slows a process down until it seems dead.
    """
    host.v2("/slot.slice/blue", limit=3 << 30, high=2 << 30)
    assert host.read().total_bytes == 2 << 30
    assert host.read().limit.endswith("memory.high")


@pytest.mark.parametrize("own", ["/", "/../outside", "/docker/abc"])
def test_in_a_container_the_mount_is_the_own_cgroup(host, own):
    """
    With a namespace, without one, and with a path that the mount does not have.
    """
    host.v2("", limit=2 << 30, own=own)
    if own == "/docker/abc":
        mount = V2_MOUNT.replace(" / /sys", " /docker/abc /sys")
        host.write("proc/self/mountinfo", mount)
    assert host.read().total_bytes == 2 << 30


def test_what_cannot_be_read_is_no_limit(tmp_path):
    """
    An empty /proc, broken files, and a full cgroup, which leaves nothing rather than less.
    """
    assert read_host_memory(100, tmp_path) is None
    host = Host(tmp_path)
    host.v2("/slot.slice/blue", limit="many")
    host.write("proc/self/cgroup", "nonsense\n\n0::/slot.slice/blue\n")
    host.write("proc/self/mountinfo", "nonsense\n- -\n" + V2_MOUNT)
    host.write("proc/100/stat", "nonsense")
    host.write("proc/meminfo", "MemAvailable: much kB\n")
    assert host.read() is None
    host.v2("/slot.slice/blue", limit=1 << 30, used=9 << 30)
    assert host.read().total_bytes == 0


def test_this_host_says_something():
    """
    The files of the real kernel are read.
    """
    found = read_host_memory(os.getpid())
    assert found is not None
    assert found.total_bytes > 50 * MIB
