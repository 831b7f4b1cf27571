"""
The facts of GPUs and their driver, on a host under a temporary root with recorded outputs.
"""

import os
import sys
import tempfile
from pathlib import Path

import pytest

from deploy.host.protocol import FactQuery, PciDevice
from deploy.host.system import ProgramResult, System
from tests.unit.deploy.host.fakes import TemporaryHost

RECORDED = Path(__file__).parent / "recorded_gpu"
RUNNING, NEXT = "6.1.0-56-amd64", "6.1.0-57-amd64"
SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# dpkg-query of Debian 12: held, installed, interrupted, removed, and one that is no concern.
DPKG = """\
nvidia-graphics-drivers\thi \tlibcuda1\t535.309.01-0+deb12u1
nvidia-persistenced\tii \tnvidia-persistenced\t535.171.04-1~deb12u1
nvidia-graphics-drivers\tiF \tnvidia-kernel-dkms\t535.309.01-0+deb12u1
linux-signed-amd64\tii \tlinux-image-amd64\t6.1.192-2
libnvidia-container\tii \tlibnvidia-container1\t1.17.8-1
coreutils\tii \tcoreutils\t9.1-1
nvidia-graphics-drivers\tun \tnvidia-driver\t
nvidia-graphics-drivers\trc \tnvidia-kernel-support\t525.147.05-4~deb12u1
a line of something else
"""
MODINFO = """\
filename:       /lib/modules/6.1.0-56-amd64/updates/dkms/nvidia-current.ko
license:        NVIDIA
version:        535.309.01
signer:         DKMS module signing key
parm:           NVreg_DynamicPowerManagement:int
"""


class GpuPrograms:
    """
    Programs of the host by name; any other command is an AssertionError.
    """

    def __init__(self, host, **outputs):
        self.outputs = {"dpkg-query": DPKG} | outputs
        self.calls = []
        host.system.run = self.run
        host.system.ask_driver = self.ask_driver

    def run(self, argv, *, timeout_s, stdin=b"", env=None):
        assert timeout_s > 0
        self.calls.append(argv)
        answer = self.outputs[argv[0].replace("-", "_") if argv[0] == "apt-get" else argv[0]]
        answer = answer(argv) if callable(answer) else answer
        return answer if isinstance(answer, ProgramResult) else ProgramResult(0, answer, "")

    def ask_driver(self, argv, *, timeout_s):
        self.calls.append(argv)
        answer = self.outputs["nvidia-smi"]
        return answer(argv) if callable(answer) else answer


def modinfo(argv):
    _, _, release, name = argv
    is_there = release == RUNNING and name == "nvidia-current"
    return ProgramResult(0, MODINFO, "") if is_there else ProgramResult(1, "", "not found")


def write(root, path, text=""):
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(text if isinstance(text, bytes) else text.encode())
    return target


def add_device(root, address, device, kind, vendor="0x10de"):
    folder = f"sys/bus/pci/devices/{address}"
    write(root, f"{folder}/vendor", f"{vendor}\n")
    write(root, f"{folder}/device", f"0x{device}\n")
    write(root, f"{folder}/class", f"0x{kind}\n")
    return root / folder


@pytest.fixture
def host(tmp_path):
    """
    A host with one H100, the driver of Debian 12 on it, and a kernel that boots next.
    """
    temporary = TemporaryHost(tmp_path)
    add_device(tmp_path, "0000:1b:00.0", "2330", "030200")
    write(tmp_path, "usr/bin/dpkg-query")
    write(tmp_path, "proc/sys/kernel/osrelease", f"{RUNNING}\n")
    for release in (RUNNING, NEXT):
        write(tmp_path, f"lib/modules/{release}/modules.dep")
        write(tmp_path, f"boot/vmlinuz-{release}")
        write(tmp_path, f"boot/initrd.img-{release}", "x" * 100)
    write(tmp_path, f"lib/modules/{RUNNING}/build/Makefile")
    (tmp_path / "run").mkdir(exist_ok=True)
    temporary.programs = GpuPrograms(temporary, modinfo=modinfo)
    return temporary


