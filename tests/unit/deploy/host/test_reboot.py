import pytest

from deploy.host.protocol import DeadmanArm, DoorSet, FactQuery, Reboot
from deploy.host.system import ProgramResult
from tests.local_host import serve

BUNDLE = "a" * 64


@pytest.fixture
def kernels(host):
    boot = host.root / "boot"
    boot.mkdir()

    def install(*names, link=None):
        for name in names:
            (boot / f"vmlinuz-{name}").touch()
        if link:
            (host.root / "vmlinuz").symlink_to(f"boot/vmlinuz-{link}")

    return install


def write(host, path, text):
    target = host.root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def causes(host):
    reasons = host.call(FactQuery()).reboot_reasons
    assert reasons == host.status().reboot_reasons
    return {reason.cause: reason.observed for reason in reasons}


def test_a_host_that_needs_no_reboot_says_none(host, kernels):
    kernels(host.system.kernel_release)
    assert causes(host) == {}


def test_packages_that_asked_for_a_reboot_are_named(host):
    """
    Each once; the mark alone is enough.
    """
    run = host.root / "run"
    (run / "reboot-required").write_text("*** System restart required ***\n")
    assert causes(host) == {"packages": "/run/reboot-required is there"}
    (run / "reboot-required.pkgs").write_text("libc6\ndbus\nlibc6\n")
    assert causes(host) == {"packages": "dbus, libc6"}


def test_another_kernel_than_the_next_boot_starts_is_a_reason(host, kernels):
    """
    Versions are compared as numbers, and a link of the distribution counts before them.
    """
    host.system.kernel_release = "6.1.0-9-amd64"
    kernels("6.1.0-9-amd64", "6.1.0-18-amd64")
    assert causes(host) == {"kernel": "6.1.0-9-amd64 runs, 6.1.0-18-amd64 is installed"}
    kernels(link="6.1.0-9-amd64")
    assert causes(host) == {}


def test_a_container_boots_no_kernel(host, kernels):
    kernels("6.1.0-99-amd64")
    assert "kernel" in causes(host)  # the control
    (host.root / "run/systemd").mkdir()
    (host.root / "run/systemd/container").write_text("systemd-nspawn")
    assert causes(host) == {}


@pytest.mark.parametrize("name", ["nvidia", "nvidia-current", "nvidia-current-open"])
@pytest.mark.parametrize(
    ("installed", "observed"),
    [
        ("580.65.06", "570.26 is loaded, 580.65.06 is installed"),
        ("570.26", None),
        (None, None),  # no module for this kernel
    ],
)
def test_a_driver_that_is_not_loaded_is_a_reason(host, name, installed, observed):
    """
    Debian gives the module other names.
    """
    write(host, "sys/module/nvidia/version", "570.26\n")
    host.system.installed_driver, host.system.driver_module = installed, name
    assert causes(host) == ({"driver": observed} if observed else {})


@pytest.mark.parametrize(
    ("shown", "license_", "observed"),
    [
        ("NVRM: Open Kernel Module", "NVIDIA", "open modules 570.26 are loaded, proprietary ones"),
        ("NVRM: Kernel Module", "Dual MIT/GPL", "proprietary modules 570.26 are loaded, open ones"),
        ("NVRM: Open Kernel Module", "Dual MIT/GPL", None),
        ("NVRM: Kernel Module", "NVIDIA", None),
    ],
)
def test_another_flavour_of_the_modules_is_a_reason(host, shown, license_, observed):
    write(host, "sys/module/nvidia/version", "570.26\n")
    write(host, "proc/driver/nvidia/version", f"{shown} 570.26\n")
    host.system.installed_driver, host.system.driver_license = "570.26", license_
    assert causes(host) == ({"driver": f"{observed} are installed"} if observed else {})


@pytest.mark.parametrize("name", ["nouveau", "nova_core"])
def test_a_driver_of_the_kernel_that_was_switched_off_is_a_reason(host, name):
    write(host, f"sys/module/{name}/refcnt", "0\n")
    assert causes(host) == {}  # a host whose GPUs nobody asked for
    write(host, "etc/modprobe.d/slipway-nouveau.conf", "blacklist nouveau\n")
    assert causes(host) == {"driver": f"{name} is loaded, and off from the next boot"}


@pytest.mark.parametrize(
    ("option", "row", "observed"),
    [
        ("ecc-config=0", "Enabled, Disabled, Disabled, Disabled", "ECC of 00000000:1B:00.0"),
        ("multi-instance-gpu=0", "Enabled, Enabled, Enabled, Disabled", "MIG of 00000000:1B:00.0"),
        ("ecc-config=0", "Disabled, Disabled, [N/A], [N/A]", None),
        ("power-limit=400", "Enabled, Disabled, Enabled, Disabled", None),  # not of the fleet file
    ],
)
def test_a_setting_of_a_gpu_that_waits_for_a_boot_is_a_reason(host, option, row, observed):
    write(host, "sys/module/nvidia/version", "570.26\n")
    write(host, "etc/systemd/system/slipway-gpu.service", f"ExecStart=nvidia-smi --{option}\n")
    line = f"00000000:1B:00.0, Enabled, 700.00, 200.00, 700.00, {row}\n"
    host.system.ask_driver = lambda argv, *, timeout_s: ProgramResult(0, line, "")
    wanted = {"gpu": f"changes with the next boot: {observed}"} if observed else {}
    assert causes(host) == wanted


def test_the_door_is_kept_over_a_boot(leased):
    """
    Closed it stays closed, and the weights of the slots are what they were.
    """
    host = leased
    serve(host.system, BUNDLE)
    assert host.status().is_open is True
    assert host.call(DoorSet(is_open=False)).is_open is False
    host.system.reboot()
    assert host.status().is_open is False
    assert host.system.proxy.weights == {"blue": 100, "green": 0}
    host.lease(owner="ann@desk:2")
    assert host.call(DoorSet(is_open=True)).is_open is True
    host.system.reboot()
    assert host.status().is_open is True


def test_only_a_closed_and_settled_host_is_rebooted(leased):
    """
    And once, however often the request comes.
    """
    host, reboots = leased, []
    host.system.at_reboot = lambda: (reboots.append(1), host.system.reboot())
    boot_id = host.status().boot_id
    assert "door is open" in host.refusal(Reboot(boot_id)).why
    host.call(DoorSet(is_open=False))
    host.call(DeadmanArm("green", "blue"))
    assert "release r1 is not confirmed" in host.refusal(Reboot(boot_id)).why
    host.layout.pending.unlink()
    assert reboots == []

    assert host.call(Reboot(boot_id)).is_begun
    assert host.refusal(Reboot(boot_id)).kind == "LeaseLost"  # it ended with the boot
    host.lease(owner="ann@desk:2")
    assert not host.call(Reboot(boot_id)).is_begun
    assert reboots == [1]
    assert Reboot.VERB in {line["step"] for line in host.journal()}
