"""
One release and one rollback of a simulated fleet, in a process whose time and memory count.

    python -m deploy.bench.one_fleet HOSTS LATENCY_MS

Prints the figures of `FleetFigures` as JSON.  What the hosts cost is in another process.
"""

import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from deploy.bench.fleet_report import FleetFigures, Phase
from deploy.bench.simulated_hosts import COUNTS
from deploy.bench.simulated_transport import SimulatedTransport, Wire
from deploy.bundle.store import Bundle
from deploy.cli import events, report, tables
from deploy.cli.grid import draw
from deploy.cli.progress import Progress
from deploy.errors import CommandFailed
from deploy.host.bundle.manifest import LockPart, Manifest, ModelFile, ModelPart
from deploy.host.protocol import Wheel
from deploy.inventory.load import load_fleet
from deploy.release.desired import Desired, Ending
from deploy.release.desired_text import to_text
from deploy.release.events import ReleaseEvent, ReleaseOutcome
from deploy.release.findings import find
from deploy.transport.client import HostClient
from deploy.wiring import releases
from deploy.wiring.checkout import ROOT
from deploy.wiring.hosts import Hosts
from deploy.wiring.state import stored

_NAME, _ROW = "sim", "sim"
_WHEELS = 60  # of a lock with torch for CUDA
_FLEET = """\
row: {row}
signing: {{identity: bench@slipway, key: none, allowed_signers: none}}
release:
  canary: {{duration: {measure}s, give_up_after: 60s, min_requests: 5, interval: {measure}s}}
hosts:
"""
_STARTED_S = 20.0


class _Marks:
    """
    Where one phase ends and the next begins, from the events of a release.
    """

    def __init__(self, transports: dict[str, SimulatedTransport]) -> None:
        self.phases: dict[str, Phase] = {}
        self._transports = transports
        self._last = self._now()

    def end(self, name: str) -> None:
        """
        End the phase *name* now; again, to make it longer.
        """
        now = self._now()
        before = self.phases.get(name, Phase(0.0, 0.0, 0))
        self.phases[name] = Phase(
            wall_s=before.wall_s + now.wall_s - self._last.wall_s,
            cpu_s=before.cpu_s + now.cpu_s - self._last.cpu_s,
            commands=before.commands + now.commands - self._last.commands,
        )
        self._last = now

    def see(self, event: ReleaseEvent) -> None:
        if event.name == "lease.acquired":
            self.end("lease")
        elif event.name == "host.staged":
            self.end("stage")

    def _now(self) -> Phase:
        commands = sum(one.commands for one in self._transports.values())
        return Phase(time.monotonic(), time.process_time(), commands)


def run(count: int, latency_ms: float, measure_s: float = 1.0) -> FleetFigures:
    """
    Release to *count* hosts that have everything, show their status, roll back.

    Args:
        measure_s: For how long, and how often, each wave is measured.

    Raises:
        CommandFailed: One of the two did not end as it should.
    """
    names = [f"gpu-{number:04d}" for number in range(1, count + 1)]
    with (
        tempfile.TemporaryDirectory(prefix="sw-") as folder,
        _hosts(Path(folder) / "s", latency_ms, names) as wire,
    ):
        transports = {name: SimulatedTransport(wire, name) for name in names}
        idle_kib = memory_kib("VmRSS")
        marks, screen = _Marks(transports), io.StringIO()

        on = _fleet(Path(folder), transports, measure_s)
        bundle = _bundle(Path(folder))
        plan = releases.make_plan(on, bundle, on.fleet.release.canary.share_pct)
        screen.write(report.plan_text(plan))
        marks.end("plan")

        with _progress(screen) as progress:
            shown = events.ReleaseProgress(progress, on.fleet, names, as_json=False)
            released = releases.run_release(on, bundle, plan, _both(marks.see, shown))
        _must_end(released, Ending.PROMOTED)
        marks.end("waves")

        desired = stored(on)
        seen = on.seen()
        table = tables.status_table(_NAME, seen, find(seen))
        screen.write(draw(table, is_terminal=False, encoding="utf-8"))
        marks.end("status")

        way = releases.make_rollback(on, None)
        with _progress(screen) as progress:
            shown = events.ReleaseProgress(progress, on.fleet, names, as_json=False)
            _must_end(releases.run_rollback(on, way, shown), Ending.ROLLED_BACK)
        marks.end("rollback")

        calls = json.loads(wire.ask(*COUNTS, b"", 60.0))
        assert desired is not None
        return FleetFigures(
            hosts=count,
            latency_ms=latency_ms,
            phases=marks.phases,
            measured_s=_measured_s(desired),
            idle_mib=idle_kib / 1024,
            peak_mib=memory_kib("VmHWM") / 1024,
            connections=wire.opened,
            sent_bytes=wire.sent,
            received_bytes=wire.received,
            state_bytes=len(to_text(desired).encode()),
            printed_bytes=len(screen.getvalue().encode()),
            verbs=_per_host(calls),
        )


