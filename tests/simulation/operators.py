"""
What operators do in a simulated world: the commands of `deploy.wiring.releases`, with everything
staged, and the operator's own clock and connections.
"""

import functools
import sys
import traceback
from contextlib import contextmanager
from types import SimpleNamespace

from deploy.errors import DeployError
from deploy.host.records import from_line
from deploy.host.replay import replay
from deploy.host.slots.haproxy import parse_servers_state, parse_stat
from deploy.release import controller as controller_module
from deploy.release import store, store_etcd
from deploy.release.desired_text import from_text
from deploy.transport.parallel import on_each as parallel_on_each
from deploy.wiring import releases, state
from deploy.wiring.hosts import Hosts
from tests.builders import make_policy
from tests.local_fleet import LIMITS, StagingSummary
from tests.simulation.etcd import ENDPOINT, PREFIX, stand_ins
from tests.simulation.world import Killed, Operator, Violation

CANARY_PCT = 10
_ROW = "the same row"
_worlds = []


def policy(**changes):
    """
    A short canary: the same boundaries as a long one, and fewer of them.
    """
    canary = {
        "share_pct": CANARY_PCT,
        "duration": "4s",
        "give_up_after": "20s",
        "min_requests": 4,
        "interval": "2s",
    }
    gates = {"http_request_error_rate": {"action": "revert"}}
    fields = {"canary": canary, "gates": gates, "waves": [1, "100%"], "lease_ttl": "15s"}
    return make_policy(**fields | changes)


@contextmanager
def deterministic(world):
    """
    Give the commands the clock of the operator at work, and let their parallel work run host after
    host, in the order of the hosts.
    """
    replaced = []

    def put(module, name, new):
        replaced.append((module, name, getattr(module, name)))
        setattr(module, name, new)

    def at_work():
        return world.stack[-1]

    def controller(desired, **options):
        operator = at_work()
        made = controller_module.Controller(desired, **options)
        operator.controller, operator.keeper = made, options["keeper"]
        operator.store = options["store"]
        return made

    decide = controller_module.decide

    def noted(desired, seen, done=()):
        at_work().begin_round(seen, done)
        return decide(desired, seen, done)

    _worlds.append(world)
    try:
        for module in list(sys.modules.values()):
            if (
                getattr(module, "on_each", None) is parallel_on_each
                and module is not sys.modules[__name__]
            ):
                put(module, "on_each", _on_each)
        for function, quick in _remembering().items():
            for module in list(sys.modules.values()):
                if getattr(module, function.__name__, None) is function:
                    put(module, function.__name__, quick)
        etcd_client, in_its_place = stand_ins(at_work)
        for name, ours in in_its_place.items():
            put(etcd_client, name, ours)
        for module in (store, store_etcd):
            put(module, "random", SimpleNamespace(uniform=lambda low, high: (low + high) / 2))
        put(controller_module, "decide", noted)
        put(releases, "Controller", controller)
        for module in (releases, state):
            put(module, "SystemClock", at_work)
        put(state, "owner", lambda: at_work().name)
        put(releases, "actor", lambda: at_work().name)
        put(releases, "release_id", lambda version, now: f"{version}-{at_work().name}")
        put(releases, "_stage_of", lambda bundle, plan: _stage)
        put(releases, "_stage_again", lambda on, plan: _stage)
        put(releases, "signals_interrupt", _no_signals)
        yield
    finally:
        for module, name, old in reversed(replaced):
            setattr(module, name, old)
        _worlds.pop()


def _remembering():
    """
    Return pure functions of the program that a world calls again and again with the same text, each
    with one that remembers its results.
    """
    replay_whole, replayed, kept = replay, {}, {}

    def replay_quickly(records):
        # `from_line` remembers its records, so each line is one object; `kept` keeps them.
        records = list(records)
        key = tuple(map(id, records))
        if key not in replayed:
            replayed[key], kept[key] = replay_whole(records), records
        return replayed[key]._replace(good=list(replayed[key].good))

    parse_state = functools.cache(parse_servers_state)

    def parse_state_quickly(text, backend):
        # `state_without` changes the rows.
        return {name: dict(row) for name, row in parse_state(text, backend).items()}

    return {
        parse_servers_state: parse_state_quickly,
        from_line: functools.cache(from_line),
        from_text: functools.cache(from_text),
        parse_stat: functools.cache(parse_stat),
        replay: replay_quickly,
    }


