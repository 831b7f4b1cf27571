"""
Runs a scenario with every fault at every boundary, by forking the world at each of them.
"""

import gc
import json
import os
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.faults import CUTS, FAULTS, possible
from tests.simulation.host import Violation
from tests.simulation.scenarios import SCENARIOS, play
from tests.simulation.state import Seen, of_world

WORKERS = max(1, os.cpu_count() or 1)


@dataclass(frozen=True)
class Result:
    """
    One run.

    Attributes:
        case: Faults as index.fault, comma-separated; empty: none.
        points: The boundary of each fault.
        ending: How it ended, in words.
        failure: What did not hold; None: all held.
    """

    case: str
    points: list[str]
    ending: str
    failure: str | None = None
    reached: list[str] = field(default_factory=list)


class Replay:
    """
    Plays one case.
    """

    def __init__(self, case=""):
        self._faults, self._last = {}, None
        for part in case.split(",") if case else []:
            index, _, fault = part.partition(".")
            if index == "end":
                self._last = fault
            else:
                self._faults[int(index)] = fault
        self.index = 0
        self.points = []
        self.is_over = False

    def begin(self, world):
        self._world = world
        world.at_boundary = self.at

    def at(self, point, delivery):
        self.index += 1
        fault = self._faults.get(self.index)
        if fault is not None and not self.is_over:
            self.points.append(describe(point))
            strike(self._world, fault, point, delivery)

    def operators_over(self, world):
        pass

    def end_of_faults(self, world):
        self.is_over = True

    def choose(self, options):
        return self._last or options[0]


class Explorer:
    """
    Forks at each boundary for each possible fault, until *budget* faults have happened.

    Args:
        only: Called with the faults so far, the boundary's number, the boundary and the fault:
            explore it?

    A run ends where its state was reached before with as many faults to come.  Two cuts of power in
    one verb, at one time, that leave the same on disk are one fault: all else is lost.
    """

    def __init__(self, budget, results, only=None):
        self._seen = Seen()
        self.reached = []
        self.budget, self._results = budget, results
        self.index = 0
        self.case, self.points = [], []
        self.is_child = self.is_over = False
        self._running = set()
        self._cuts = set()
        self._only = only
        self.boundaries = []

    def begin(self, world):
        self._world = world
        world.at_boundary = self.at

    def at(self, point, delivery):
        self.index += 1
        if self.is_over:
            return
        if not self.is_child:
            self.boundaries.append(describe(point))
        if point.when == "send":
            self._merge("send", point)
        if self.budget > 0:
            for fault in possible(point):
                if self._only and not self._only(self.case, self.index, point, fault):
                    continue
                if self._is_cut_again(fault, point):
                    continue
                if self._fork():
                    self.budget -= 1
                    self.case.append(f"{self.index}.{fault}")
                    self.points.append(describe(point))
                    strike(self._world, fault, point, delivery)
                    return

    def _is_cut_again(self, fault, point):
        """
        Return whether the host lost its power in this verb already, with the same left.
        """
        if point.when not in ("before", "after") or fault not in CUTS:
            return False
        host = self._world.hosts[point.host]
        left = repr(host.disk.kept(keeps_names=fault == "torn_cut"))
        key = (fault, host.name, host.verbs, self._world.now_s, left)
        if key in self._cuts:
            return True
        self._cuts.add(key)
        return False

    def operators_over(self, world):
        self._merge("over", None)

    def end_of_faults(self, world):
        self.is_over = True
        self.budget = 0
        self._merge("end", None)

    def _merge(self, where, point):
        if any(host.running for host in self._world.hosts.values()):
            return  # a verb in progress has a state of its own
        number = of_world(self._world, point)
        if self._seen.add(where, number, self.budget) and self.is_child:
            # Without unwinding: the program would go on with its cleanups, in this world.
            # The command of a run that ended has its own ending, whatever run was there before.
            ending = "" if where == "send" else f"{self._world.commands[0].ending}: "
            self.end(f"{ending}as {where} {number} {self.budget}")
        self.reached.append(f"{where} {number} {self.budget}")

    def choose(self, options):
        for option in options[1:]:
            if self._fork():
                self.case.append(f"end.{option}")
                self.budget = 0
                return option
        return options[0]

    def _fork(self):
        """
        Return True in a child; in the parent, once it may go on.
        """
        at_once = 1 if self.is_child else WORKERS
        while len(self._running) >= at_once:
            self._wait()
        pid = os.fork()
        if pid:
            self._running.add(pid)
            if self.is_child:
                self._wait()
            return False
        self.is_child = True
        self._running = set()
        self.reached = []
        return True

    def _wait(self):
        pid, status = os.wait()
        self._running.discard(pid)
        if status:
            self.note(f"a child ended with status {status}", True)

    def wait(self):
        while self._running:
            self._wait()

    def end(self, ending, failure=None):
        """
        End the process of this run, once its own children have ended.
        """
        self.note(ending, failure)
        self.wait()
        os._exit(0)

    def note(self, ending, failure=None):
        line = json.dumps([",".join(self.case), self.points, ending, failure, self.reached])
        os.write(self._results, line.encode() + b"\n")


def describe(point):
    where = f"{point.when} {point.verb}"
    return f"{where} {point.what} on {point.host}" if point.what else f"{where} on {point.host}"


def strike(world, fault, point, delivery):
    world.stops_at(world.now_s)
    FAULTS[fault](world, point, delivery)
    world.invariants.check()


def explore(scenario, budget, only=None):
    """
    Return the results of all runs of *scenario* with up to *budget* faults.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "results"
        results = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        explorer = Explorer(budget, results, only)
        # A collection would write to every page, and copy what the forks share.
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            _one(scenario, explorer)
        finally:
            gc.enable()
            gc.unfreeze()
        explorer.wait()
        os.close(results)
        lines = path.read_text().splitlines()
    return [Result(*json.loads(line)) for line in lines], explorer.boundaries


def _one(scenario, explorer):
    try:
        ending, failure = _outcome(scenario, explorer)
    except BaseException:
        if not explorer.is_child:
            raise
        ending, failure = "", traceback.format_exc()[-3000:]
    if explorer.is_child:
        explorer.end(ending, failure)
    explorer.note(ending, failure)


def _outcome(scenario, explorer):
    try:
        return play(scenario, explorer), None
    except Violation as violation:
        return "violated", str(violation)


def failed(name, results):
    """
    Return the failures among *results* as text, each with the command that repeats it.
    """
    lines = []
    for result in results:
        if result.failure:
            case = f"{name}:{result.case}"
            lines.append(f"pytest tests/simulation -k test_a_case --case={case}")
            lines.append(f"  {'; '.join(result.points)}: {result.failure}")
    return "\n".join(lines[:60])


def replay(name, case):
    """
    Return the result of one case of scenario *name*.
    """
    player = Replay(case)
    ending, failure = _outcome(SCENARIOS[name], player)
    return Result(case, player.points, ending, failure)