def gpu(host):
    return host.call(FactQuery(gpu=True)).gpu


def test_a_host_says_nothing_of_gpus_unless_it_is_asked(host):
    assert host.call(FactQuery()).gpu is None


def test_devices_of_nvidia_are_found_on_the_bus(host, tmp_path):
    """
    GPUs and NVSwitches; not the sound of a GPU, and not the graphics of the board.
    """
    switch = add_device(tmp_path, "0000:05:00.0", "22a3", "068000")
    add_device(tmp_path, "0000:1b:00.1", "22ba", "040300")
    add_device(tmp_path, "0000:02:00.0", "2000", "030000", vendor="0x1a03")
    write(tmp_path, "sys/bus/pci/drivers/nvidia-nvswitch/bind")
    (switch / "driver").symlink_to(tmp_path / "sys/bus/pci/drivers/nvidia-nvswitch")
    assert gpu(host).devices == (
        PciDevice("0000:05:00.0", "22a3", "068000", "nvidia-nvswitch"),
        PciDevice("0000:1b:00.0", "2330", "030200", None),
    )


def test_kernels_have_their_modules_and_headers(host):
    running, following = gpu(host).kernels
    assert (running.release, running.running, running.headers) == (RUNNING, True, True)
    [module] = running.modules
    assert (module.module, module.version, module.license) == (
        "nvidia-current",
        "535.309.01",
        "NVIDIA",
    )
    assert (following.release, following.running, following.headers) == (NEXT, False, False)
    assert (following.bootable, following.modules) == (True, ())


def test_a_running_kernel_without_files_is_a_kernel(host, tmp_path):
    """
    Its package was removed, or the host is a container.
    """
    write(tmp_path, "proc/sys/kernel/osrelease", "6.18.44-vm\n")
    found = {k.release: (k.running, k.bootable, k.headers) for k in gpu(host).kernels}
    assert found["6.18.44-vm"] == (True, False, False)


def test_an_initramfs_is_old_once_the_modules_configuration_is_newer(host, tmp_path):
    assert not any(kernel.old_initramfs for kernel in gpu(host).kernels)
    conf = write(tmp_path, "etc/modprobe.d/slipway-nouveau.conf", "blacklist nouveau\n")
    os.utime(tmp_path / f"boot/initrd.img-{RUNNING}", (1, 1))
    os.utime(conf, (2, 2))
    assert [kernel.old_initramfs for kernel in gpu(host).kernels] == [True, False]


def test_packages_of_drivers_and_kernels_have_their_state(host):
    """
    A removed package is none; the container toolkit is told apart by its source.
    """
    packages = {one.package: one for one in gpu(host).packages}
    assert set(packages) == {
        "libcuda1",
        "nvidia-persistenced",
        "nvidia-kernel-dkms",
        "linux-image-amd64",
        "libnvidia-container1",
    }
    assert (packages["libcuda1"].held, packages["libcuda1"].complete) == (True, True)
    assert (packages["nvidia-kernel-dkms"].held, packages["nvidia-kernel-dkms"].complete) == (
        False,
        False,
    )
    assert packages["libnvidia-container1"].origin == "libnvidia-container"


@pytest.mark.parametrize(
    ("content", "expected"), [(b"\x06\0\0\0\x01", True), (b"\x06\0\0\0\0", False), (b"", False)]
)
def test_secure_boot_is_the_byte_after_the_attributes(host, tmp_path, content, expected):
    assert gpu(host).secure_boot is None
    write(tmp_path, SECURE_BOOT, content)
    assert gpu(host).secure_boot is expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [("/var/lib/dkms/mok.pub is already enrolled\n", True), ("mok.pub is not enrolled\n", False)],
)
def test_the_key_of_built_modules_is_tested(host, tmp_path, said, expected):
    assert gpu(host).mok_enrolled is None
    write(tmp_path, "var/lib/dkms/mok.pub")
    host.programs.outputs["mokutil"] = said
    assert gpu(host).mok_enrolled is expected


