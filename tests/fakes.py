"""
Fakes that behave, and are strict: what a real host would refuse, they refuse.
"""

import threading
from datetime import UTC, datetime, timedelta

from deploy import errors
from deploy.errors import CommandFailed, LeaseHeld, LeaseLost, PreconditionError, TransportError
from deploy.host.layout import SLOTS

_ANSWERS = {"metrics": True, "haproxy": {}}
_ZERO = {"requests": 0, "errors": 0, "broken": 0, "restarts": 0}


class FrozenClock:
    """
    Moves only when somebody sleeps.
    """

    def __init__(self, on_sleep=lambda seconds: None):
        self.now_s = 1000.0
        self._on_sleep = on_sleep

    def monotonic_s(self):
        return self.now_s

    def utc(self):
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now_s)

    def sleep(self, seconds):
        self.now_s += seconds
        self._on_sleep(seconds)


class FakeTransport:
    def __init__(self, host):
        self.host = host
        self.is_closed = False

    def close(self):
        self.is_closed = True


class FakeHost:
    """
    A host behind its tool: slots, HAProxy's shares, a lease and a journal, in memory.

    Attributes:
        fail_at: Verb to error; a verb may be `verb#2` for its second call only.
        staged: Bundles on disk.
    """

    def __init__(self, host="n1"):
        self.host = host
        self.transport = FakeTransport(host)
        self.fence = None
        self.release = None
        self.staged = set()
        self.slots = dict.fromkeys(SLOTS)  # bundle of the link
        self.running = dict.fromkeys(SLOTS, False)
        self.weights = dict.fromkeys(SLOTS, 0)
        self.counters = {slot: dict(_ZERO) for slot in SLOTS}
        self.failed_units = set()
        self.bad_golden = set()  # bundles whose answers differ
        self.good = []
        self.journal = []
        self.lease = None
        self.last_fence = 0
        self.calls = []
        self.fail_at = {}
        self._lock = threading.Lock()

    def serve(self, slot, bundle, version="v1"):
        self.staged.add(bundle)
        self.slots[slot] = bundle
        self.running[slot] = True
        self.weights = {name: 100 if name == slot else 0 for name in SLOTS}
        self.good.append({"release": f"r-{version}", "bundle": bundle, "version": version})
        return self

    def call(self, verb, args=None, *, timeout_s=15.0):
        with self._lock:
            self.calls.append((verb, args or {}))
            count = sum(1 for seen, _ in self.calls if seen == verb)
            error = self.fail_at.get(verb) or self.fail_at.get(f"{verb}#{count}")
            if error is not None:
                raise error
            does = getattr(self, "_" + verb.replace(".", "_"))
            return does(**(args or {}))

    def _fenced(self):
        if self.lease is None or self.lease["fence"] != self.fence:
            raise LeaseLost("x", why="another fence", fix="y", host=self.host)

    def _lease_acquire(self, owner, ttl_s, release):
        if self.lease is not None:
            raise LeaseHeld("x", why=f"held by {self.lease['owner']}", fix="y", host=self.host)
        self.last_fence += 1
        self.lease = {"owner": owner, "fence": self.last_fence}
        return {"fence": self.last_fence, "expires_at": 0}

    def _lease_renew(self, ttl_s):
        self._fenced()
        return {}

    def _lease_release(self):
        self._fenced()
        self.lease = None
        return {}

    def _journal_append(self, step, data):
        self._fenced()
        self.journal.append((step, data))
        return {}

    def _slot_start(self, slot, bundle, timeout_s):
        self._fenced()
        if bundle not in self.staged:
            raise PreconditionError("x", why=f"{bundle} is not staged", fix="y")
        if self.running[slot]:
            raise PreconditionError("x", why=f"{slot} runs", fix="y")
        self.slots[slot], self.running[slot] = bundle, True
        self.counters[slot] = dict(_ZERO)
        return {}

    def _slot_stop(self, slot, timeout_s):
        self._fenced()
        if self.weights[slot]:
            raise PreconditionError("x", why=f"{slot} has traffic", fix="y")
        self.running[slot] = False
        return {}

    def _golden(self, slot, timeout_s):
        assert self.running[slot]
        if self.slots[slot] in self.bad_golden:
            return {"total": 6, "passed": 5, "failures": [{"expected": "a", "got": "b"}]}
        return {"total": 6, "passed": 6, "failures": []}

    def _traffic_set(self, weights, force=False):
        self._fenced()
        wanted = self.weights | weights
        assert any(wanted.values()) or force, "no service, and not forced"
        for slot, weight in wanted.items():
            if weight and not self.running[slot]:
                raise CommandFailed("x", why=f"{slot} is not up", fix="y")
        self.weights = wanted
        return {"weights": dict(self.weights)}

    def _traffic_drain(self, slot, timeout_s):
        self._fenced()
        assert not self.weights[slot]
        return {"waited_s": 0.1, "left": 0}

    def _measure(self):
        return {
            "slots": {
                slot: self.counters[slot]
                | {"ready": self.running[slot], "unit": self._unit(slot), **_ANSWERS}
                for slot in SLOTS
            }
        }

    def _unit(self, slot):
        if slot in self.failed_units:
            return "failed"
        return "active" if self.running[slot] else "inactive"

    def _good_record(self, bundle, version, slot):
        self._fenced()
        self.good.append({"release": self.release, "bundle": bundle, "version": version})
        return {}

    def _good_rollback(self, to_release):
        self._fenced()
        names = [good["release"] for good in self.good]
        del self.good[names.index(to_release) + 1 :]
        return {}

    def _retire(self, keep):
        self._fenced()
        return {}

    def _status(self):
        return {
            "boot_id": "boot-1",
            "lease": self.lease,
            "slots": {
                slot: {
                    "bundle": self.slots[slot],
                    "version": self.slots[slot],
                    "unit": self._unit(slot),
                    "weight": self.weights[slot],
                    "haproxy": "UP" if self.running[slot] else "MAINT",
                    "sessions": 0,
                    "ready": self.running[slot],
                }
                for slot in SLOTS
            },
            "good": list(self.good),
            "unfinished": None,
            "paused": None,
        }


def lost(host):
    return TransportError(f"{host}: no answer", why="cut", fix="y", host=host)


def refused(host):
    return errors.CommandFailed(f"{host}: no", why="said no", fix="y", host=host)
