"""
A release that loses its operator at a random journal line, and goes on from another checkout.

SLIPWAY_INTERRUPTIONS is how often (default 3), SLIPWAY_SEED where it begins (default 1).
"""

import os
import random
import signal
import time

import pytest

from deploy.drill.cells import Task
from deploy.drill.checkout import Operator, run_task

COUNT = int(os.environ.get("SLIPWAY_INTERRUPTIONS") or 3)
SEED = int(os.environ.get("SLIPWAY_SEED") or 1)
NOTHING_OPEN = 3  # PreconditionError


def interrupted(drill, at):
    """
    Release the other version and kill the operator at journal line number *at*, of all hosts.

    Returns:
        (version before, version to be released, line); the line is None if the release ended
        before it.
    """
    old = drill.bring_base(Task.RELEASE)
    new, words = drill.release_words()
    follower = drill.lab.follower()
    operator = Operator(drill.first, words)
    lines = []
    while operator.is_alive and len(lines) < at:
        lines += follower.read()
        time.sleep(0.002)
    operator.send(signal.SIGKILL)
    operator.wait(10.0)
    return old, new, lines[at - 1] if len(lines) >= at else None


@pytest.fixture(scope="module")
def line_count(drill):
    """
    Number of journal lines that a release writes on all hosts together.
    """
    return sum(1 + len(line.merged) for line in drill.record(Task.RELEASE))


@pytest.mark.timeout(60 + 60 * COUNT)
def test_an_interrupted_release_ends_as_its_plan_says(drill, line_count):
    """
    Whatever the line: resumed by another checkout with the same key it is promoted everywhere, and
    no request is lost.  Where it had not begun, or had ended, there is nothing to resume.
    """
    rng = random.Random(SEED)
    began_at = time.time()
    ends = []
    for _ in range(COUNT):
        at = rng.randint(1, line_count)
        old, new, line = interrupted(drill, at)
        resumed = run_task(drill.second, drill.lab.words("resume", "--steal", "--yes"))
        served = set(drill.lab.wait_for_one_version(10.0).values())
        what = f"line {at}: {line}, exit {resumed.code}, {resumed.progress[-2000:]}"
        assert resumed.code in (0, NOTHING_OPEN), what
        expected = {new} if resumed.code == 0 else {old, new}
        assert served in [{version} for version in expected], what
        ends.append(resumed.code)
    assert 0 in ends, "no release was interrupted while it was open"
    assert drill.lab.lost(began_at, time.time()) == {}
