"""
A world of hosts, operators, traffic and one clock, in which every event has a number.
"""

import heapq
import itertools
import random
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from deploy.errors import TransportError
from deploy.host import layout as paths
from deploy.host.deadman import way_back
from deploy.host.layout import SLOTS
from deploy.transport.base import Completed
from deploy.transport.client import HostClient
from tests.local_host import serve
from tests.simulation.disk import mounted
from tests.simulation.etcd import Etcd
from tests.simulation.host import HostDied, SimulatedHost, VerbKilled, Violation
from tests.simulation.state import answer, digest, error_of, grain, plain

LATENCY_S = 0.02
SLOW_S = 4.0  # of an answer: longer than a way back waits for a host
UNREACHABLE_S = 2.0  # until a connection to nobody is given up
LATE_S = 0.15  # until a command runs whose connection was lost: the operator is at work again
REQUESTS_PER_S = 40  # of each host
DEADMAN_S = 5.0
BOUNDARIES_MAX = 3000  # of one run; an undisturbed one has 500


class Killed(BaseException):
    """
    The operator's process is gone.
    """


class Point(NamedTuple):
    """
    A boundary: where a fault may happen.

    Attributes:
        when: "send": before a verb leaves; "answer": after its effect, before its answer;
            "before", "after": of a sync, or of a change of systemd or HAProxy, inside a verb.
        verb: The verb, or "check" or "boot" of the host's own way back.
        what: Path or command, inside a verb.
    """

    when: str
    host: str
    verb: str
    what: str = ""
    operator: str = ""


class Delivery:
    """
    What happens to one command on its way; faults set it.
    """

    def __init__(self):
        self.is_lost = self.is_late = self.is_twice = self.is_slow = False


class Machinery:
    """
    The host's own way back, as its units run it.
    """

    def check(self, host):
        # ConditionPathExists= of the unit: without one of them nothing is started.
        if host.layout.pending.exists():
            way_back.check(host)

    def boot(self, host):
        if host.layout.pending.exists():
            way_back.boot(host)


class World:
    """
    Attributes:
        now_s: Of the one clock; hosts have clocks of their own over it.
        at_boundary: Called with each `Point`, and the `Delivery` where a command is on its way.
        truth: What the simulation knows beside the hosts: see `invariants`.
        errors: Bundles whose requests fail.
        etcd: Where the desired state is; None: on the hosts.
    """

    def __init__(self, names, machinery=None, *, has_etcd=False):
        self.now_s = 10_000.0
        self.etcd = Etcd(self) if has_etcd else None
        self.machinery = machinery or Machinery()
        self._events = []
        self._count = itertools.count()
        self.at_boundary = lambda point, delivery: None
        self.watch = lambda: None
        self.hosts = {name: SimulatedHost(self, name) for name in names}
        self.operators = []
        self.errors = set()
        self.requests_per_s = REQUESTS_PER_S
        self.lost = 0
        self.stack = []
        self.commands = []
        self.quiet_s = 0.0
        self._boundaries = 0
        self.events = []
        random.seed(1)
        for number, host in enumerate(self.hosts.values()):
            self._every(DEADMAN_S, 1.3 + number * 1.7, host)

    # -- time

    def at(self, after_s, work, label=""):
        event = _Event(work, label)
        heapq.heappush(self._events, (self.now_s + after_s, next(self._count), event))
        return event

    def pending_events(self):
        return [entry for entry in self._events if not entry[2].is_cancelled]

    def pass_s(self, seconds):
        until_s = self.now_s + seconds
        while self._events and self._events[0][0] <= until_s:
            due_s, _, event = heapq.heappop(self._events)
            self._move(due_s)
            if not event.is_cancelled:
                event.work()
        self._move(until_s)

    def _move(self, to_s):
        seconds = to_s - self.now_s
        if seconds <= 0:
            return
        self.now_s = to_s
        for host in self.hosts.values():
            host.check_health()
            self._traffic(host, seconds)
        self.watch()

    def _every(self, period_s, first_s, host):
        def run():
            self.at(period_s, run, f"check {host.name}")
            host.own("check", lambda: self.machinery.check(host))

        self.at(first_s, run, f"check {host.name}")

    def _traffic(self, host, seconds):
        if not (host.is_on and host.proxy.is_running) or host.frozen_until_s > self.now_s:
            return
        weights = host.proxy.weights
        total = sum(weights.values())
        for slot in SLOTS:
            if not weights[slot]:
                continue
            share = self.requests_per_s * seconds * weights[slot] / total + host.fractions[slot]
            count = int(share)
            host.fractions[slot] = share - count
            if count and host.unit_of(slot).active == "active":
                bad = count if host.linked(slot) in self.errors else 0
                host.answer(slot, count, bad)

    def stops_at(self, at_s):
        """
        Note until when a fault lasts: what must hold afterwards is counted from there.
        """
        self.quiet_s = max(self.quiet_s, at_s)

    # -- boundaries

    def boundary(self, when, host, verb, what="", operator="", delivery=None):
        self._boundaries += 1
        if self._boundaries > BOUNDARIES_MAX:
            raise Violation(f"no end after {BOUNDARIES_MAX} boundaries")
        self.at_boundary(Point(when, host, verb, what, operator), delivery)


