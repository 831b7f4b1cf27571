"""
Debian's own driver on a booted host, for real: packages, modules that DKMS builds, holds.

`inv test --driver` runs it; it downloads 157 MB once and builds for some 10 minutes on two cores.
Only the hardware is made up: a GPU on the PCI bus, and the kernel that the headers are for.  The
modules cannot be loaded, so that what runs is not part of it.

SLIPWAY_DRIVER_KILLS=30 kills the host so often, at random points of the transaction.  Each attempt
starts from the disk as it was before the first one, with the packages that were downloaded.  What
the compiler said is kept too (`compiler_memo.sh`), so that an attempt takes a part of the time.
SLIPWAY_DRIVER_SEED chooses the points (default 13).
"""

import contextlib
import os
import random
import shlex
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
import yaml

from deploy.errors import LabError
from deploy.inventory.load import load_fleet
from deploy.lab import lab
from deploy.lab.mounts import unmount_below
from deploy.provision.apt_packages import Packages
from deploy.provision.driver.plan import DriverWish
from deploy.provision.driver.resource import NvidiaDriver
from deploy.provision.probe import pack_program
from deploy.provision.report_builder import ReportBuilder
from deploy.provision.resource_set import ResourceSet
from deploy.provision.supervise import WorkerInput, run_worker
from deploy.provision.worker_request import HostRequest, WorkerRequest
from tests.lab.conftest import say
from tests.lab.own_lab import booted_lab

HOST = "n1"
KILLS = int(os.environ.get("SLIPWAY_DRIVER_KILLS", "0"))
SEED = int(os.environ.get("SLIPWAY_DRIVER_SEED", "13"))
KILLED_AGAIN = 0.5  # of the runs that follow a kill
RUN_S = 5400.0
INSIDE_S = 600.0  # apt reads its lists on a busy machine
BRANCH = "535"
NON_FREE = "contrib non-free non-free-firmware"
MEMO = Path(__file__).with_name("compiler_memo.sh")
COMPILER = "/usr/bin/gcc-12"
pytestmark = pytest.mark.timeout(RUN_S + 1800.0)  # the first test also boots the host
COMPILED = "var/cache/compiled"
ARCHIVES = "var/cache/apt/archives"


@pytest.fixture(scope="module")
def config():
    with booted_lab("driver", 1) as config:
        yield config
    shutil.rmtree(config.directory / "kept", ignore_errors=True)