def test_leftovers_of_an_installer_are_named(host, tmp_path):
    """
    Modules of DKMS and of Ubuntu's packages stand elsewhere, and are none.
    """
    write(tmp_path, f"lib/modules/{RUNNING}/updates/dkms/nvidia-current.ko")
    write(tmp_path, f"lib/modules/{RUNNING}/kernel/nvidia-580/nvidia.ko")
    assert gpu(host).leftovers == ()
    write(tmp_path, "usr/bin/nvidia-uninstall")
    write(tmp_path, f"lib/modules/{RUNNING}/kernel/drivers/video/nvidia.ko.xz")
    assert gpu(host).leftovers == (
        "/usr/bin/nvidia-uninstall",
        f"/lib/modules/{RUNNING}/kernel/drivers/video/nvidia.ko.xz",
    )


def test_repositories_of_nvidia_are_named_but_not_our_own(host, tmp_path):
    lists = "etc/apt/sources.list.d"
    line = "deb https://mirror.example.com/compute/cuda/repos/debian12/x86_64/ /\n"
    write(tmp_path, f"{lists}/cuda-debian12-x86_64.list", line)
    write(tmp_path, f"{lists}/slipway-nvidia.sources", line)
    write(tmp_path, f"{lists}/off.list", f"# {line}")
    write(tmp_path, "etc/apt/sources.list", "deb http://mirror.example.com/debian bookworm main\n")
    assert gpu(host).repositories == ("/etc/apt/sources.list.d/cuda-debian12-x86_64.list",)


def test_a_repository_that_apt_does_not_read_contradicts_nothing(host, tmp_path):
    """
    What an upgrade of the distribution renames or switches off; another entry of the file counts.
    """
    folder = tmp_path / "etc/apt/sources.list.d"
    folder.mkdir(parents=True)
    uri = "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/"
    for name in ("cuda.list.save", "cuda.list.distUpgrade", "cuda.sources.disabled"):
        (folder / name).write_text(f"deb {uri} /\n")
    off = f"Types: deb\nenabled: no\nURIs: {uri}\nSuites: /\n"
    (folder / "off.sources").write_text(off)
    assert gpu(host).repositories == ()
    on = f"Types: deb\nURIs:\n {uri}\nSuites: /\n"
    (folder / "both.sources").write_text(f"{off}\n{on}")
    assert gpu(host).repositories == ("/etc/apt/sources.list.d/both.sources",)


def test_lists_are_old_after_a_day_or_a_new_source(host, tmp_path):
    assert gpu(host).old_lists
    lists = tmp_path / "var/lib/apt/lists"
    lists.mkdir(parents=True)
    now_s = host.system.wall_s()
    os.utime(lists, (now_s - 3600, now_s - 3600))
    assert not gpu(host).old_lists
    source = write(tmp_path, "etc/apt/sources.list.d/slipway-nvidia.sources")
    os.utime(source, (now_s - 60, now_s - 60))
    assert gpu(host).old_lists
    os.utime(lists, (now_s, now_s))
    assert not gpu(host).old_lists
    os.utime(lists, (now_s - 90_000, now_s - 90_000))
    assert gpu(host).old_lists


def test_the_library_is_named_by_the_file_behind_the_link(host, tmp_path):
    assert gpu(host).library is None
    folder = "usr/lib/x86_64-linux-gnu/nvidia/current"
    write(tmp_path, f"{folder}/libnvidia-ml.so.535.309.01")
    (tmp_path / folder / "libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.535.309.01")
    assert gpu(host).library == "535.309.01"
    (tmp_path / folder / "libnvidia-ml.so.535.309.01").unlink()
    assert gpu(host).library is None


def load_driver(root, text="NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.309.01\n"):
    for name in ("nvidia", "nvidia_uvm"):
        (root / "sys/module" / name).mkdir(parents=True)
    write(root, "proc/driver/nvidia/version", text)


