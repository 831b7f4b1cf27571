"""
One contract for every place where the desired state may live: the hosts, and a real etcd.
"""

import contextlib
import itertools
import threading

import pytest

from deploy.errors import DeployError, LeaseHeld, LeaseLost, TransportError
from deploy.leases.keeper import LeaseKeeper
from deploy.release.desired import Desired, Ending, Goal
from deploy.release.store import HostStore
from deploy.release.store_etcd import EtcdStore
from tests.local_host import LOST_BEFORE
from tests.unit.deploy.release.etcd_process import etcd_process

TTL_S = 15.0
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    with etcd_process(tmp_path_factory.mktemp("etcd")) as one:
        yield one


class Operators:
    """
    Makes stores of operators on one fleet; `end` releases them all.
    """

    def __init__(self, fleet, make):
        self.fleet, self.make = fleet, make
        self.stores = []

    def operator(self, owner, *, within_s=None):
        clients = self.fleet.operator(owner)
        keeper = LeaseKeeper(
            clients, owner=owner, release="r1", ttl_s=TTL_S, clock=self.fleet.clock
        )
        self.stores.append(self.make(clients, keeper, self.fleet.clock, within_s=within_s))
        return self.stores[-1]

    def desired(self, epoch, number=1, goal=Goal.FORWARD):
        plan = self.fleet.plan()
        return Desired("r1", "me@desk", goal, plan, epoch=epoch, number=number)

    def end(self):
        for store in self.stores:
            store.release()


def etcd_stores(etcd, within_s=60.0):
    prefix = f"test/{next(_NUMBERS)}"

    def make(clients, keeper, clock, **options):
        return EtcdStore(etcd.client(within_s=within_s), prefix, clients, keeper, clock, **options)

    return make


@pytest.fixture(params=["hosts", "etcd"])
def operators(request, fleet):
    is_etcd = request.param == "etcd"
    make = etcd_stores(request.getfixturevalue("etcd")) if is_etcd else HostStore
    operators = Operators(fleet, make)
    yield operators
    operators.end()


@pytest.fixture
def on_etcd(etcd, fleet):
    operators = Operators(fleet, etcd_stores(etcd))
    yield operators
    operators.end()


def acquire(store, *, steal=False, is_way_back=False):
    return store.acquire(steal=steal, is_way_back=is_way_back)


# -- the contract


def test_before_the_first_release_there_is_no_state(operators):
    assert operators.operator("a").read() is None


def test_what_is_written_is_read_by_everybody(operators):
    """
    With the epoch and the number under which it was written; the last one wins.
    """
    store = operators.operator("a")
    epoch = acquire(store)
    store.write(operators.desired(epoch, 1))
    last = operators.desired(epoch, 2, Goal.BACK)
    store.write(last)
    assert store.read() == last
    assert operators.operator("b").read() == last


def test_an_operator_at_work_is_named_and_not_disturbed(operators):
    first, second = operators.operator("anna@desk"), operators.operator("bert@desk")
    epoch = acquire(first)
    with pytest.raises(LeaseHeld, match="anna@desk"):
        acquire(second)
    first.write(operators.desired(epoch))


def test_who_steals_ends_the_other(operators):
    """
    The epoch grows, and the earlier operator can write nothing more.
    """
    first, second = operators.operator("a"), operators.operator("b")
    old = acquire(first)
    first.write(operators.desired(old))
    new = acquire(second, steal=True)
    assert new > old
    with pytest.raises(LeaseLost):
        first.write(operators.desired(old, 2))
    assert second.read().number == 1
    second.write(operators.desired(new))
    assert second.read().epoch == new


def test_who_has_released_holds_nobody_up(operators):
    first, second = operators.operator("a"), operators.operator("b")
    old = acquire(first)
    first.release()
    assert acquire(second) > old


