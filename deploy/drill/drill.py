"""
The drill: every line of a release and of a rollback, with every fault, on small labs side by side.
"""

import contextlib
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from deploy.drill.cell_run import LIMIT_S, CellRunner
from deploy.drill.cells import Cell, CellResult, Task, cells_of, spread
from deploy.drill.checkout import copy_checkout
from deploy.drill.drill_lab import LEASE_S, MODELS, DrillLab
from deploy.drill.etcd_server import etcd_server
from deploy.drill.faults import Fault
from deploy.drill.lines import Line, select_lines
from deploy.drill.report import DrillReport
from deploy.errors import DeployError, UsageError
from deploy.wiring.checkout import ROOT
from deploy.wiring.lab_models import make_lab_model

Progress = Callable[[str], None]
Member = TypeVar("Member", Task, Fault)
MAX_LABS = 8
STATES = ("hosts", "etcd")
RECOVERIES = ("rollback", "resume")  # of the other checkout, in turn


@dataclass(frozen=True)
class DrillOptions:
    """
    What to drill.

    Attributes:
        faults: Empty: all.
        lines: Words of which one must be in a line's name; empty: all.
        limit: Most cells of each task; 0: all.
        keep: Leave the labs up afterwards.
        first_lab: Number of the first lab; the others follow.
        state: Where the desired state lives: hosts or etcd.
    """

    tasks: tuple[Task, ...] = tuple(Task)
    faults: tuple[Fault, ...] = tuple(Fault)
    lines: tuple[str, ...] = ()
    limit: int = 0
    labs: int = 2
    hosts: int = 2
    keep: bool = False
    first_lab: int = 1
    state: str = "hosts"


def drill_options(
    *,
    faults: str,
    lines: str,
    tasks: str,
    limit: int,
    labs: int,
    keep: bool,
    first_lab: int,
    state: str,
) -> DrillOptions:
    """
    Return the options of a command line, whose lists are comma-separated.

    Raises:
        UsageError: A fault, command or state has another name, a number is out of range, or two
            flags contradict each other.
    """
    last_lab = first_lab + labs - 1
    if labs < 1 or first_lab < 1 or last_lab > MAX_LABS:
        raise UsageError(
            f"--labs {labs} --first-lab {first_lab}: out of range",
            why=f"labs have the numbers 1 to {MAX_LABS}, and each runs once on a machine",
            fix="leave both out for the defaults",
        )
    if state not in STATES:
        raise UsageError(
            f"--state: {state!r} is unknown",
            why=f"it takes {', '.join(STATES)}",
            fix="leave it out for hosts",
        )
    if keep and state == "etcd":
        raise UsageError(
            "--keep and --state etcd contradict each other",
            why="the drill's etcd ends with the drill, and the kept hosts would have no state",
            fix="leave one of them out",
        )
    return DrillOptions(
        tasks=tuple(_named("--commands", Task, tasks)) or tuple(Task),
        faults=tuple(_named("--faults", Fault, faults)) or tuple(Fault),
        lines=tuple(_words(lines)),
        limit=limit,
        labs=labs,
        keep=keep,
        first_lab=first_lab,
        state=state,
    )


