"""
Runs each tool on lab hosts of its own boot: on bare hosts, and again when nothing is left to do.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.bench.provision.peer_work import PeerWork, peer_work
from deploy.bench.provision.report import ProvisionTime, ProvisionTimes
from deploy.bench.provision.tools import (
    TOOLS,
    Command,
    Target,
    command,
    install_peers,
    write_work,
)
from deploy.bundle.host_program import build_host_program
from deploy.errors import CommandFailed
from deploy.inventory.load import load_fleet
from deploy.lab import lab
from deploy.lab.config import LabConfig
from deploy.private_files import private_directory, write_private
from deploy.provision.fleet_specs import resource_sets, with_wheels
from deploy.provision.run import provision
from deploy.wiring.checkout import ROOT

LAN = "LAN"
_FOLDER = "lab-bench"

Progress = Callable[[str], None]


def time_provisioning(
    *, hosts: int, again: int, delay_ms: int, tools: Sequence[str] = TOOLS, progress: Progress
) -> ProvisionTimes:
    """
    Provision *hosts* bare lab hosts with each tool and *again* times more; over LAN and slow links.

    Args:
        delay_ms: Of each way of the slow links; 0: without them.

    Raises:
        DeployError: A lab did not come up, or a tool failed.
    """
    default = LabConfig.from_env(os.environ)
    config = LabConfig(
        directory=default.directory.with_name(_FOLDER),
        bases=default.bases,
        bridge="slpben",
        prefix="10.77.58",
    )
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder:
        bench = _Bench(config, config.names(hosts), again, Path(folder), progress)
        delays = [0, delay_ms] if delay_ms else [0]
        try:
            for tool in tools:
                for delay in delays:
                    bench.time(tool, delay)
        finally:
            lab.down(progress=progress, config=config)
        return ProvisionTimes(
            runs=tuple(bench.runs),
            hosts=hosts,
            resources=bench.resources,
            left_out=bench.work.left_out if bench.work else (),
            unlike=bench.unlike,
        )


class _Bench:
    def __init__(
        self,
        config: LabConfig,
        names: Sequence[str],
        again: int,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.config, self.names, self.again = config, names, again
        self.folder, self.progress = folder, progress
        self.runs: list[ProvisionTime] = []
        self.unlike: dict[str, tuple[str, ...]] = {}
        self.work: PeerWork | None = None
        self.resources = 0
        cache = private_directory(config.directory.with_name("bench-peers"))
        self._bin = install_peers(cache, progress)

    def time(self, tool: str, delay_ms: int) -> None:
        """
        Provision bare hosts with *tool*, then again.
        """
        link = f"{delay_ms} ms each way" if delay_ms else LAN
        lab.down(progress=self.progress, config=self.config)
        lab.up(len(self.names), progress=self.progress, config=self.config)
        with self._links(delay_ms) as ports:
            target = self._target(ports)
            if self.work is None:
                self._make_work(target.fleet_file)
            folder = self.folder / f"{tool}-{delay_ms}"
            assert self.work is not None
            write_work(self.work, folder)
            todo = command(tool, target, folder, self._bin)
            for number in range(1 + self.again):
                kind = "again" if number else "bare hosts"
                self.progress(f"{tool}, {link}, {kind}")
                before = self._commands()
                wall_s, cpu_s = _timed(todo, tool)
                commands = (self._commands() - before) / len(self.names)
                self.runs.append(ProvisionTime(tool, link, not number, wall_s, cpu_s, commands))
                self.progress(f"{tool}, {link}, {kind}: {wall_s:.1f} s, {commands:.0f} commands")
            if not delay_ms:
                self._compare(tool, target.fleet_file)

    def _make_work(self, fleet_file: Path) -> None:
        fleet = load_fleet(str(fleet_file), root=ROOT)
        wanted = resource_sets(fleet, build_host_program(), {})
        host = fleet.hosts[0]
        wanted = with_wheels(fleet, {host.name: wanted[host.name]}, [host], self.progress)
        resources = (*wanted[host.name].placed, *wanted[host.name].running)
        self.resources, self.work = len(resources), peer_work(resources, "files")

    def _compare(self, tool: str, fleet_file: Path) -> None:
        """
        Note what slipway would still change: a peer that did less must not look faster.
        """
        report = provision(
            load_fleet(str(fleet_file), root=ROOT),
            check=True,
            progress=lambda event: None,
            env={},
        )
        if report.failed:
            raise CommandFailed(
                f"{tool}: its hosts cannot be compared",
                why=str(report.failed),
                fix="inv bench.provision again on a quiet machine",
            )
        assert self.work is not None
        changes = {change.resource for change in report.changes}
        self.unlike[tool] = tuple(sorted(changes - set(self.work.left_out)))

    def _commands(self) -> int:
        """
        Return how many SSH commands the hosts have started since they booted.
        """
        script = "journalctl -b -o cat -t sshd | grep -c 'Starting session' || :"
        return sum(
            int(lab.inside(name, ["sh", "-c", script], config=self.config).stdout)
            for name in self.names
        )

    @contextlib.contextmanager
    def _links(self, delay_ms: int) -> Iterator[Mapping[str, tuple[str, int]]]:
        """
        Yield address and port of each host, behind links of *delay_ms*.
        """
        addresses = [self.config.address(name) for name in self.names]
        if not delay_ms:
            yield {name: (self.config.address(name), 22) for name in self.names}
            return
        module = "deploy.bench.provision.slow_link"
        proxy = subprocess.Popen(
            [sys.executable, "-m", module, str(delay_ms), *addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            assert proxy.stdout is not None
            ports = [int(word) for word in proxy.stdout.readline().split()]
            yield {name: ("127.0.0.1", port) for name, port in zip(self.names, ports, strict=True)}
        finally:
            proxy.kill()
            proxy.communicate()

    def _target(self, ports: Mapping[str, tuple[str, int]]) -> Target:
        keys = self.config.keys
        known = self.folder / "known_hosts"
        known.write_text(
            _known_hosts((keys / "known_hosts").read_text(), self._addresses(), ports),
            encoding="utf-8",
        )
        fleet_file = self.folder / "bench.yml"
        write_private(fleet_file, yaml.safe_dump(_fleet(keys, known, ports)))
        return Target(ports, keys / "id_ed25519", known, fleet_file)

    def _addresses(self) -> dict[str, str]:
        return {name: self.config.address(name) for name in self.names}


def _timed(todo: Command, tool: str) -> tuple[float, float]:
    """
    Run *todo* to its end; return its seconds, and those of the processor.
    """
    shutil.rmtree(todo.cwd / "control", ignore_errors=True)
    began_s = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            todo.argv,
            cwd=todo.cwd,
            env=os.environ | todo.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - began_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise CommandFailed(
                f"{tool}: exit {process.returncode}",
                why=output.read().decode(errors="replace")[-2000:],
                fix="run it by hand on a lab: inv lab.up",
            )
    return wall_s, usage.ru_utime + usage.ru_stime


def _known_hosts(
    text: str, addresses: Mapping[str, str], ports: Mapping[str, tuple[str, int]]
) -> str:
    """
    Return the host keys of *text* under the addresses and ports by which hosts are reached.
    """
    names = {addresses[host]: where for host, where in ports.items()}
    lines = []
    for line in text.splitlines():
        address, _, key = line.partition(" ")
        if address in names:
            reached, port = names[address]
            lines.append(f"{reached if port == 22 else f'[{reached}]:{port}'} {key}")
    return "\n".join((*lines, ""))


def _fleet(keys: Path, known_hosts: Path, ports: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    return {
        "row": "torch-2.13-cpu",
        "ssh": {"key": str(keys / "id_ed25519"), "known_hosts": str(known_hosts)},
        "service": {"device": "cpu", "precision": "fp32", "threads": 1},
        "signing": {
            "identity": "lab@slipway",
            "key": str(keys / "signing_ed25519"),
            "allowed_signers": str(keys / "allowed_signers"),
        },
        "hosts": {
            name: {"address": address, "ssh": {"port": port}}
            for name, (address, port) in ports.items()
        },
    }