def test_an_operator_who_stays_keeps_it(operators):
    """
    Through many times of its lease.
    """
    store = operators.operator("a")
    epoch = acquire(store)
    for _ in range(10):
        operators.fleet.clock.sleep(TTL_S / 2)
    with pytest.raises(LeaseHeld):
        acquire(operators.operator("b"))
    store.write(operators.desired(epoch))


def test_hosts_are_leased_with_the_epoch(operators):
    epoch = acquire(operators.operator("a"))
    for current in operators.fleet.observed().values():
        assert (current.epoch, current.lease_owner) == (epoch, "a")


def test_a_lost_host_is_refused_and_named(operators):
    """
    The rest of the fleet is leased.
    """
    operators.fleet["n3"].fail("status", LOST_BEFORE, call=None)
    store = operators.operator("a")
    acquire(store)
    assert set(store.refused) == {"n3"}


@pytest.mark.parametrize("steal", [False, True])
def test_of_many_at_once_one_has_the_newest_epoch(operators, steal):
    """
    Epochs are never shared, and only the newest one can be written under.
    """
    stores = {name: operators.operator(name) for name in "abcd"}
    won = {}

    def run(name):
        with contextlib.suppress(DeployError):
            won[name] = acquire(stores[name], steal=steal)

    threads = [threading.Thread(target=run, args=(name,)) for name in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(won.values())) == len(won)
    writers = []
    for name, epoch in won.items():
        try:
            stores[name].write(operators.desired(epoch))
        except DeployError:
            continue
        writers.append(epoch)
    assert writers in ([], [max(won.values(), default=0)])
    assert steal or len(won) <= 1


def test_a_whole_release_and_its_record(operators):
    """
    The loop of the controller, on each store.
    """
    fleet = operators.fleet
    outcome = fleet.release("b2", make_store=operators.make)
    assert outcome.ending is Ending.PROMOTED
    stored = operators.operator("b").read()
    assert (stored.ending, stored.release) == (Ending.PROMOTED, outcome.release)
    assert fleet.serves("n1") == {"b2": 100}


def test_another_operator_takes_a_release_over(operators):
    """
    In the middle of the canary: the loop of the first ends, and the second takes its users back.
    """
    fleet = operators.fleet
    second = operators.operator("b")

    def take_over(event):
        if event.name == "canary.measured" and not taken:
            taken["state"] = second.read()
            taken["epoch"] = acquire(second, steal=True)

    taken = {}
    with pytest.raises(LeaseLost):
        fleet.release("b2", make_store=operators.make, report=take_over)
    second.release()
    state = taken["state"]
    turned = Desired(
        state.release, "b", Goal.BACK, state.plan, reason="aborted by b", rulings=state.rulings
    )
    fleet.bring(turned, owner="b", clients=fleet.operator("b"), make_store=operators.make)
    assert all(fleet.serves(name) == {"b1": 100} for name in ("n1", "n2", "n3"))
    assert operators.operator("c").read().ending is Ending.REVERTED


# -- of etcd alone


@pytest.fixture
def down(etcd):
    """
    Return a function that stops etcd; it starts again at the end.
    """
    yield etcd.stop
    etcd.stop()
    etcd.start()


def test_without_etcd_nothing_goes_forward(on_etcd, down):
    """
    The error names the endpoints and says that a way back is possible; no host is touched.
    """
    store = on_etcd.operator("a")
    down()
    with pytest.raises(TransportError, match=r"https://127\.0\.0\.1") as failed:
        acquire(store)
    assert "Connection refused" in failed.value.why
    assert "inv rollback" in failed.value.fix
    assert not any(on_etcd.fleet.touched(name) for name in ("n1", "n2", "n3"))


def test_a_way_back_needs_no_etcd(on_etcd, down):
    """
    It is won on the hosts and recorded there, and is the newest state when etcd is back.
    """
    first = on_etcd.operator("a")
    epoch = acquire(first)
    first.write(on_etcd.desired(epoch))
    first.release()
    down()
    second = on_etcd.operator("b")
    assert second.read().epoch == epoch  # the copy of the hosts
    newer = acquire(second, is_way_back=True)
    assert newer > epoch
    second.write(on_etcd.desired(newer, 1, Goal.BACK))
    second.release()


