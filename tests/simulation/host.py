"""
A host of a simulated world: the real host program over a disk in memory, with boots and crashes.
"""

import contextlib
import json
import traceback

from deploy.host.__main__ import handle
from deploy.host.disk import nearest_existing
from deploy.host.files import link_atomic
from deploy.host.layout import SLOTS
from deploy.host.protocol import REQUESTS, DeadmanConfirm, HostError
from tests.local_host import CHECK_INTERVAL_S, FakeSystem
from tests.simulation.disk import PREFIX, Disk, _open

BOOT_S = 8.0  # from power on to the first unit
SLOT_START_S = 1.0  # of an enabled slot, at boot or after a crash
HAPROXY_START_S = 0.5  # of systemd's restart of HAProxy


class Violation(BaseException):
    """
    An invariant does not hold; nothing between here and the simulation may go on after it.
    """


class HostDied(BaseException):
    """
    The host went off under a running host program.
    """


class VerbKilled(BaseException):
    """
    Somebody killed the host program in the middle of a verb.
    """


class _Clock:
    """
    The clocks of one host: its boot clock restarts at each boot, its wall clock may be set.
    """

    def __init__(self, world):
        self._world = world
        self.wall_offset = 1_750_000_000.0
        self.booted_s = world.now_s - 5_000.0

    @property
    def wall(self):
        return self._world.now_s + self.wall_offset

    @property
    def steady(self):
        return self._world.now_s - self.booted_s


