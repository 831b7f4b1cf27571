"""
Lab hosts behave like real machines in everything that a release depends on.

These tests break hosts of the spare lab.  They only read the default lab.
"""

import re
import subprocess
from collections.abc import Callable

import pytest

from deploy.errors import LabError, UnknownHost
from deploy.lab import lab
from deploy.lab.config import HostState, LabConfig, LabStatus
from tests.lab.conftest import say

Eventually = Callable[..., None]


def ssh(
    config: LabConfig | None, name: str, command: str, *options: str
) -> subprocess.CompletedProcess[str]:
    program, *rest = lab.ssh_argv(name, config=config)
    return subprocess.run(
        [program, *options, *rest, command], capture_output=True, text=True, timeout=60, check=False
    )


def state(config: LabConfig, name: str) -> HostState:
    return next(h.state for h in lab.status(config=config).hosts if h.name == name)


def leader(config: LabConfig, name: str) -> int | None:
    return next(h.leader for h in lab.status(config=config).hosts if h.name == name)


def boot_id(config: LabConfig, name: str) -> str:
    return ssh(config, name, "cat /proc/sys/kernel/random/boot_id").stdout


def test_every_host_answers_over_ssh_with_its_own_name(lab_hosts: LabStatus) -> None:
    """
    With strict host-key checking, from the first connection on.
    """
    names = [host.name for host in lab_hosts.hosts]

    assert names[:4] == ["n1", "n2", "n3", "n4"]
    assert [ssh(None, name, "hostname").stdout.strip() for name in names] == names
    assert {host.state for host in lab_hosts.hosts} == {HostState.RUNNING}


def test_a_host_is_a_complete_and_bare_debian(spare: LabConfig) -> None:
    """
    systemd is up without a failed unit, and nothing that provisioning installs exists.
    """
    answers = ssh(
        spare,
        "n1",
        ". /etc/os-release; echo $ID $VERSION_ID; systemctl is-system-running --wait;"
        "systemctl --failed --no-legend; command -v haproxy uv; id -u slipway || echo no user",
    ).stdout.splitlines()

    assert answers == ["debian 12", "running", "no user"]


def test_a_host_with_another_key_is_refused(spare: LabConfig) -> None:
    """
    Strict checking refuses a key that was not recorded; a wipe restores the recorded key.
    """
    change = (
        "ssh-keygen -q -t ed25519 -N '' -f /tmp/k && cat /tmp/k > /etc/ssh/ssh_host_ed25519_key"
    )
    assert ssh(spare, "n2", "true").returncode == 0
    lab.inside("n2", ["sh", "-c", f"{change} && systemctl restart ssh"], config=spare)

    refused = ssh(spare, "n2", "true")

    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr
    lab.wipe("n2", progress=say, config=spare)
    assert ssh(spare, "n2", "true").returncode == 0


GRAB_200_MIB = 'python3 -c "print(len(bytearray(200 << 20)))"'
FORK_50 = (
    "python3 -c \"import subprocess as s; p = [s.Popen(['sleep', '1']) for _ in range(50)];"
    ' print(len(p))"'
)


@pytest.mark.parametrize(
    ("limit", "command", "printed"),
    [
        pytest.param("MemoryMax=64M", GRAB_200_MIB, "209715200", id="memory"),
        pytest.param("TasksMax=20", FORK_50, "50", id="tasks"),
    ],
)
def test_a_limit_of_a_unit_is_enforced(
    spare: LabConfig, limit: str, command: str, printed: str
) -> None:
    """
    A command that exceeds its unit's limit fails; without the limit it succeeds.
    """
    run = "systemd-run --quiet --wait --pipe --collect"

    limited = ssh(spare, "n1", f"{run} --property={limit} {command}")
    unlimited = ssh(spare, "n1", f"{run} {command}")

    assert limited.returncode != 0
    assert printed not in limited.stdout
    assert (unlimited.returncode, unlimited.stdout.strip()) == (0, printed)


def test_memory_max_kills(spare: LabConfig) -> None:
    """
    The kernel ends the program with SIGKILL.
    """
    result = ssh(
        spare,
        "n1",
        f"systemd-run --quiet --wait --unit=grabber --property=MemoryMax=64M {GRAB_200_MIB};"
        "systemctl show --property=ExecMainCode,ExecMainStatus grabber;"
        "systemctl reset-failed grabber",
    )

    # Source: waitid(2): 2 is CLD_KILLED, and the status is the signal.
    assert result.stdout.split() == ["ExecMainCode=2", "ExecMainStatus=9"]


def test_cpu_quota_is_enforced(spare: LabConfig) -> None:
    """
    A unit with a quota of 0.1 core uses less than 0.2; without the quota it uses more.
    """
    # CPU time divided by elapsed time: other load on the machine can only lower it.
    spin = (
        "python3 -c 'import time; b = time.monotonic(), time.process_time()\n"
        "while time.monotonic() < b[0] + 1.5: pass\n"
        "print((time.process_time() - b[1]) / (time.monotonic() - b[0]))'"
    )
    run = "systemd-run --quiet --wait --pipe --collect"

    limited = float(ssh(spare, "n1", f"{run} --property=CPUQuota=10% {spin}").stdout)
    unlimited = float(ssh(spare, "n1", f"{run} {spin}").stdout)

    assert limited < 0.2 < unlimited


def test_a_reboot_brings_the_host_back_with_another_boot_id(
    spare: LabConfig, eventually: Eventually
) -> None:
    """
    After `systemctl reboot` on the host; the disk is the same.
    """
    before = boot_id(spare, "n1")
    ssh(spare, "n1", "echo kept > /root/mark; systemctl reboot")

    eventually(lambda: boot_id(spare, "n1") not in {"", before}, True)

    assert ssh(spare, "n1", "cat /root/mark").stdout == "kept\n"