def _stage(client):
    return StagingSummary()


@contextmanager
def _no_signals():
    yield


def _on_each(hosts, work, *, within_s=None, late=()):
    assert not late  # work that passes its deadline ends here: no host is ever late
    world = _worlds[-1]
    operator = world.stack[-1]
    was_s = operator.deadline_s
    errors = {}
    try:
        for host in dict.fromkeys(hosts):
            if within_s is not None:
                operator.deadline_s = min(was_s, world.now_s + within_s)
            try:
                work(host)
            except DeployError as error:
                errors[host] = error
            except Exception:
                raise Violation(traceback.format_exc()[-2000:]) from None
    finally:
        operator.deadline_s = was_s
    caller = sys._getframe(1)
    is_of_controller = caller.f_globals is vars(controller_module)
    if errors and is_of_controller and caller.f_code.co_name in ("_act", "_read"):
        # It goes on from these alone: what was answered before is forgotten.
        operator.begin_failure(errors)
    # A signal reaches the thread that waits for the others, and what has begun ends first.
    operator.interrupted()
    return errors


def _state_of(world):
    if world.etcd is None:
        return SimpleNamespace(kind="hosts")
    return SimpleNamespace(
        kind="etcd",
        endpoints=(ENDPOINT,),
        prefix=PREFIX,
        **dict.fromkeys(("ca", "cert", "key", "user", "password")),
    )


class Command:
    """
    One command of an operator, from its first look to its end.

    Attributes:
        ending: How it ended; None: its process was killed.
        error: The error that it ended with.

    Args:
        changes: Of the release policy.
    """

    def __init__(self, world, name, **changes):
        self.operator = Operator(world, name)
        self.world = world
        self.ending = self.error = None
        self.reason = ""
        hosts = [SimpleNamespace(name=host, row=_ROW) for host in world.hosts]
        fleet = SimpleNamespace(
            name="sim",
            release=policy(**changes),
            hosts=hosts,
            others=(),
            hooks=(),
            notify=(),
            state=_state_of(world),
            service=SimpleNamespace(start_timeout=LIMITS.start_s),
        )
        self._on = Hosts(fleet, self.operator.clients, {})

    def release(self, digest, version, *, steal=False):
        manifest = SimpleNamespace(row=_ROW, version=version)
        bundle = SimpleNamespace(digest=digest, version=version, manifest=manifest)

        def does():
            plan = releases.make_plan(self._on, bundle, CANARY_PCT, allow_older=True)
            return releases.run_release(self._on, bundle, plan, self._report, steal=steal)

        return self._do(does, f"release {version}")

    def rollback(self, *, steal=True, to=None):
        def does():
            way = releases.make_rollback(self._on, to)
            return releases.run_rollback(self._on, way, self._report, steal=steal)

        return self._do(does, f"rollback {to}")

    def abort(self):
        return self._do(lambda: releases.abort(self._on, self._report, steal=True), "abort")

    def resume(self):
        return self._do(lambda: releases.resume(self._on, self._report, steal=True), "resume")

    def stored(self):
        """
        Return the desired state of the fleet.
        """
        self.world.stack.append(self.operator)
        try:
            return releases.stored(self._on)
        finally:
            self.world.stack.pop()

    def bring(self, desired):
        """
        Go on with *desired*, which was read before.
        """

        def does():
            return releases._run(self._on, desired, self._report, stage=_stage, steal=True)

        return self._do(does, "bring")

    def _report(self, event):
        self.world.events.append((self.operator.name, event))

    def _do(self, work, intent):
        world, self.operator.intent = self.world, intent
        world.stack.append(self.operator)
        try:
            outcome = work()
            self.ending, self.error, self.reason = (
                str(outcome.ending), outcome.error, outcome.reason,
            )  # fmt: skip
        except Killed:
            self.ending = None
        except KeyboardInterrupt:
            self.ending = "interrupted"
        except DeployError as error:
            self.ending, self.error = "refused", error
            self.reason = f"{type(error).__name__}: {error.what}: {error.why}"
        finally:
            assert world.stack.pop() is self.operator
            self.operator.is_over = True
        return self
