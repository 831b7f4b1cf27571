import itertools
import os

import pytest

from deploy.lab import host, processes
from deploy.lab.config import LabConfig
from deploy.lab.processes import Process
from deploy.lab.supervisor import nspawn_argv, systemd_version

BOOTING, INIT = Process(20, 1, ("systemd-nspawn",)), Process(31, 20, ("systemd",))


@pytest.fixture
def config(tmp_path) -> LabConfig:
    return LabConfig(tmp_path, tmp_path)


def test_hosts_come_in_the_order_of_their_numbers(config):
    """
    n10 after n2; a folder without a disk is no host.
    """
    for name in ("n10", "n2", "n1"):
        (config.host_dir(name) / "upper").mkdir(parents=True)
    (config.host_dir("n3") / "upper.new").mkdir(parents=True)

    assert host.hosts_with_disk(config) == ("n1", "n2", "n10")


def test_the_console_tail_is_its_last_lines(config):
    """
    Without empty lines, however long the console is.
    """
    config.host_dir("n1").mkdir(parents=True)
    config.console("n1").write_text(
        "x" * 10_000 + "\n\n" + "".join(f"line {i}\n\n" for i in range(50))
    )

    assert host.console_tail(config, "n1", lines=2) == "    line 48\n    line 49"


def test_a_host_without_output_has_an_empty_console(config):
    assert host.console_tail(config, "n1") == "    (nothing)"


def test_a_file_with_two_names_counts_once_in_the_size_of_a_disk(config):
    """
    A release's weights are one file with several hard links.
    """
    upper = config.host_dir("n1") / "upper"
    upper.mkdir(parents=True)
    (upper / "blob").write_bytes(os.urandom(3 * 2**20))
    (upper / "model").hardlink_to(upper / "blob")

    assert host.disk_mib(config, "n1") == 3


def test_a_command_inside_enters_every_namespace():
    """
    Those of mounts, processes, network, host name and IPC, and its cgroup.
    """
    argv = host.inside_argv(77, ["true"])

    assert argv[:3] == ["nsenter", "--target", "77"]
    assert {"--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup"} <= set(argv)
    assert argv[-2:] == ["--", "true"]


def test_a_machine_name_has_the_names_of_the_bridge_and_the_host(config):
    """
    Two labs may each have an n1; their machines and links have different names.
    """
    argv = nspawn_argv(config, "n1")

    assert "--hostname=n1" in argv
    assert "--machine=slip0-n1" in argv
    assert config.link("n1") == "vb-slip0-n1"
    assert argv[:3] == ["setpriv", "--pdeathsig", "KILL"]


@pytest.mark.parametrize(
    ("library", "version"),
    [
        ("systemd/libsystemd-shared-259.so", 259),
        ("x86_64-linux-gnu/systemd/libsystemd-shared-257.so", 257),
        ("x86_64-linux-gnu/systemd/libsystemd-shared-259.5-0ubuntu3.so", 259),
        ("x86_64-linux-gnu/libsystemd.so.0", 0),
    ],
)
def test_the_version_of_systemd_is_in_the_name_of_its_library(tmp_path, library, version):
    """
    A tree without systemd has version 0.
    """
    path = tmp_path / "usr/lib" / library
    path.parent.mkdir(parents=True)
    path.touch()

    assert systemd_version(tmp_path) == version


@pytest.mark.parametrize(
    ("listings", "wait_s", "init"),
    [
        ([[BOOTING], [BOOTING], [BOOTING, INIT]], 5.0, 31),
        ([[BOOTING], [BOOTING, INIT]], 0.0, None),
        ([[], [BOOTING, INIT]], 5.0, None),  # stopped: there is nothing to wait for
        (itertools.repeat([BOOTING]), 0.02, None),
    ],
)
def test_the_init_of_a_booting_host_is_waited_for(config, monkeypatch, listings, wait_s, init):
    """
    Only while its nspawn runs, and no longer than *wait_s*.
    """
    remaining = iter(listings)
    monkeypatch.setattr(processes, "all_processes", lambda: next(remaining))
    monkeypatch.setattr(processes, "containers", lambda _, running: {"n1": 20} if running else {})
    monkeypatch.setattr(
        processes, "leader_of", lambda container, running: 31 if INIT in running else None
    )
    monkeypatch.setattr(host.time, "sleep", lambda s: None)

    assert host.leader(config, "n1", wait_s=wait_s) == init
