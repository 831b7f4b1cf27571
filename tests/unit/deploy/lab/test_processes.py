from pathlib import Path

from deploy.lab.config import LabConfig
from deploy.lab.processes import (
    Process,
    all_processes,
    containers,
    is_alive,
    leader_of,
    supervisor_argv,
    supervisors,
)
from deploy.lab.supervisor import nspawn_argv

CONFIG = LabConfig(Path("/lab"), Path("/bases"))
OTHER = LabConfig(Path("/lab2"), Path("/bases"), bridge="other")


def supervisor(pid, config, host):
    return Process(pid, 1, ("/venv/bin/python", *supervisor_argv(config, host)))


def container(pid, parent, config, host):
    argv = nspawn_argv(config, host)
    return Process(pid, parent, tuple(argv[argv.index("systemd-nspawn") :]))


def test_supervisors_are_found_by_their_arguments():
    """
    Only those of this lab, with any python executable.
    """
    running = [supervisor(10, CONFIG, "n1"), supervisor(11, CONFIG, "n2")]
    running += [supervisor(12, OTHER, "n1"), Process(13, 1, ("vi", "deploy/lab/supervisor.py"))]

    assert supervisors(CONFIG, running) == {"n1": 10, "n2": 11}


def test_containers_are_found_by_their_folder():
    """
    Only those of this lab; nspawn's child with the same arguments does not count.
    """
    running = [container(20, 10, CONFIG, "n1"), container(21, 20, CONFIG, "n1")]
    running += [container(22, 12, OTHER, "n1"), Process(23, 1, ("du", "/lab/hosts/n1/root"))]

    assert containers(CONFIG, running) == {"n1": 20}


def test_a_container_is_found_while_setpriv_has_not_executed_nspawn_yet():
    running = [Process(20, 10, tuple(nspawn_argv(CONFIG, "n3")))]

    assert containers(CONFIG, running) == {"n3": 20}


def write_process(proc, pid, parent, argv, nspid="", state="S", name="a) (b"):
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in argv))
    (folder / "stat").write_text(f"{pid} ({name}) {state} {parent} 1 1 0")
    (folder / "status").write_text(f"Name:\tx\nNSpid:\t{nspid or pid}\n")


def test_proc_is_read_with_any_process_name(tmp_path):
    """
    Parentheses and spaces in a name do not shift the fields; kernel threads are left out.
    """
    write_process(tmp_path, 20, 10, ["systemd-nspawn", "--directory=/x y"])
    write_process(tmp_path, 2, 0, [])
    (tmp_path / "meminfo").write_text("")

    assert list(all_processes(tmp_path)) == [
        Process(20, 10, ("systemd-nspawn", "--directory=/x y"))
    ]


def test_the_leader_is_process_one_inside(tmp_path):
    """
    nspawn may have other children for a short time.
    """
    write_process(tmp_path, 20, 10, ["systemd-nspawn"])
    write_process(tmp_path, 30, 20, ["(sd-namespace)"])
    write_process(tmp_path, 31, 20, ["systemd"], nspid="31\t1")
    write_process(tmp_path, 32, 31, ["journald"], nspid="32\t17")
    running = tuple(all_processes(tmp_path))

    assert leader_of(20, running, tmp_path) == 31
    assert leader_of(31, running, tmp_path) is None


def test_a_process_that_does_not_exist_is_not_alive():
    assert not is_alive(2**22 + 1)