def _named(flag: str, kind: type[Member], text: str) -> list[Member]:
    members = {str(member).lower(): member for member in kind}
    found = []
    for word in _words(text):
        if word.lower() not in members:
            raise UsageError(
                f"{flag}: {word!r} is unknown",
                why=f"it takes {', '.join(map(str, kind))}",
                fix=f"leave {flag} out for all of them",
            )
        found.append(members[word.lower()])
    return found


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def run_drill(options: DrillOptions, progress: Progress) -> DrillReport:
    """
    Run the drill and return its report.

    Raises:
        DeployError: A lab did not come up, or a command failed without any fault.
    """
    began_s = time.monotonic()
    models = [make_lab_model(kind, None, progress) for kind in MODELS]
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slipway-drill-")))
        is_etcd = options.state == "etcd"
        etcd = stack.enter_context(etcd_server(work / "etcd")) if is_etcd else None
        checkouts = [copy_checkout(ROOT, work / name) for name in ("first", "second")]
        labs = [
            DrillLab(number, options.hosts, (models[0], models[1]), work, progress, etcd)
            for number in range(options.first_lab, options.first_lab + options.labs)
        ]
        try:
            runners = _start(labs, checkouts, progress)
            recorded = {task: runners[0].record(task) for task in Task if task in options.tasks}
            skipped = {
                fault: why
                for fault in options.faults
                if (why := runners[0].injector.unavailable(fault)) is not None
            }
            for task, lines in recorded.items():
                progress(f"{task}: {len(lines)} lines")
            cells = _choose(recorded, options, skipped)
            progress(f"{len(cells)} cells on {len(labs)} labs")
            results = _run_all(runners, cells, progress)
        finally:
            for one in labs:
                one.leave_up() if options.keep else one.down()
    order = {cell: position for position, cell in enumerate(cells)}
    return DrillReport(
        results=tuple(sorted(results, key=lambda result: order[result.cell])),
        took_s=time.monotonic() - began_s,
        hosts=options.hosts,
        labs=options.labs,
        skipped={str(fault): why for fault, why in skipped.items()},
        policy={
            "lease": f"{LEASE_S:.0f} s",
            "limit": f"{LIMIT_S:.0f} s",
            "state": options.state,
        },
    )


def _choose(
    recorded: dict[Task, list[Line]], options: DrillOptions, skipped: dict[Fault, str]
) -> list[Cell]:
    faults = [fault for fault in options.faults if fault not in skipped]
    cells: list[Cell] = []
    for task, lines in recorded.items():
        own = cells_of(task, select_lines(lines, options.lines), faults)
        cells += spread(own, options.limit) if options.limit else own
    return cells


def _start(
    labs: Sequence[DrillLab], checkouts: Sequence[Path], progress: Progress
) -> list[CellRunner]:
    def start(one: DrillLab) -> CellRunner:
        one.up(checkouts[0])
        runner = CellRunner(one, checkouts[0], checkouts[1], progress)
        runner.injector.prepare()
        return runner

    with ThreadPoolExecutor(len(labs)) as pool:
        return list(pool.map(start, labs))


def _run_all(
    runners: Sequence[CellRunner], cells: Sequence[Cell], progress: Progress
) -> list[CellResult]:
    """
    Run *cells*, each on the lab that is free; a cell that cannot be run has the reason.
    """
    waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    for cell in cells:
        waiting.put(cell)
    results: list[CellResult] = []
    is_stopped = threading.Event()

    def work(runner: CellRunner) -> None:
        while not is_stopped.is_set():
            try:
                cell = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                result = runner.run(cell, RECOVERIES[len(results) % len(RECOVERIES)])
            except DeployError as error:
                result = CellResult(cell, False, problem=f"{error.what}: {error.why}")
            results.append(result)
            progress(_line(result, len(results), len(cells)))

    with ThreadPoolExecutor(len(runners)) as pool:
        try:
            for done in [pool.submit(work, runner) for runner in runners]:
                done.result()
        except BaseException:  # the user's ^C, or our bug: end after the present cells
            is_stopped.set()
            raise
    return results


def _line(result: CellResult, number: int, count: int) -> str:
    settled = "-" if result.settled_s is None else f"{result.settled_s:.1f} s"
    cell, mark = result.cell, "RED" if result.faults else "ok "
    text = f"{number}/{count} {mark} {cell.task}: {cell.line}, {cell.fault}: {settled}"
    notes = [*result.faults]
    if not result.is_reached:
        notes.append("the line did not come")
    if result.is_mixed:
        notes.append("mixed")
    if result.lost_there:
        notes.append(f"{result.lost_there} lost there")
    if result.recovery:
        notes.append(f"{result.recovery.words} {result.recovery.took_s:.1f} s")
    return f"{text}; {'; '.join(notes)}; cell {result.took_s:.0f} s"