class _Event:
    def __init__(self, work, label):
        self.work, self.label = work, label
        self.is_cancelled = False


class Operator:
    """
    One operator: its clock, its connections, and whether its process lives.

    Attributes:
        paused_until_s: Its process does not run until then: a suspended laptop.
    """

    def __init__(self, world, name):
        self.world, self.name = world, name
        self.is_dead = False
        self.is_terminated = False
        self.paused_until_s = 0.0
        self.is_over = self.in_timer = False
        self.intent = ""
        self.deadline_s = float("inf")  # of the calls of parallel work
        self.controller = self.keeper = self.store = None
        self.trail, self.first = [], {}
        self.round_s = world.now_s
        self.calling = []  # (host, verb) of calls that have not returned, the outermost first
        world.operators.append(self)
        self.clients = {
            host: HostClient(Transport(self, world.hosts[host]), actor=name, sudo=False)
            for host in world.hosts
        }

    # -- the clock of a release

    def monotonic_s(self):
        return self.world.now_s

    def utc(self):
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.world.now_s)

    def sleep(self, seconds):
        self.alive()
        self.world.pass_s(seconds)
        self.alive()
        self.interrupted()

    def interrupted(self):
        """
        Raise the interruption of a signal, where the thread is that gets it.
        """
        if self.is_terminated and not self.in_timer:
            self.is_terminated = False
            raise KeyboardInterrupt("SIGTERM")

    def begin_round(self, seen, done):
        self.trail = [plain((seen, done))]
        self.round_s = self.world.now_s
        self.first = {}

    def begin_failure(self, errors):
        self.trail = [(host, error_of(error)) for host, error in sorted(errors.items())]
        self.round_s = self.world.now_s
        self.first = {}

    def trail_digest(self):
        return digest((self.trail, grain(self.world.now_s - self.round_s)))

    def note(self, host, verb, text):
        """
        Remember what a host answered since the last decision; None: nothing.
        """
        if text is None:
            self.trail.append((host, verb))
            return
        numbers, told, _ = answer(verb, text, self.first.get(host))
        if numbers is not None:
            self.first.setdefault(host, numbers)
        self.trail.append((host, verb, told))

    def start_timer(self, body, after_s):
        timer, label = _Timer(), f"timer of {self.name}"

        def run():
            if self.is_dead or timer.is_cancelled:
                return
            if self.paused_until_s > self.world.now_s:
                timer.event = self.world.at(self.paused_until_s - self.world.now_s, run, label)
                return
            self.in_timer, was = True, self.in_timer
            self.world.stack.append(self)
            try:
                again_s = body()
            except Killed:
                return
            finally:
                self.world.stack.pop()
                self.in_timer = was
            if again_s is not None and not timer.is_cancelled:
                timer.event = self.world.at(again_s, run, label)

        timer.event = self.world.at(after_s, run, label)
        return timer

    def alive(self):
        if self.is_dead:
            raise Killed(self.name)
        while self.paused_until_s > self.world.now_s:
            self.world.pass_s(self.paused_until_s - self.world.now_s)
        if self.is_dead:
            raise Killed(self.name)


class _Timer:
    def __init__(self):
        self.is_cancelled = False
        self.event = None

    def cancel(self):
        self.is_cancelled = True
        if self.event is not None:
            self.event.is_cancelled = True