def test_what_was_done_without_etcd_is_known_when_it_is_back(etcd, on_etcd):
    first = on_etcd.operator("a")
    epoch = acquire(first)
    first.write(on_etcd.desired(epoch))
    first.release()
    etcd.stop()
    second = on_etcd.operator("b")
    newer = acquire(second, is_way_back=True)
    second.write(on_etcd.desired(newer, 1, Goal.BACK))
    second.release()
    etcd.start()
    third = on_etcd.operator("c")
    assert third.read() == on_etcd.desired(newer, 1, Goal.BACK)
    assert acquire(third) > newer


def test_a_way_back_without_etcd_is_refused_where_another_is_at_work(on_etcd, down):
    """
    The hosts name it.
    """
    acquire(on_etcd.operator("anna@desk"))
    down()
    with pytest.raises(LeaseHeld, match="anna@desk"):
        acquire(on_etcd.operator("b"), is_way_back=True)
    assert acquire(on_etcd.operator("b"), is_way_back=True, steal=True) > 0


def test_an_operator_without_etcd_in_its_fleet_file_is_not_disturbed(on_etcd):
    """
    It holds the hosts, and etcd knows nothing of it.
    """
    fleet = on_etcd.fleet
    clients = fleet.operator("anna@desk")
    keeper = LeaseKeeper(clients, owner="anna@desk", release="r", ttl_s=TTL_S, clock=fleet.clock)
    other = HostStore(clients, keeper, fleet.clock)
    acquire(other)
    store = on_etcd.operator("b")
    with pytest.raises(LeaseHeld, match="anna@desk"):
        acquire(store)
    other.release()
    acquire(store)


def test_a_dead_operator_is_present_until_its_lease_ends(on_etcd, etcd):
    """
    Its presence is a lease of etcd; the leases of its hosts are taken over.
    """
    first = on_etcd.operator("a")
    acquire(first)
    second = on_etcd.operator("b")
    with pytest.raises(LeaseHeld):
        acquire(second)
    etcd.client().revoke(first._lease)  # as its time ends
    assert acquire(second) == 2


def test_an_operator_that_etcd_forgot_comes_back(on_etcd, etcd):
    """
    Etcd was down for longer than its lease, and nobody else has begun.
    """
    first = on_etcd.operator("a")
    epoch = acquire(first)
    etcd.client().revoke(first._lease)
    on_etcd.fleet.clock.sleep(TTL_S / 2)
    with pytest.raises(LeaseHeld):
        acquire(on_etcd.operator("b"))
    first.write(on_etcd.desired(epoch))


def test_one_that_was_replaced_does_not_come_back(on_etcd, etcd):
    first, second = on_etcd.operator("a"), on_etcd.operator("b")
    old = acquire(first)
    acquire(second, steal=True)
    etcd.client().revoke(first._lease)
    on_etcd.fleet.clock.sleep(TTL_S / 2)
    second.release()
    acquire(on_etcd.operator("c"))  # "a" is not present
    with pytest.raises(LeaseLost):
        first.write(on_etcd.desired(old))


@pytest.mark.parametrize("steal", [False, True])
def test_one_that_begins_between_reading_and_swapping_is_noticed(on_etcd, monkeypatch, steal):
    """
    The swap fails: the slower one begins anew, and finds the other at work.
    """
    slow, fast = on_etcd.operator("anna@desk"), on_etcd.operator("bert@desk")
    grant, won = slow._etcd.grant, []

    def late(ttl_s):
        if not won:
            won.append(acquire(fast))
        return grant(ttl_s)

    monkeypatch.setattr(slow._etcd, "grant", late)
    if steal:
        assert acquire(slow, steal=True) > won[0]
        return
    with pytest.raises(LeaseHeld, match="bert@desk"):
        acquire(slow)
    fast.write(on_etcd.desired(won[0]))
