"""
The limit that is printed while an action runs is no shorter than its calls may take.
"""

from collections import defaultdict

import pytest

from deploy.release.plan import Step
from deploy.release.rollback import plan_rollback
from tests.unit.deploy.release.conftest import NAMES

_RENEWAL = "lease.renew"


class Limits:
    """
    Adds up the time limits of the calls of each action.

    Attributes:
        of: (seconds allowed, seconds of its calls) by step.
    """

    def __init__(self, fleet, monkeypatch):
        self.of, self._now = defaultdict(list), {}
        for name, transport in fleet.transports.items():
            monkeypatch.setattr(transport, "run", self._noted(name, transport.run))

    def _noted(self, name, send):
        def run(argv, *, timeout_s, **options):
            if name in self._now and argv[-1] != _RENEWAL:
                self._now[name][1] += timeout_s
            return send(argv, timeout_s=timeout_s, **options)

        return run

    def __call__(self, event):
        if event.host is None:
            return
        if event.name == "action.started":
            self._now[event.host] = [event.data["deadline_s"], 0.0]
        elif event.name == "action.ended":
            self.of[Step(event.data["step"])].append(self._now.pop(event.host))


@pytest.fixture
def limits(fleet, monkeypatch):
    return Limits(fleet, monkeypatch)


def roll_back(fleet, limits):
    fleet.roll_back(plan_rollback(fleet.observed(), None, {}, {}), limits)


def test_no_action_may_take_longer_than_its_deadline(fleet, limits):
    """
    Of releases that are promoted, refused, paused and resumed, and of rollbacks.
    """
    fleet.release(report=limits)
    roll_back(fleet, limits)
    fleet.errors_when_promoted_per_s = 1
    fleet.release(bundle="b3", report=limits)
    fleet.errors_when_promoted_per_s = 0
    fleet.requests_per_s = 0
    fleet.release(bundle="b4", report=limits)  # paused: nothing to measure
    fleet.release(bundle="b5", report=limits)  # its slot is cleared first
    fleet.system("n1").proxy.is_running = False
    roll_back(fleet, limits)

    late = {
        step: (allowed, calls)
        for step, all_of in limits.of.items()
        for allowed, calls in all_of
        if calls > allowed
    }
    assert late == {}
    assert set(limits.of) >= {*Step} - {Step.JUDGE, Step.BAKE}


def test_a_deadline_is_no_guess(fleet, limits):
    """
    Negative control of the test above: the sum of the calls is near to it.
    """
    fleet.release(report=limits)

    allowed, calls = limits.of[Step.CONFIRM][0]
    assert len(limits.of[Step.CONFIRM]) == len(NAMES)
    assert 0.9 * allowed <= calls <= allowed
