"""
A way back acts on the hosts that answer, however long the others take.
"""

import threading
from types import SimpleNamespace

import pytest

from deploy.errors import PreconditionError, TransportError
from deploy.host.protocol import Status
from deploy.leases.keeper import LeaseKeeper
from deploy.release.desired import Ending, Goal
from deploy.release.observe import look
from deploy.release.store import HostStore
from deploy.wiring.hosts import Hosts
from tests.unit.deploy.release.conftest import NAMES

_RENEWAL = "lease.renew"  # its own timer waits for it, by the clock of the test


class Frozen:
    """
    A host whose program does nothing from `freeze` to `thaw`; its network takes the commands.

    Attributes:
        was_thawed: False where a command waited so long that the test has failed.
    """

    def __init__(self, transport, monkeypatch):
        self._send = transport.run
        self._thawed = threading.Event()
        self._thawed.set()
        self.was_thawed = True
        monkeypatch.setattr(transport, "run", self._run)

    def freeze(self):
        self._thawed.clear()

    def thaw(self):
        self._thawed.set()

    def _run(self, argv, **options):
        if argv[-1] != _RENEWAL and not self._thawed.wait(60):
            self.was_thawed = False
        return self._send(argv, **options)


@pytest.fixture
def frozen(fleet, monkeypatch):
    for module in ("controller", "store"):
        monkeypatch.setattr(f"deploy.release.{module}.ANSWER_WITHIN_S", 0.3)
    host = Frozen(fleet["n1"], monkeypatch)
    yield host
    host.thaw()


def test_a_refused_release_goes_back_beside_a_frozen_host(fleet, frozen):
    """
    n1 freezes at the verdict, and answers again when the other hosts have gone back.
    """
    reverted = []

    def report(event):
        if event.name == "canary.rejected":
            frozen.freeze()
        if event.name == "host.reverted":
            reverted.append(event.host)
            if set(reverted) >= {"n2", "n3"}:
                frozen.thaw()

    fleet.errors_when_promoted_per_s = 1
    outcome = fleet.release(report=report)

    assert outcome.ending is Ending.REVERTED
    assert frozen.was_thawed
    assert set(reverted) == set(NAMES)
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_a_host_that_is_slower_than_the_others_goes_back_too(fleet, frozen, monkeypatch):
    """
    Each answer of n1 takes longer than the others are waited for.
    """
    is_slow, send = threading.Event(), fleet["n1"].run

    def run(argv, **options):
        if is_slow.is_set() and argv[-1] == Status.VERB:
            threading.Event().wait(0.5)
        return send(argv, **options)

    monkeypatch.setattr(fleet["n1"], "run", run)
    fleet.errors_when_promoted_per_s = 1
    outcome = fleet.release(
        report=lambda event: is_slow.set() if event.name == "canary.rejected" else None
    )

    assert outcome.ending is Ending.REVERTED
    assert outcome.evidence["hosts"]["n1"] == "reverted"
    assert fleet.serves("n1") == {"b1": 100}


def desired_of(fleet, monkeypatch):
    """
    Leave a release of an operator who died on the hosts, and return it.
    """
    monkeypatch.setattr("deploy.release.controller._PAUSE_S", 0.0)
    fleet.release_dying(_die_in_canary, _Died)
    return fleet.stored()


class _Died(BaseException):
    pass


def _die_in_canary(event):
    if event.name == "traffic.shifted":
        raise _Died


def test_the_desired_state_is_read_beside_a_frozen_host(fleet, frozen, monkeypatch):
    desired = desired_of(fleet, monkeypatch)
    frozen.freeze()

    read = HostStore(fleet.clients, None, fleet.clock, within_s=0.3).read()
    frozen.thaw()

    assert frozen.was_thawed
    assert (read.release, read.goal, read.epoch) == (desired.release, Goal.FORWARD, desired.epoch)


def test_a_slow_host_decides_where_the_others_do_not_agree(fleet, frozen, monkeypatch):
    """
    n3 has missed the newest state; n1 has it, and is waited for.
    """
    desired_of(fleet, monkeypatch)
    stale = fleet.system("n3").layout.desired.read_bytes()
    fleet.clock.sleep(60)
    newer = fleet.bring(fleet.stored().turned(Goal.BACK, "aborted"))
    fleet.system("n3").layout.desired.write_bytes(stale)
    frozen.freeze()
    threading.Timer(0.6, frozen.thaw).start()

    read = HostStore(fleet.clients, None, fleet.clock, within_s=0.3).read()

    assert newer.ending is Ending.REVERTED
    assert read.ending is Ending.REVERTED


def test_without_the_slow_host_they_would_not_agree(fleet, frozen, monkeypatch):
    """
    Negative control of the test above.
    """
    desired_of(fleet, monkeypatch)
    stale = fleet.system("n3").layout.desired.read_bytes()
    fleet.clock.sleep(60)
    fleet.bring(fleet.stored().turned(Goal.BACK, "aborted"))
    fleet.system("n3").layout.desired.write_bytes(stale)
    known, _ = look(fleet.clients)
    known["n1"] = TransportError("n1: no answer in time", why="-", fix="-", host="n1")

    try:
        read = HostStore(fleet.clients, None, fleet.clock, within_s=0.3).read(known)
    except PreconditionError:
        return
    assert read.ending is None


@pytest.fixture
def slow(monkeypatch):
    """
    No host answers within the limit of a way back; without a limit all do.
    """
    asked = []

    def late(clients, *, within_s=None, **options):
        asked.append(within_s)
        if within_s is None:
            return look(clients, **options)
        errors = {name: TransportError("no answer", why="late", fix="wait") for name in clients}
        return {}, errors

    monkeypatch.setattr("deploy.release.store.look", late)
    monkeypatch.setattr("deploy.wiring.hosts.look", late)
    return asked


def test_a_way_back_waits_where_no_host_is_fast(fleet, slow):
    """
    A slow link or a busy machine: the leases are taken with the full time of each call.
    """
    keeper = LeaseKeeper(fleet.clients, owner="me", release="r1", ttl_s=60, clock=fleet.clock)
    store = HostStore(fleet.clients, keeper, fleet.clock, within_s=0.3)

    assert store.acquire(steal=False, is_way_back=True) >= 1

    assert keeper.held == set(NAMES)
    assert slow == [0.3, None]


def test_a_rollback_is_planned_where_no_host_is_fast(fleet, slow):
    """
    And refused only where none answers in its full time either.
    """
    hosts = tuple(SimpleNamespace(name=name) for name in NAMES)
    on = Hosts(SimpleNamespace(hosts=hosts), fleet.clients, {})

    readable, errors = on.readable(0.3)

    assert readable.keys() == set(NAMES)
    assert errors == {}
    assert slow == [0.3, None]


def test_a_host_that_froze_is_waited_for_once(fleet, frozen):
    """
    The next look asks it too, and goes on with the others; once it answers, it has its whole time.
    """
    frozen.freeze()
    assert set(look(fleet.clients, within_s=3.0)[1]) == {"n1"}
    assert set(look(fleet.clients, within_s=300.0)[1]) == {"n1"}
    assert frozen.was_thawed  # 60 s were not over

    frozen.thaw()
    assert look(fleet.clients)[1] == {}
    assert not fleet.clients["n1"].was_late
