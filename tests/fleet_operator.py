"""
What an operator does with a local fleet, command by command, as `inv` does it.
"""

import itertools
from contextlib import suppress
from dataclasses import replace

from deploy.errors import DeployError, PreconditionError
from deploy.host.deadman import way_back
from deploy.host.protocol import HostError
from deploy.release.desired import Desired, Goal
from deploy.release.gates import Verdict
from deploy.release.observe import Observed, observe
from deploy.release.plan import plan_release
from deploy.release.rollback import (
    implied_leaving,
    implied_target,
    plan_left_out,
    plan_rollback,
    rollback_plan,
    unplanned,
    with_left_out,
)
from deploy.release.store import HostStore
from tests.builders import make_policy
from tests.local_fleet import DIGESTS, LIMITS, NAMES

_FOR_ALL_S = 40.0  # longer than a lease, and than the wait for the next check of a host


class Killed(BaseException):
    """
    The operator's process ends.
    """


class FleetOperator:
    """
    Attributes:
        in_store: Bundles of the operator's store.
    """

    def __init__(self, fleet):
        self.fleet = fleet
        self.in_store = set()
        self._number = itertools.count(1)

    def seen(self):
        """
        Return the hosts that answer, and the errors of the others.
        """
        states = observe(self.fleet.clients.values(), timeout_s=20.0)
        readable = {n: s for n, s in states.items() if isinstance(s, Observed)}
        return readable, {n: s for n, s in states.items() if n not in readable}

    def stored(self):
        return HostStore(self.fleet.clients, None, self.fleet.clock).read()

    def release(self, bundle, report=None, **options):
        """
        Raises:
            DeployError: It is refused before anything is touched.
        """
        readable, errors = self.seen()
        for error in errors.values():
            raise error
        plan = plan_release(
            fleet="lab",
            bundle=DIGESTS[bundle],
            version=bundle.replace("b", "v"),
            canary_pct=10,
            policy=make_policy(),
            observed=readable,
            start_s=LIMITS.start_s,
            golden_s=LIMITS.golden_s,
        )
        if plan.is_noop:
            return None
        desired = Desired(self._id(), "me@desk", Goal.FORWARD, plan)
        stage = self.fleet.stage(bundle)
        return self.fleet.bring(desired, report=report, stage=stage, **options)

    def release_killed(self, bundle, after):
        """
        Release *bundle* with a process that is killed after the event number *after*; then wait
        until the hosts have gone back by themselves.
        """
        count = itertools.count(1)

        def report(event):
            if next(count) == after:
                raise Killed

        def die():
            self.fleet.clock.cancel_all()
            for client in self.fleet.clients.values():
                client.fence = None

        with suppress(Killed):
            self.release(bundle, report, at_death=die)
        self.wait()

    def wait(self):
        self.fleet.clock.sleep(_FOR_ALL_S)
        for name in self.fleet.transports:
            with suppress(HostError):
                way_back.check(self.fleet.system(name))

    def plan_back(self, to=None):
        readable, errors = self.seen()
        leaving = None
        if to is None:
            with suppress(DeployError):
                desired = self.stored()
                to, leaving = implied_target(desired), implied_leaving(desired)
        return plan_rollback(readable, to, errors, self._versions(), leaving=leaving)

    def rollback(self, to=None):
        """
        Return the plan, and the outcome; None where there was nothing to do.

        Raises:
            DeployError: There is no way back, or it is refused.
        """
        way = self.plan_back(to)
        if way.is_noop:
            return way, None
        plan = rollback_plan(
            way, fleet="lab", policy=make_policy(), start_s=LIMITS.start_s, golden_s=LIMITS.golden_s
        )
        left_out = {left.host: left.why for left in way.left_out}
        desired = Desired(self._id(), "me@desk", Goal.FORWARD, plan, left_out=left_out)
        outcome = self.fleet.bring(
            desired,
            stage=self.fleet.stage(NAMES[plan.bundle]),
            left_out={left.host: left.error for left in way.left_out if left.error},
            stop_traffic=[left.host for left in way.left_out if left.stop_traffic],
        )
        return way, outcome

    def go_on(self, goal):
        """
        Resume the open release, or take it back.

        Raises:
            DeployError: None is open, or the hosts do not agree on it.
        """
        desired = self.stored()
        if desired is None or not (desired.is_open if goal is Goal.BACK else desired.can_resume):
            raise PreconditionError("lab: no release is open", why="-", fix="-")
        passed = tuple(ruling for ruling in desired.rulings if ruling.verdict == Verdict.PASS)
        renewed = replace(desired, goal=goal, ending=None, rulings=passed, reason="", left_out={})
        left_out = {}
        if goal is Goal.FORWARD and unplanned(desired):
            way = plan_left_out(desired, *self.seen(), self._versions())
            renewed = with_left_out(renewed, way)
            left_out = {left.host: left.error for left in way.left_out if left.error}
        stage = self.fleet.stage(NAMES[desired.plan.bundle])
        return self.fleet.bring(renewed, stage=stage, left_out=left_out)

    def _versions(self):
        return {DIGESTS[b]: b.replace("b", "v") for b in self.in_store}

    def _id(self):
        return f"r-{next(self._number)}"