class GpuLabHost:
    """
    A lab host with a made-up GPU, and its fleet.

    Attributes:
        disk: What the host has written.
        kept: The same before the first attempt.
    """

    def __init__(self, config, root):
        self.config = config
        self.disk = config.host_dir(HOST) / "upper"
        self.kept = config.directory / "kept"
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
        self.fleet = self._fleet(root)
        self.make_up_hardware()

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

    # -- the disk between attempts

    def remember_compilations(self):
        """
        Place the memo where the package of the compiler would place the compiler.
        """
        self.inside(
            f"dpkg-divert --quiet --add --rename --divert {COMPILER}.real {COMPILER}; "
            f"mkdir -p /{COMPILED}"
        )
        self.inside(f"cat >{COMPILER} <<'END'\n{MEMO.read_text()}END\nchmod 0755 {COMPILER}")

    def keep(self):
        """
        Keep the disk as it is, and start the host again.
        """
        self.stop()
        shutil.rmtree(self.kept, ignore_errors=True)
        _copy(self.disk, self.kept)
        self.start()

    def keep_caches(self):
        """
        Add what was downloaded and compiled since to the kept disk.
        """
        self.stop()
        for cache in (ARCHIVES, COMPILED):
            shutil.rmtree(self.kept / cache, ignore_errors=True)
            _copy(self.disk / cache, self.kept / cache)

    def restore(self):
        """
        Start the host from the kept disk.
        """
        self.stop()
        shutil.rmtree(self.disk)
        _copy(self.kept, self.disk)
        self.start()

    def stop(self):
        """
        End all processes of the host at once, as a power cut does.
        """
        with contextlib.suppress(LabError):  # it is stopped
            lab.crash(HOST, progress=say, config=self.config)
        unmount_below(self.config.hosts)

    def start(self):
        lab.start(HOST, progress=say, config=self.config)
        self.make_up_hardware()

    # -- runs

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

        Return the last words of the transaction; None: the run had ended before.
        """
        reports = []
        runner = threading.Thread(target=lambda: reports.append(self.run()), daemon=True)
        runner.start()
        runner.join(seconds)
        was_running = runner.is_alive()
        state = self.inside("tail -n 1 /var/lib/slipway-apt/status /var/lib/slipway-apt/step; "
                            "dpkg-query -W -f '${db:Status-Abbrev}\\n' | sort | uniq -c",
                            check=False)  # fmt: skip
        self.stop()
        runner.join()
        self.start()
        return " | ".join(state.split("\n")) if was_running else None

    def assert_complete(self):
        """
        Modules of the wanted version, nothing half configured, all on hold.
        """
        assert self.inside("dpkg --audit") == ""
        built = f"modinfo -k {self.release} -F version nvidia-current"
        assert self.inside(built).strip() == self.version
        held = set(self.inside("apt-mark showhold").split())
        assert {"libcuda1", "nvidia-kernel-dkms", "libnvidia-ml1", "nvidia-persistenced"} <= held


def _copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    # Extended attributes too: those of an overlay say what is deleted.
    subprocess.run(["cp", "-a", "--no-target-directory", source, target], check=True)


@pytest.fixture(scope="module")
def host(config, tmp_path_factory):
    return GpuLabHost(config, tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def installed(host):
    """
    The host after one undisturbed transaction, and what that took.
    """
    if KILLS:
        host.remember_compilations()
        host.keep()
    report = host.run()
    say(f"undisturbed: {report.took_s:.0f} s")
    assert report.failed == ()
    return host


def test_the_driver_is_installed_and_a_second_run_does_nothing(installed):
    """
    Modules of the wanted version, all of it on hold.
    """
    installed.assert_complete()
    again = installed.run()
    assert (again.failed, again.changes) == ((), ())


def test_an_upgrade_of_the_host_leaves_the_driver_alone(installed):
    """
    apt has nothing to say about it either.
    """
    planned = installed.inside("apt-get -s dist-upgrade")
    assert "Inst nvidia" not in planned
    assert "Inst libcuda1" not in planned


@pytest.mark.skipif(not KILLS, reason="SLIPWAY_DRIVER_KILLS is not set")
@pytest.mark.timeout(1800.0 + 900.0 * KILLS)
def test_whatever_is_killed_the_driver_is_installed_in_the_end(installed):
    """
    The next run completes what a kill left, and so does the one after a kill of that.
    """
    host, rng = installed, random.Random(SEED)
    host.keep_caches()
    host.restore()
    whole_s = host.run().took_s
    say(f"undisturbed, with all that is kept: {whole_s:.0f} s")
    kills, completions = 0, []
    while kills < KILLS:
        host.restore()
        while kills < KILLS:
            seconds = rng.uniform(1.0, whole_s)
            state = host.kill_after(seconds)
            if state is None:
                break
            kills += 1
            say(f"kill {kills} of {KILLS}, after {seconds:.0f} s: {state}")
            if rng.random() >= KILLED_AGAIN:
                break
        report = host.run()
        assert report.failed == (), f"after kill {kills}: {report.failed}"
        host.assert_complete()
        completions.append(round(report.took_s))
        say(f"complete after kill {kills}, in {report.took_s:.0f} s")
    say(f"{kills} kills; {len(completions)} completions, in {completions} s")
    again = host.run()
    assert (again.failed, again.changes) == ((), ())
