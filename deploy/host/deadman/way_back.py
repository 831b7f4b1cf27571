"""
What the host runs by itself: the check of its timer, and the work of its boot.

Neither is reachable through the protocol, needs a lease, or stops at the first thing that fails:
whatever is left undone is done 5 seconds later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from deploy.host import files
from deploy.host.deadman import pending, self_test
from deploy.host.deadman.pending import GO_BACK, Way, why_due
from deploy.host.journal import Journal, result_of
from deploy.host.journaled import LOCK_TIMEOUT_S, intent_of
from deploy.host.layout import HAPROXY_UNIT, unit
from deploy.host.protocol import Call, ErrorKind, HostError
from deploy.host.records import Intent, Result
from deploy.host.reserve import with_room, write_spare
from deploy.host.slots import systemd
from deploy.host.slots.haproxy import DRAIN, MAINT, READY, Haproxy, Server, state_without
from deploy.host.slots.slot import end
from deploy.host.system import System, utc
from deploy.host.trusted_files import Untrusted, read_plain

ACTOR = "deadman"
UP_TIMEOUT_S = 4.0  # shorter than the time to the next check, which goes on
HAPROXY_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 60.0  # as long as slot.stop gives
_POLL_S = 0.05


class HandsOff(Exception):
    """
    An operator has the host again.
    """


def check(system: System) -> str:
    """
    Take back what is pending if nobody can confirm it any more; return what was done, in words.

    Idempotent, and safe beside every verb: each change is made under the host's lock, and none once
    an operator has a lease again.

    Raises:
        HostError: Something is left to do.
    """
    self_test.answer(system)
    repaired = _repaired(system)
    way = pending.read(system)
    if way is None:
        return repaired or "nothing is pending"
    try:
        return _WayBack(system, way).go()
    except HandsOff:
        return f"release {way.release} is pending: its operator has the host"


def boot(system: System) -> str:
    """
    Before HAProxy and the slots start: let them start without what was not confirmed.

    The check verifies and ends the way back afterwards.

    Raises:
        HostError: Something of it failed; the rest was done.
    """
    failures = Failures()
    with failures.caught():
        _repaired(system)
    way = pending.read(system)
    if way is None or way.boot_id == system.boot_id():
        failures.raise_first()
        return "nothing is pending of an earlier boot"
    with files.locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        with failures.caught():
            _rewrite_state(system, way)
        with failures.caught():
            # Its start is queued already: stopping takes it out of the queue.
            systemd.begin_stop(system, unit(way.to_slot))
        with failures.caught():
            systemd.disable(system, unit(way.to_slot))
        if way.from_slot is not None:
            with failures.caught():
                systemd.enable(system, unit(way.from_slot))
            with failures.caught():
                systemd.begin_start(system, unit(way.from_slot))
    failures.raise_first()
    return f"release {way.release} was not confirmed: {way.from_slot or 'no slot'} serves"


def _repaired(system: System) -> str:
    """
    Repair a damaged file; return what was done, in words.

    Raises:
        HostError: Nothing says what is pending.
    """
    if not pending.is_damaged(system):
        return ""
    with files.locked(system, system.layout.lock, LOCK_TIMEOUT_S):
        return pending.repair(system)


class Failures:
    """
    Lets a sequence go on after a failure of one step.
    """

    def __init__(self) -> None:
        self._first: Exception | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        try:
            yield
        except (HostError, OSError, ValueError) as error:
            self._first = self._first or error

    def raise_first(self) -> None:
        if self._first is not None:
            raise self._first


class _WayBack:
    """
    One pass of going back.
    """

    def __init__(self, system: System, way: Way) -> None:
        self._system, self._way = system, way
        self._proxy = Haproxy(system)
        self._failures = Failures()

    def go(self) -> str:
        with self.locked():
            self._begin()
        with self._failures.caught():
            self._start()
        with self._failures.caught():
            self._move_traffic()
            self._stop()
            self._refuse_unless_up()
        with self.locked():
            self._failures.raise_first()
            self._finish()
        return f"release {self._way.release} was taken back: {self._way.why}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Hold the host's lock for one change.

        Raises:
            HandsOff: The change was confirmed or taken back meanwhile, or a lease is in force.
        """
        with files.locked(self._system, self._system.layout.lock, LOCK_TIMEOUT_S):
            is_same = self._way.is_same(pending.read(self._system))
            if not is_same or why_due(self._system, self._way) is None:
                raise HandsOff
            yield

    def _begin(self) -> None:
        """
        Note the beginning, once for all passes.
        """
        if self._way.at is not None:
            return
        at, why = utc(self._system.wall_s()), why_due(self._system, self._way)
        self._way = self._way._replace(at=at, why=why)
        with contextlib.suppress(OSError):
            pending.write(self._system, self._way)
        self._note(self._intent)

    def _start(self) -> None:
        """
        Start the slot that served before, where it does not run.
        """
        if self._way.from_slot is None:
            return
        name = unit(self._way.from_slot)
        with self.locked():
            state = systemd.show(self._system, [name])[name]
            if not state.runs:
                systemd.begin_start(self._system, name)
            if not state.is_enabled:
                systemd.enable(self._system, name)

    def _move_traffic(self) -> None:
        """
        Give all the traffic to the slot that served before, once it is UP.

        Raises:
            HostError: It is not UP, and the slot of the change is: users keep that one.
        """
        from_slot, to_slot = self._way.from_slot, self._way.to_slot
        servers = self._servers()
        if from_slot is not None and servers[from_slot].admin != READY:
            with self.locked():
                # At weight 0 HAProxy checks it and sends it nothing.
                self._proxy.set_weight(from_slot, 0)
                self._proxy.set_admin(from_slot, READY)
        if not self._wait_up() and _serves(self._servers()[to_slot]):
            raise self._not_up(f"slot {to_slot} keeps its traffic until then")
        with self.locked():
            if from_slot is not None:
                self._proxy.set_weight(from_slot, 100)
                self._proxy.set_admin(from_slot, READY)
            self._proxy.set_weight(to_slot, 0)
            if self._proxy.servers()[to_slot].admin != MAINT:
                self._proxy.set_admin(to_slot, DRAIN)
            self._save()

    def _stop(self) -> None:
        """
        Stop the slot of the change now and for every boot; kill it if it does not end.
        """
        name = unit(self._way.to_slot)
        with self.locked():
            systemd.begin_stop(self._system, name)
            with self._failures.caught():
                systemd.disable(self._system, name)
        if end(self._system, self.locked, name, STOP_TIMEOUT_S) is None:
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                f"{name} does not end, also when it is killed",
                f"it has no traffic any more; release {self._way.release} was not confirmed",
                f"systemctl status {name} on the host",
            )
        with self.locked():
            self._proxy.set_admin(self._way.to_slot, MAINT)
            self._save()

    def _refuse_unless_up(self) -> None:
        if not self._wait_up():
            raise self._not_up("it has all the weight, and is being started")

    def _finish(self) -> None:
        self._note(result_of(self._intent, result={}))
        pending.end(self._system, self._system.layout.went_back)

    def _servers(self) -> dict[str, Server]:
        """
        Return HAProxy's servers; where it does not answer, start it first, or restart it.
        """

        def servers() -> dict[str, Server] | None:
            try:
                return self._proxy.servers()
            except HostError:
                return None

        answered = servers()
        if answered is None:
            with self.locked():
                # Or it would start with the weights of the change.
                with contextlib.suppress(OSError, ValueError):
                    _rewrite_state(self._system, self._way)
                systemd.begin_start(self._system, HAPROXY_UNIT)
            answered = self._system.poll_until(servers, HAPROXY_TIMEOUT_S, _POLL_S)
        if answered is None:
            with self.locked():
                # One that runs is not started: it hangs, or the file of its socket was removed.
                state = systemd.show(self._system, [HAPROXY_UNIT])[HAPROXY_UNIT]
                if state.active == "active":
                    systemd.restart(self._system, HAPROXY_UNIT)
            answered = self._system.poll_until(servers, HAPROXY_TIMEOUT_S, _POLL_S)
        if answered is None:
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                "HAProxy does not answer",
                f"not within {HAPROXY_TIMEOUT_S:.0f} s of its start, or not with both slots",
                f"systemctl status {HAPROXY_UNIT} on the host",
            )
        return answered

    def _wait_up(self) -> bool:
        from_slot = self._way.from_slot
        if from_slot is None:
            return True

        def is_up() -> bool | None:
            return True if self._proxy.servers()[from_slot].is_up else None

        return self._system.poll_until(is_up, UP_TIMEOUT_S, _POLL_S) is True

    def _not_up(self, what_now: str) -> HostError:
        return HostError(
            ErrorKind.COMMAND_FAILED,
            f"slot {self._way.from_slot} is not UP yet",
            what_now,
            f"journalctl -u {unit(self._way.from_slot or '')} on the host",
        )

    def _save(self) -> None:
        with self._failures.caught():
            _write_state(self._system, self._proxy.state())

    def _note(self, record: Intent | Result) -> None:
        """
        Write a line of the journal, if it can be written: that never stops the way back.
        """
        with contextlib.suppress(Exception):
            Journal(self._system).append(record)

    @property
    def _intent(self) -> Intent:
        # The same in each pass: the result may be that of a later one.
        way = self._way
        args = {"to_slot": way.to_slot, "from_slot": way.from_slot, "why": way.why}
        return intent_of(Call(None, way.release, ACTOR), GO_BACK, args)


def _serves(server: Server) -> bool:
    return server.is_up and server.weight > 0


def _rewrite_state(system: System, way: Way) -> None:
    """
    Change what HAProxy reads at its start, so that it starts without the change.
    """
    path = system.layout.haproxy_state
    try:
        text = read_plain(path).decode()
    except FileNotFoundError:
        return
    except Untrusted:
        files.remove(path)  # HAProxy would wait for a pipe
        return
    _write_state(system, state_without(text, way.to_slot, way.from_slot))


def _write_state(system: System, text: str) -> None:
    data = text.encode()
    with_room(system, lambda: write_spare(system.layout.haproxy_state, data, 0o644))