def test_a_cut_host_is_silent_and_lives(spare: LabConfig, eventually: Eventually) -> None:
    """
    No frame reaches or leaves it, its link stays up, and `heal` restores the connection.
    """
    ping = ["ping", "-c1", "-W1", spare.gateway]
    assert lab.inside("n1", ping, config=spare).returncode == 0
    before = boot_id(spare, "n1")

    lab.cut("n1", config=spare)

    assert state(spare, "n1") is HostState.CUT
    assert ssh(spare, "n1", "true", "-o", "ConnectTimeout=2").returncode == 255
    assert lab.inside("n1", ping, config=spare).returncode == 1
    assert "1" in lab.inside("n1", ["cat", "/sys/class/net/host0/carrier"], config=spare).stdout
    assert ssh(spare, "n2", f"ping -c1 -W1 {spare.address('n1')}").returncode == 1
    lab.heal("n1", config=spare)
    eventually(lambda: boot_id(spare, "n1"), before)
    assert state(spare, "n1") is HostState.RUNNING


def test_a_cut_outlasts_a_reboot(spare: LabConfig, eventually: Eventually) -> None:
    """
    The host is still cut off after it has booted again.
    """
    lab.cut("n2", config=spare)
    try:
        before = leader(spare, "n2")
        lab.inside("n2", ["systemctl", "reboot"], config=spare)

        eventually(lambda: leader(spare, "n2") not in {None, before}, True, timeout_s=60)
        is_active = ["systemctl", "is-active", "ssh"]
        eventually(lambda: lab.inside("n2", is_active, config=spare).stdout, "active\n")

        assert ssh(spare, "n2", "true", "-o", "ConnectTimeout=3").returncode == 255
    finally:
        lab.heal("n2", config=spare)
    eventually(lambda: ssh(spare, "n2", "true").returncode, 0)


def test_a_frozen_host_hangs_and_thaws_where_it_was(spare: LabConfig) -> None:
    """
    The kernel accepts connections, no process answers, and after `thaw` the host continues.
    """
    before = boot_id(spare, "n1")

    lab.freeze("n1", config=spare)

    assert state(spare, "n1") is HostState.FROZEN
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(
            [*lab.ssh_argv("n1", config=spare), "-o", "ConnectTimeout=30", "true"],
            capture_output=True,
            timeout=2,
            check=False,
        )
    assert ssh(spare, "n2", "true").returncode == 0
    assert lab.inside("n1", ["hostname"], config=spare).stdout == "n1\n"
    lab.thaw("n1", config=spare)
    assert boot_id(spare, "n1") == before


def test_a_frozen_host_can_crash(spare: LabConfig) -> None:
    """
    `crash` works although frozen processes do not react to SIGKILL.
    """
    lab.freeze("n1", config=spare)

    lab.crash("n1", progress=say, config=spare)

    assert state(spare, "n1") is HostState.STOPPED
    lab.start("n1", progress=say, config=spare)
    assert state(spare, "n1") is HostState.RUNNING


def test_a_crash_keeps_the_disk_and_a_wipe_does_not(spare: LabConfig) -> None:
    """
    A file survives a power cut, and not a wipe.
    """
    before = boot_id(spare, "n1")
    ssh(spare, "n1", "echo kept > /root/mark")

    lab.crash("n1", progress=say, config=spare)
    assert state(spare, "n1") is HostState.STOPPED
    lab.start("n1", progress=say, config=spare)

    assert boot_id(spare, "n1") not in {"", before}
    assert ssh(spare, "n1", "cat /root/mark").stdout == "kept\n"
    lab.wipe("n1", progress=say, config=spare)
    assert ssh(spare, "n1", "cat /root/mark").returncode == 1


def test_hosts_reach_the_package_mirrors(spare: LabConfig) -> None:
    """
    With the machine's own apt configuration, through the bridge.
    """
    update = ssh(spare, "n1", "apt-get update && apt-cache policy haproxy")

    assert update.returncode == 0, update.stderr
    assert re.search(r"Candidate: 2\.6", update.stdout)
    assert "Err:" not in update.stdout


def test_a_stopped_host_and_an_unknown_one_have_different_errors(spare: LabConfig) -> None:
    """
    A stopped host has to be started; an unknown name is a mistake.
    """
    lab.crash("n2", progress=say, config=spare)

    with pytest.raises(LabError, match="n2 is stopped"):
        lab.inside("n2", ["true"], config=spare)
    with pytest.raises(UnknownHost, match="no host n9"):
        lab.cut("n9", config=spare)
    with pytest.raises(LabError, match="'gpu-1' is not the name of a lab host"):
        lab.crash("gpu-1", progress=say, config=spare)
    lab.start("n2", progress=say, config=spare)


def test_a_host_that_does_not_come_up_shows_its_console(spare: LabConfig) -> None:
    """
    The error has the last lines of the console, at once and not after the boot timeout.
    """
    script = "printf '#!/bin/sh\\necho no disk to boot from\\nexit 1\\n' > /usr/local/sbin/lab-init"
    ssh(spare, "n2", f"cp /usr/local/sbin/lab-init /root && {script}")
    lab.crash("n2", progress=say, config=spare)

    with pytest.raises(LabError, match="n2 did not come up") as raised:
        lab.start("n2", progress=say, config=spare)

    assert "no disk to boot from" in raised.value.why
    lab.wipe("n2", progress=say, config=spare)