@contextmanager
def _hosts(path: Path, latency_ms: float, names: list[str]) -> Iterator[Wire]:
    """
    Yield connections to simulated hosts called *names*, in a process that ends with the block.
    """
    argv = [sys.executable, "-m", "deploy.bench.simulated_hosts", str(path), str(latency_ms)]
    with subprocess.Popen(
        [*argv, *names], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        wire = Wire(str(path))
        try:
            if process.stdout.readline() != b"ready\n":
                raise CommandFailed(
                    "the simulated hosts did not start",
                    why=f"their process ended with {process.wait(_STARTED_S)}",
                    fix="read what it printed above",
                )
            yield wire
        finally:
            wire.close()
            process.stdin.close()


def _fleet(folder: Path, transports: dict[str, SimulatedTransport], measure_s: float) -> Hosts:
    addresses = (f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(1, len(transports) + 1))
    lines = [
        f"  {name}: {{address: {address}}}\n"
        for name, address in zip(transports, addresses, strict=True)
    ]
    path = folder / f"{_NAME}.yml"
    path.write_text(_FLEET.format(row=_ROW, measure=measure_s) + "".join(lines), encoding="ascii")
    fleet = load_fleet(str(path), root=folder)
    clients = {
        name: HostClient(transport, actor="bench@desk", sudo=False)
        for name, transport in transports.items()
    }
    return Hosts(fleet, clients, {})


def _bundle(folder: Path) -> Bundle:
    """
    Return a bundle of the size of a real one, of which nothing has to be sent.
    """
    wheels = tuple(
        Wheel(f"package_{number}-1.0.0-cp311-cp311-manylinux_2_28_x86_64.whl", "c" * 64, 1 << 20)
        for number in range(_WHEELS)
    )
    files = tuple(
        ModelFile(f"model-{number}.safetensors", "d" * 64, 1 << 32) for number in range(8)
    )
    manifest = Manifest(
        version="v2",
        row=_ROW,
        model_name="sim",
        identity="bench@slipway",
        lock=LockPart("e" * 64, "3.11", wheels),
        model=ModelPart("f" * 64, files),
        files=(),
        fleet=_NAME,
        counter=2,
    )
    bundle = Bundle(manifest.digest, manifest, folder, folder)
    bundle.manifest_path.write_bytes(manifest.to_bytes())
    return bundle


@contextmanager
def _progress(screen: io.StringIO) -> Iterator[Progress]:
    with Progress(lambda line: _print(screen, line)).beating() as progress:
        yield progress


def _print(screen: io.StringIO, line: str) -> None:
    screen.write(line + "\n")


def _both(
    first: Callable[[ReleaseEvent], None], second: Callable[[ReleaseEvent], None]
) -> Callable[[ReleaseEvent], None]:
    def tell(event: ReleaseEvent) -> None:
        first(event)
        second(event)

    return tell


def _must_end(outcome: ReleaseOutcome, ending: Ending) -> None:
    if outcome.ending is not ending or outcome.error is not None:
        raise CommandFailed(
            f"the simulated fleet ended {outcome.ending}, not {ending}",
            why=str(outcome.error or outcome.reason)[:2000],
            fix="a machine that is too slow for so many hosts loses their leases: fewer --counts",
        )


def _measured_s(desired: Desired) -> float:
    return sum(ruling.measured_s for ruling in desired.rulings)


def _per_host(calls: dict[str, dict[str, int]]) -> dict[str, float]:
    """
    Return the mean number of calls of each verb.
    """
    verbs = sorted({verb for one in calls.values() for verb in one})
    return {
        verb: round(sum(one.get(verb, 0) for one in calls.values()) / len(calls), 2)
        for verb in verbs
    }


def memory_kib(name: str) -> int:
    """
    Return a figure of this process's memory, such as VmHWM: the most that was resident.

    `getrusage` has the parent's peak in it, where that was larger.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None, name
    return int(match[1])


def main(argv: list[str]) -> int:
    count, latency_ms = argv
    print(json.dumps(asdict(run(int(count), float(latency_ms)))))  # noqa: T201 - read by fleet.py
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