def test_gpus_are_asked_for_where_a_driver_is_loaded(host, tmp_path):
    """
    A setting that a GPU does not have is absent, not off.
    """
    assert gpu(host).smi_problem == "no driver is loaded"
    load_driver(tmp_path)
    table = (RECORDED / "nvidia-smi-h100.csv").read_text()
    host.programs.outputs["nvidia-smi"] = ProgramResult(0, table, "")
    found = gpu(host)
    first, second = found.gpus
    assert (first.bus, first.persistence) == ("00000000:1B:00.0", True)
    assert (first.power_w, first.power_min_w, first.power_max_w) == (700.0, 200.0, 700.0)
    assert (first.ecc, first.mig) == (True, False)
    assert (second.persistence, second.ecc, second.mig) == (False, None, None)
    assert (second.power_w, second.power_min_w) == (350.0, None)
    assert found.smi_problem is None
    assert found.loaded == ("nvidia", "nvidia_uvm")


def test_the_models_and_the_number_of_gpus_come_from_the_driver(host, tmp_path):
    """
    Two of one model; the text is that of a host with driver 580.159.04.
    """
    assert (host.call(FactQuery()).gpus, host.call(FactQuery()).gpu_count) == ((), 0)
    text = (RECORDED / "information-h100.txt").read_text()
    for place in ("0000:00:06.0", "0000:00:07.0"):
        write(tmp_path, f"proc/driver/nvidia/gpus/{place}/information", text)
    facts = host.call(FactQuery())
    assert (facts.gpus, facts.gpu_count) == (("NVIDIA H100 80GB HBM3",), 2)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, "did not end within 15 s"),
        (ProgramResult(18, "Failed to initialize NVML: Driver/library version mismatch\n", ""),
         "exit status 18: Failed to initialize NVML"),
        (ProgramResult(0, "", ""), "another table"),
        (ProgramResult(0, "\x1b[31mhello\n", ""), "another table"),
        (ProgramResult(0, "a, b, c, d, e, f, g\n", ""), "another table"),
    ],
)  # fmt: skip
def test_an_nvidia_smi_that_fails_is_a_reason_and_no_gpus(host, tmp_path, answer, problem):
    load_driver(tmp_path, "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.1\n")
    host.programs.outputs["nvidia-smi"] = answer
    found = gpu(host)
    assert found.gpus == ()
    assert problem in found.smi_problem


def test_the_fabric_is_asked_for_where_a_switch_is(host, tmp_path):
    load_driver(tmp_path)
    table = (RECORDED / "nvidia-smi-h100.csv").read_text()

    def smi(argv):
        return ProgramResult(0, "Completed\nIn Progress\n" if "fabric" in argv[1] else table, "")

    host.programs.outputs["nvidia-smi"] = smi
    assert gpu(host).fabric == ()
    add_device(tmp_path, "0000:05:00.0", "22a3", "068000")
    assert gpu(host).fabric == ("Completed", "In Progress")


def test_processes_that_hold_a_device_are_named(host, tmp_path):
    folder = write(tmp_path, "proc/77/comm", "python\n").parent
    (folder / "fd").mkdir()
    (folder / "fd/3").symlink_to("/dev/nvidia0")
    write(tmp_path, "proc/78/comm", "bash\n")
    assert gpu(host).holders == ("python (pid 77)",)


# -- what apt would do


def simulate(host, recorded, status=0, **query):
    text = (RECORDED / recorded).read_text()
    errors = "\n".join(line for line in text.splitlines() if line.startswith("E: "))
    host.programs.outputs["apt_get"] = ProgramResult(status, text, errors)
    query = {"install": ("libcuda1",), "pins": "Package: x\n"} | query
    return host.call(FactQuery(**query)).simulation


