"""
Debian's own driver on a booted host, for real: packages, modules that DKMS builds, holds.

`inv test --driver` runs it; it downloads 157 MB and builds for some 10 minutes on two quiet cores.
Only the hardware is made up: a GPU on the PCI bus, and the kernel that the headers are for.  The
modules cannot be loaded, so that what runs is not part of it.

SLIPWAY_DRIVER_KILLS=30 kills the host so often, at random points.
"""

import contextlib
import os
import random
import shlex
import threading
import time

import pytest
import yaml

from deploy.errors import LabError
from deploy.inventory.load import load_fleet
from deploy.lab import lab
from deploy.lab.config import LabConfig
from deploy.provision.apt_packages import Packages
from deploy.provision.driver.plan import DriverWish
from deploy.provision.driver.resource import NvidiaDriver
from deploy.provision.probe import pack_program
from deploy.provision.report_builder import ReportBuilder
from deploy.provision.resource_set import ResourceSet
from deploy.provision.supervise import WorkerInput, run_worker
from deploy.provision.worker_request import HostRequest, WorkerRequest
from tests.lab.conftest import bring_up, say

HOST = "n1"
KILLS = int(os.environ.get("SLIPWAY_DRIVER_KILLS", "0"))
RUN_S = 5400.0
INSIDE_S = 600.0  # apt reads its lists on a busy machine
LONGEST_S = 900.0  # of a run, before it is killed
BRANCH = "535"
NON_FREE = "contrib non-free non-free-firmware"


@pytest.fixture(scope="module")
def config():
    default = LabConfig.from_env(os.environ)
    made = LabConfig(
        directory=default.directory.with_name("lab-driver"),
        bases=default.bases,
        bridge="slpdrv",
        prefix="10.77.65",
    )
    lab.down(progress=say, config=made)
    bring_up(1, made)
    yield made
    lab.down(progress=say, config=made)


class GpuLabHost:
    """
    A lab host with a made-up GPU, and its fleet.
    """

    def __init__(self, config, root):
        self.config = config
        lists = "/etc/apt/sources.list /etc/apt/sources.list.d/*"
        self.inside("grep -q non-free /etc/apt/sources.list /etc/apt/sources.list.d/* || "
                    f"sed -i -E 's/^(deb .* main)$/\\1 {NON_FREE}/; "
                    f"s/^(Components: main)$/\\1 {NON_FREE}/' "
                    f"$(ls {lists} 2>/dev/null)")  # fmt: skip
        self.inside("apt-get -q update")
        shown = self.inside("apt-cache show linux-headers-amd64 | grep -m1 ^Depends:")
        self.release = next(
            word.removeprefix("linux-headers-") for word in shown.split() if "-amd64" in word
        )
        madison = self.inside("apt-cache madison nvidia-kernel-dkms").splitlines()
        self.version = madison[0].split("|")[1].strip().partition("-")[0]
        assert self.version.startswith(BRANCH)
        self.make_up_hardware()
        self.fleet = self._fleet(root)

    def _fleet(self, root):
        (root / "inventories").mkdir()
        keys = self.config.keys
        document = {
            "row": "torch-2.3-cu121",
            "ssh": {"key": str(keys / "id_ed25519"), "known_hosts": str(keys / "known_hosts")},
            "driver": {"version": self.version},
            "signing": {
                "identity": "lab@slipway",
                "key": str(keys / "signing_ed25519"),
                "allowed_signers": str(keys / "allowed_signers"),
            },
            "hosts": {HOST: {"address": self.config.address(HOST)}},
        }
        (root / "inventories" / "driver.yml").write_text(yaml.safe_dump(document))
        return load_fleet("driver", root=root)

    def inside(self, script, check=True):
        argv = ["sh", "-c", script]
        done = lab.inside(HOST, argv, timeout_s=INSIDE_S, config=self.config)
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def make_up_hardware(self):
        """
        Show one H100 and a kernel of Debian, until the host stops.
        """
        device = "/sys/bus/pci/devices/0000:1b:00.0"
        self.inside(
            "mountpoint -q /sys/bus/pci/devices || { mount -t tmpfs made-up /sys/bus/pci/devices; "
            f"mkdir {device}; echo 0x10de >{device}/vendor; echo 0x2330 >{device}/device; "
            f"echo 0x030200 >{device}/class; " + "}"
        )
        self.inside(
            f"echo {shlex.quote(self.release)} >/run/osrelease; "
            "mount --bind /run/osrelease /proc/sys/kernel/osrelease"
        )

    def run(self):
        """
        Bring the host to its driver, as `inv provision` does; return the report.
        """
        wish = DriverWish(
            section=self.fleet.driver, version=self.version, row="torch-2.3-cu121", minimum="535"
        )
        resources = ResourceSet(
            requirements=(),
            placed=(Packages(names=("python3",)), NvidiaDriver(wish=wish)),
            running=(),
        )
        request = WorkerRequest(
            packed_program=pack_program(),
            hosts=(HostRequest.of(self.fleet.hosts[0], resources, 0),),
        )
        builder = ReportBuilder([HOST], lambda event: say(f"{event.kind.value} {event.change}"))
        started_s = time.monotonic()
        run_worker(request, builder, started_s + RUN_S, WorkerInput())
        return builder.report(False, time.monotonic() - started_s)

    def kill_after(self, seconds):
        """
        Run, and kill the host after *seconds*; then start it again.
        """
        runner = threading.Thread(target=self.run, daemon=True)
        runner.start()
        runner.join(seconds)
        with contextlib.suppress(LabError):  # it was over
            lab.crash(HOST, progress=say, config=self.config)
        runner.join()
        lab.start(HOST, progress=say, config=self.config)
        self.make_up_hardware()


@pytest.fixture(scope="module")
def host(config, tmp_path_factory):
    return GpuLabHost(config, tmp_path_factory.mktemp("fleet"))


def test_whatever_is_killed_the_driver_is_installed_in_the_end(host):
    """
    Modules of the wanted version, nothing half configured, all on hold; a second run does nothing.
    """
    rng = random.Random(13)
    for number in range(KILLS):
        seconds = rng.uniform(1.0, LONGEST_S)
        say(f"kill {number + 1} of {KILLS}, after {seconds:.0f} s")
        host.kill_after(seconds)
    report = host.run()
    say(f"took {report.took_s:.0f} s")
    assert report.failed == ()
    assert host.inside("dpkg --audit") == ""
    built = f"modinfo -k {host.release} -F version nvidia-current"
    assert host.inside(built).strip() == host.version
    held = set(host.inside("apt-mark showhold").split())
    assert {"libcuda1", "nvidia-kernel-dkms", "libnvidia-ml1", "nvidia-persistenced"} <= held
    again = host.run()
    assert (again.failed, again.changes) == ((), ())


def test_an_upgrade_of_the_host_leaves_the_driver_alone(host):
    """
    apt has nothing to say about it either.
    """
    planned = host.inside("apt-get -s dist-upgrade")
    assert "Inst nvidia" not in planned
    assert "Inst libcuda1" not in planned
