"""
The tools that are timed, each as the command that its users type.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import uv

from deploy.bench.provision.peer_work import PeerWork
from deploy.bench.provision.report import OURS
from deploy.errors import CommandFailed, UsageError
from deploy.wiring.checkout import ROOT

ANSIBLE, MITOGEN, PYINFRA = "Ansible", "mitogen", "pyinfra"
TOOLS = (OURS, PYINFRA, MITOGEN, ANSIBLE)
_FORKS = 8
_LOCK = ROOT / "requirements" / "bench-peers.lock"
_INSTALL_S = 600.0
_STRATEGIES = "ansible_mitogen/plugins/strategy"


@dataclass(frozen=True)
class Target:
    """
    Where the hosts are for this machine: directly, or behind slow links.

    Attributes:
        ports: {host: (address, port of its sshd)}.
        fleet_file: The same for slipway.
    """

    ports: Mapping[str, tuple[str, int]]
    key: Path
    known_hosts: Path
    fleet_file: Path


@dataclass(frozen=True)
class Command:
    argv: list[str]
    env: dict[str, str]
    cwd: Path


def tools_named(text: str) -> tuple[str, ...]:
    """
    Return the tools of a comma-separated list; all of them for an empty one.

    Raises:
        UsageError: One is unknown.
    """
    known = {tool.lower(): tool for tool in TOOLS}
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word.lower() not in known:
            raise UsageError(
                f"--tools: {word!r} is unknown",
                why=f"it takes {', '.join(TOOLS)}",
                fix="leave --tools out for all of them",
            )
    return tuple(known[word.lower()] for word in words) or TOOLS


def install_peers(folder: Path, progress: Callable[[str], None]) -> Path:
    """
    Make the venv of the peers in *folder* by their lock; return its bin directory.

    Raises:
        CommandFailed: It could not be made.
    """
    venv, stamp = folder / "peers", folder / "peers.lock"
    wanted = _LOCK.read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        progress("installing Ansible and mitogen")
        binary = uv.find_uv_bin()
        _must([binary, "venv", "--quiet", "--clear", "--python", sys.executable, str(venv)])
        python = str(venv / "bin" / "python")
        install = [binary, "pip", "install", "--quiet", "--require-hashes", "--compile-bytecode"]
        _must([*install, "--python", python, "-r", str(_LOCK)])
        stamp.write_text(wanted, encoding="utf-8")
    return venv / "bin"


def write_work(work: PeerWork, folder: Path) -> None:
    """
    Write what the peers run, and the files that they copy, to *folder*.
    """
    (folder / "files").mkdir(parents=True)
    (folder / "playbook.yml").write_text(work.playbook, encoding="utf-8")
    (folder / "deploy.py").write_text(work.deploy, encoding="utf-8")
    for name, source in work.files.items():
        if isinstance(source, bytes):
            (folder / "files" / name).write_bytes(source)
        else:
            (folder / "files" / name).symlink_to(source)


def command(tool: str, target: Target, folder: Path, bin_: Path) -> Command:
    """
    Return the command of *tool* for the hosts of *target*; its inventory is written to *folder*.
    """
    if tool == OURS:
        argv = [sys.executable, "-m", "deploy.cli", "provision", "--yes"]
        hosts = ["--hosts", str(target.fleet_file)]
        return Command([*argv, *hosts], {"SLIPWAY_CWD": str(ROOT)}, ROOT)
    if tool == PYINFRA:
        return _pyinfra(target, folder)
    return _ansible(target, folder, bin_, is_mitogen=tool == MITOGEN)


def _pyinfra(target: Target, folder: Path) -> Command:
    hosts = [
        (
            name,
            {
                "ssh_hostname": address,
                "ssh_port": port,
                "ssh_user": "root",
                "ssh_key": str(target.key),
                "ssh_known_hosts_file": str(target.known_hosts),
                "ssh_strict_host_key_checking": "yes",
            },
        )
        for name, (address, port) in target.ports.items()
    ]
    (folder / "inventory.py").write_text(f"hosts = {hosts!r}\n", encoding="utf-8")
    argv = [sys.executable, "-m", "pyinfra", "-y", "inventory.py", "deploy.py"]
    return Command(argv, {}, folder)


def _ansible(target: Target, folder: Path, bin_: Path, *, is_mitogen: bool) -> Command:
    hosts = {
        name: {
            "ansible_host": address,
            "ansible_port": port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(target.key),
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={target.known_hosts}",
        }
        for name, (address, port) in target.ports.items()
    }
    inventory = {"all": {"hosts": hosts}}
    (folder / "inventory.yml").write_text(json.dumps(inventory), encoding="utf-8")
    env = {
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "control"),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=5s",
    }
    if is_mitogen:
        found = next((bin_.parent / "lib").glob(f"python*/site-packages/{_STRATEGIES}"))
        env |= {"ANSIBLE_STRATEGY_PLUGINS": str(found), "ANSIBLE_STRATEGY": "mitogen_linear"}
    argv = [str(bin_ / "ansible-playbook"), "-i", "inventory.yml", "--forks", str(_FORKS)]
    return Command([*argv, "playbook.yml"], env, folder)


def _must(argv: Sequence[str]) -> None:
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=_INSTALL_S, check=False, env=os.environ
    )
    if done.returncode:
        raise CommandFailed(
            "the peers of the benchmark could not be installed",
            why=done.stderr.strip()[-600:],
            fix="make the package index reachable, then: inv bench.provision",
        )