class Transport:
    """
    The connection of one operator to one host.
    """

    def __init__(self, operator, host):
        self._operator, self._host, self._world = operator, host, operator.world
        self.host = host.name
        self.sent = []

    def run(self, argv, *, timeout_s, stdin=None, check=True, output_max=2**20):
        operator, verb = self._operator, argv[-1]
        operator.calling.append((self.host, verb))
        line = None
        try:
            completed = self._run(argv, timeout_s, stdin)
            line = completed.stdout
            return completed
        finally:
            operator.calling.pop()
            operator.note(self.host, verb, line)

    def _run(self, argv, timeout_s, stdin):
        operator, host, world = self._operator, self._host, self._world
        operator.alive()
        verb, text = argv[-1], (stdin or b"").decode()
        assert list(argv[:-1]) == list(paths.HOST_COMMAND), argv
        delivery = Delivery()
        world.boundary("send", host.name, verb, operator=operator.name, delivery=delivery)
        operator.alive()
        began_s = world.now_s
        until_s = min(began_s + timeout_s, operator.deadline_s)
        if delivery.is_late:
            world.at(LATE_S, lambda: self._late(verb, text), f"{verb} {text}")
        if delivery.is_late or delivery.is_lost:
            world.pass_s(LATENCY_S)
            raise self._lost(f"{verb}: the connection was lost")
        self._reach(verb, text, until_s)
        world.pass_s(LATENCY_S)
        self._reach(verb, text, until_s)
        try:
            line = host.program(verb, text)
        except HostDied:
            line = None
        except VerbKilled:
            line = None
        operator.alive()
        if line is not None:
            delivery = Delivery()
            world.boundary("answer", host.name, verb, operator=operator.name, delivery=delivery)
            if delivery.is_twice and host.is_on:
                self._late(verb, text)
            if delivery.is_slow:
                world.pass_s(min(SLOW_S, max(0.0, until_s - world.now_s)))
            operator.alive()
            if delivery.is_slow and world.now_s >= until_s:
                raise self._lost(f"{verb}: no answer in time")
        if line is None or delivery.is_lost or not host.is_on or host.cut_until_s > world.now_s:
            world.pass_s(LATENCY_S)
            operator.alive()
            raise self._lost(f"{verb}: the connection was lost")
        if world.now_s > until_s + 1.0:
            raise self._lost(f"{verb} did not answer within {timeout_s:g} s")
        return Completed(tuple(argv), 0, line + "\n", "", world.now_s - began_s)

    def put(self, local, remote, *, timeout_s, mode=0o644):
        raise AssertionError("everything is staged")

    def close(self):
        pass

    def _reach(self, verb, text, until_s):
        """
        Wait until the host can be reached.
        """
        host, world, operator = self._host, self._world, self._operator
        if not host.is_on or host.cut_until_s > world.now_s:
            world.pass_s(min(UNREACHABLE_S, until_s - world.now_s))
            operator.alive()
            raise self._lost("no route to host")
        if host.frozen_until_s > world.now_s:
            if host.frozen_until_s > until_s:
                # It is in the host's buffers, and runs as soon as the host does.
                after_s = host.frozen_until_s - world.now_s + 0.01
                world.at(after_s, lambda: self._late(verb, text), f"{verb} {text}")
                world.pass_s(until_s - world.now_s)
                operator.alive()
                raise self._lost(f"{verb}: no answer")
            world.pass_s(host.frozen_until_s - world.now_s + 0.02)
            operator.alive()

    def _late(self, verb, text):
        host = self._host
        if not host.is_on or host.cut_until_s > self._world.now_s:
            return
        with suppress(HostDied, VerbKilled):
            host.program(verb, text)

    def _lost(self, why):
        return TransportError(
            f"{self.host}: no answer", why=why, fix="check the network", host=self.host
        )


@contextmanager
def world_of(*names, serving=None, version="v1", machinery=None, has_etcd=False):
    """
    Yield a world of the hosts *names*, which serve the bundle *serving* from blue.
    """
    with mounted():
        world = World(names, machinery, has_etcd=has_etcd)
        for host in world.hosts.values():
            host.is_watching = False
            if serving:
                serve(host, serving, version)
            provision(host)
            host.disk.sync_all()
            host.is_watching = True
        yield world


def provision(host):
    """
    Lay down what provisioning does: the reserve, the marks, HAProxy's state.
    """
    layout = host.layout
    for directory in (layout.etc, layout.state, layout.releases, layout.incoming):
        directory.mkdir(parents=True, exist_ok=True)
    layout.host_config.write_text('{"fleet": "sim", "locks": [], "port": 8000}')
    from deploy.host.reserve import lay_again

    lay_again(host)
    layout.haproxy_state.write_text(host.haproxy("show servers state"))