@pytest.mark.parametrize(
    ("recorded", "count", "package", "version", "archive"),
    [
        ("apt-simulation-debian12.txt", 114, "libcuda1", "535.309.01-0+deb12u1",
         "Debian-Security:12/oldstable-security"),
        ("apt-simulation-debian13.txt", 141, "nvidia-open-kernel-dkms", "550.163.01-2",
         "Debian:13.8/stable"),
    ],
)  # fmt: skip
def test_a_simulation_lists_every_change(host, recorded, count, package, version, archive):
    simulation = simulate(host, recorded)
    assert simulation.problem is None
    assert len(simulation.changes) == count
    [change] = [one for one in simulation.changes if one.package == package]
    assert (change.before, change.after, change.archive) == (None, version, archive)


def test_upgrades_and_removals_are_told_apart(host):
    lines = (
        "Inst libcuda1 [535.261.03-1] (535.309.01-1 Debian:12 [amd64]) []\n"
        "Remv libnvidia-old:i386 [1.0-1]\nPurg haproxy [2.6.12-1]\nConf libcuda1 (535 D [amd64])\n"
    )
    host.programs.outputs["apt_get"] = lines
    changes = host.call(FactQuery(install=("libcuda1",))).simulation.changes
    assert [(one.package, one.before, one.after) for one in changes] == [
        ("libcuda1", "535.261.03-1", "535.309.01-1"),
        ("libnvidia-old:i386", "1.0-1", None),
        ("haproxy", "2.6.12-1", None),
    ]


def test_packages_that_do_not_fit_are_the_reason(host):
    simulation = simulate(host, "apt-simulation-open-debian12.txt", status=100)
    assert simulation.changes == ()
    assert "nvidia-open-kernel-dkms : Depends: firmware-nvidia-gsp" in simulation.problem
    assert "E: Unable to correct problems" in simulation.problem


def test_the_simulation_has_the_preferences_of_the_plan_and_of_the_host(host, tmp_path):
    """
    Those of an earlier plan do not count, and nothing is left on the host.
    """
    write(tmp_path, "etc/apt/preferences.d/00slipway-nvidia", "old")
    write(tmp_path, "etc/apt/preferences.d/theirs", "theirs")
    seen = {}

    def apt(argv):
        parts = next(word for word in argv if word.startswith("Dir::Etc::PreferencesParts="))
        folder = Path(parts.partition("=")[2])
        seen.update({path.name: path.read_text() for path in folder.iterdir()})
        assert {"-s", "--no-install-recommends"} <= set(argv)
        return ""

    host.programs.outputs["apt_get"] = apt
    host.call(FactQuery(install=("libcuda1",), pins="new"))
    assert seen == {"00slipway-nvidia": "new", "theirs": "theirs"}
    assert list((tmp_path / "run").glob("slipway-apt-*")) == []


# -- a driver that does not answer


def test_a_program_that_waits_in_a_driver_is_left_alone(tmp_path):
    """
    To wait for it would be to return its exit status.
    """
    system = TemporaryHost(tmp_path).system
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert System.ask_driver(system, slow, timeout_s=0.2) is None


def test_the_output_of_a_program_that_ends_is_returned():
    talks = [sys.executable, "-c", "print('x' * 300_000); raise SystemExit(3)"]
    result = System().ask_driver(talks, timeout_s=60.0)
    assert (result.returncode, len(result.stdout)) == (3, 300_001)
    assert System().ask_driver(["/no/such/program"], timeout_s=1.0) is None


@pytest.mark.parametrize("mode", [0o755, 0o644])
def test_a_damaged_nvidia_smi_ends_no_verb(tmp_path, mode):
    """
    `status`, which each way back begins with, asks it too.
    """
    program = tmp_path / "nvidia-smi"
    program.write_bytes(b"\x7fELF, and no more")
    program.chmod(mode)
    assert System().ask_driver([str(program)], timeout_s=1.0) is None


def test_a_program_of_the_driver_needs_no_file_system(monkeypatch):
    """
    Any process may fill /dev/shm and /tmp.
    """
    monkeypatch.setattr(tempfile, "TemporaryFile", pytest.fail)
    assert System().ask_driver(["/bin/echo", "x"], timeout_s=10.0).stdout == "x\n"