class SimulatedHost(FakeSystem):
    """
    Attributes:
        boots: Counts the boots.
        is_on: It has power and its kernel runs.
        frozen_until_s, cut_until_s: On the world's clock: until then nothing runs; until then
            nothing reaches it and it reaches nobody.
        excused_until_s: Until then it need not serve: it died itself, or its own HAProxy or slot
            did.
    """

    def __init__(self, world, name):
        self.world, self.name = world, name
        self.disk = Disk(f"{PREFIX}{name}")
        self.disk.gone = lambda: HostDied(name)
        self.disk.on_sync = self._at_sync
        super().__init__(f"{PREFIX}{name}", clock=_Clock(world))
        self._links = {
            slot: self.layout.slot_link(slot).relative_to(self.layout.root).parts for slot in SLOTS
        }
        self.boots = 1
        self.is_on = True
        self.frozen_until_s = self.cut_until_s = self.excused_until_s = 0.0
        self.has_metrics_until_s = 0.0
        self.verbs = 0  # that ever ran
        self.running = []  # verbs in progress, the innermost last
        self.is_watching = True  # faults happen at its syncs
        self.confirmed = set()  # releases that an operator was told are kept
        self.fractions = dict.fromkeys(SLOTS, 0.0)

    @property
    def boot(self):
        return f"{self.boots:08d}-2222-3333-4444-555555555555"

    @boot.setter
    def boot(self, value):
        pass

    # -- what verbs call

    def sleep(self, seconds):
        boots = self.boots
        self.world.pass_s(seconds)
        self._still(boots)
        if self.frozen_until_s > self.world.now_s:
            self.world.pass_s(self.frozen_until_s - self.world.now_s)
            self._still(boots)

    def _still(self, boots):
        if not self.is_on or self.boots != boots:
            raise HostDied(self.name)

    def free_bytes(self, path):
        assert nearest_existing(path).is_relative_to(self.layout.root)
        return self.disk.free

    def lock(self, descriptor, timeout_s):
        # A verb inside another one: a timer of the host that ran while the other slept.
        opened = _open[descriptor]
        key = opened.node.ino
        if any(o.is_locked for o in _open.values() if o.node.ino == key and o.disk is self.disk):
            self.sleep(timeout_s)
            return False
        opened.is_locked = True
        return True

    def run(self, argv, *, timeout_s, stdin=b"", env=None):
        self._on()
        changes = argv[0] == "systemctl" and argv[1] != "show"
        if changes:
            self._at_sync("before", " ".join(argv))
            self._on()
        result = super().run(argv, timeout_s=timeout_s, stdin=stdin, env=env)
        if changes:
            self._at_sync("after", " ".join(argv))
            self._on()
        return result

    def haproxy(self, command):
        self._on()
        changes = command.startswith("set")
        if changes:
            self._at_sync("before", command)
            self._on()
        was_up = changes and self._has_up()
        answer = super().haproxy(command)
        if was_up and not self._has_up():
            raise Violation(f"{self.name}: no slot with traffic is UP after: {command}")
        if changes:
            self._at_sync("after", command)
            self._on()
        return answer

    def _on(self):
        if not self.is_on:
            raise HostDied(self.name)

    def http(self, slot, *words, **options):
        self._on()
        return super().http(slot, *words, **options)

    def _is_ready(self, slot):
        # As `FakeSystem` has it, and without a walk through `os` for each of thousands of looks.
        is_ready = self._runs(slot) and self.runtimes[slot].is_ready
        return is_ready and _at(self, "run", "slipway", slot, "runtime.sock") is not None

    def _has_up(self):
        return any(s.weight and s.status == "UP" for s in self.proxy.servers.values())

    def _at_sync(self, when, path):
        if self.running and self.is_watching:
            self.world.boundary(
                when, self.name, self.running[-1], path.removeprefix(str(self.layout.root))
            )

    def program(self, verb, text):
        """
        Return the answer of the host program to *verb*.

        Raises:
            HostDied: The host went off meanwhile.
            VerbKilled: The program was killed.
        """
        lease, steady_s = content(self, "lease.json"), self.clock.steady
        answer = self._running(verb, lambda: handle(self, verb, text))
        is_done = answer.startswith('{"ok": true')
        if is_done and REQUESTS[verb].NEEDS_LEASE:
            fence = json.loads(text)["fence"]
            if lease is None or lease["fence"] != fence or lease["expires_steady_s"] <= steady_s:
                raise Violation(f"{self.name}: {verb} was done under lease {fence}, of {lease}")
        if is_done and verb == DeadmanConfirm.VERB and json.loads(text)["args"]["keep"]:
            self.confirmed.add(json.loads(text)["release"])
        return answer

    def own(self, name, work):
        """
        Run *work*, which one of its own units does, unless the host is off or frozen.
        """
        if not self.is_on or self.frozen_until_s > self.world.now_s or name in self.running:
            return
        # What fails, systemd starts again in 5 s.
        with contextlib.suppress(HostDied, VerbKilled, HostError, OSError, ValueError):
            self._running(name, work)

    def _running(self, verb, work):
        if not self.is_on:
            raise HostDied(self.name)
        self.verbs += 1
        self.running.append(verb)
        before = set(_open)
        try:
            return work()
        except AssertionError:  # of the strict fakes
            raise Violation(traceback.format_exc()[-2000:]) from None
        finally:
            self.running.pop()
            if set(_open) - before:
                # The kernel closes what a killed program had open.
                for number in set(_open) - before:
                    if _open[number].disk is self.disk:
                        del _open[number]

    # -- what happens to it

    def excuse(self, seconds):
        self.excused_until_s = max(self.excused_until_s, self.world.now_s + seconds)

    def power_off(self, *, loses):
        """
        Go off, with everything written (None), unsynced writes lost ("all") or their contents
        ("contents").
        """
        self.is_on = False
        if loses is None:
            self.disk.sync_all()
        else:
            self.disk.cut(keeps_names=loses == "contents")
        self.disk.is_gone = True
        self.proxy.is_running = False
        for slot in SLOTS:
            own = self.unit_of(slot)
            own.active, own.sub, own.queued, own.restarts, own.tasks = (
                "inactive",
                "dead",
                None,
                0,
                0,
            )
            own.result, own.status = "success", 0
            own.was_started, own.cpu_weight = False, 100

    def power_on(self):
        """
        Boot: the host's own way back first, then HAProxy and the enabled slots.
        """
        self.boots += 1
        self.clock.booted_s = self.world.now_s
        self.is_on = True
        self.disk.is_gone = False
        self.frozen_until_s = 0.0
        self.excuse(SLOT_START_S + 2.0)
        enabled = [slot for slot in SLOTS if self.unit_of(slot).enabled]
        for slot in SLOTS:
            self.unit_of(slot).queued = "start" if slot in enabled else None
        pending = content(self, "pending.json")
        self.own("boot", lambda: self.world.machinery.boot(self))
        if not self.is_on:
            return  # it died again
        if not self.proxy.is_running:
            self.start_haproxy()
        self.world.invariants.check_start(self, pending)
        boots = self.boots
        for slot in SLOTS:
            # A stop by the host's own way back has taken the start out of the queue.
            if self.unit_of(slot).queued == "start" and self.linked(slot):
                self.unit_of(slot).start(self.bad_starts.get(self.linked(slot)))
        self.world.at(SLOT_START_S, lambda: self._look(boots), f"slots of {self.name}")

    def _look(self, boots):
        if self.is_on and self.boots == boots:
            for slot in SLOTS:
                if self.unit_of(slot).active == "activating":
                    self.runtimes[slot].restart()
                self.unit_of(slot).look()

    def start_haproxy(self):
        """
        Start HAProxy from its state file.
        """
        state = None
        with contextlib.suppress(OSError):
            state = self.layout.haproxy_state.read_text()
        try:
            self.proxy.start(state, self.clock.steady)
        except ValueError:  # HAProxy ignores a file that it cannot read
            self.proxy.start(None, self.clock.steady)

    def stop_haproxy(self):
        """
        Kill HAProxy; systemd starts it again.
        """
        if not self.proxy.is_running:
            return
        self.proxy.is_running = False
        self.excuse(HAPROXY_START_S + 2 * CHECK_INTERVAL_S)
        boots = self.boots

        def start():
            if self.is_on and self.boots == boots:
                self.start_haproxy()

        self.world.at(HAPROXY_START_S, start, f"haproxy of {self.name}")

    def crash(self, slot):
        """
        Let the process of *slot* die; systemd starts it again.
        """
        own = self.unit_of(slot)
        if own.active != "active":
            return
        own.active, own.sub, own.restarts = "activating", "auto-restart", own.restarts + 1
        own.result, own.status, own.how, own.queued, own.looks = "signal", 9, "ready", None, 0
        self.excuse(SLOT_START_S + 3 * CHECK_INTERVAL_S)
        boots = self.boots

        def restart():
            if self.is_on and self.boots == boots and own.sub == "auto-restart":
                self.runtimes[slot].restart()
                own.active, own.sub = "active", "running"

        self.world.at(SLOT_START_S, restart, f"{slot} of {self.name}")

    # -- what is true of it

    def check_health(self):
        """
        Let HAProxy do the health checks that are due.
        """
        if self.is_on and self.proxy.is_running:
            for slot, server in self.proxy.servers.items():
                server.check(self.clock.steady, self._is_ready(slot))

    def serving(self):
        """
        Return the slots that take requests and answer them.
        """
        if not (self.is_on and self.proxy.is_running):
            return []
        return [
            slot
            for slot, server in self.proxy.servers.items()
            if server.weight and server.health and self._is_ready(slot)
        ]

    def shares(self):
        """
        Return the share of each bundle in the host's traffic, in percent of all.
        """
        weights = {s: w for s, w in self.proxy.weights.items() if w and self.proxy.is_running}
        total = sum(weights.values())
        return {self.linked(slot): 100 * w / total for slot, w in weights.items()}

    def linked(self, slot):
        # As `_is_ready`.
        if self.disk.is_gone:
            raise HostDied(self.name)
        node = _at(self, *self._links[slot])
        return None if node is None else node.content.rpartition("/")[2]

    def link(self, slot, bundle):
        self.layout.slot_links.mkdir(parents=True, exist_ok=True)
        link_atomic(self.layout.slot_link(slot), self.layout.release(bundle))


def node_of(host, name):
    """
    Return the node of a file of the host program's state directory.
    """
    return _at(host, "var", "lib", "slipway", name)


def _at(host, *parts):
    node = host.disk.top
    for part in parts:
        node = node.content.get(part) if node is not None else None
    return node


def content(host, name):
    node = node_of(host, name)
    try:
        return None if node is None else json.loads(bytes(node.content))
    except ValueError:
        return None
