import threading
from contextlib import contextmanager

import pytest

from deploy.errors import LeaseHeld, LeaseLost, TransportError
from deploy.host.protocol import LeaseAcquire, LeaseRenew
from deploy.leases import keeper as lease
from deploy.leases.keeper import LeaseKeeper
from deploy.transport.client import HostClient
from deploy.transport.parallel import WORKERS, on_each
from tests.local_host import LOST_BEFORE
from tests.unit.deploy.release.conftest import NAMES

TTL_S = 15.0


@contextmanager
def keep(fleet, owner="me"):
    keeper = LeaseKeeper(fleet.clients, owner=owner, release="r1", ttl_s=TTL_S, clock=fleet.clock)
    try:
        yield keeper, keeper.take_all(fleet.clients)
    finally:
        keeper.release_all()


@contextmanager
def held(fleet):
    with keep(fleet) as (keeper, errors):
        assert errors == {}
        yield keeper


def test_all_hosts_are_held_and_released(fleet):
    with held(fleet):
        assert {fleet.lease_owner(name) for name in NAMES} == {"me"}
    assert {fleet.lease_owner(name) for name in NAMES} == {None}
    assert all(client.fence is None for client in fleet.clients.values())


def test_leases_are_renewed_for_as_long_as_they_are_held(fleet):
    """
    For ten times their time to live.
    """
    with held(fleet) as keeper:
        fleet.clock.sleep(10 * TTL_S)
        assert {fleet.lease_owner(name) for name in NAMES} == {"me"}
        assert not any(keeper.is_lost(name) for name in NAMES)


def test_a_lease_that_is_not_renewed_expires(fleet):
    """
    Negative control of the test above: the hosts apply their real rule.
    """
    fleet.clients["n1"].call(LeaseAcquire(owner="me", ttl_s=TTL_S))

    fleet.clock.sleep(TTL_S + 0.1)

    assert fleet.lease_owner("n1") is None


@pytest.mark.parametrize("call", [1, 2, 5])
def test_one_failed_renewal_does_not_lose_the_lease(fleet, call):
    """
    After any failed renewal the next one succeeds before the lease expires, and so do later ones.
    """
    fleet["n1"].fail("lease.renew", LOST_BEFORE, call)

    with held(fleet) as keeper:
        for _ in range(40):
            fleet.clock.sleep(TTL_S / 4)
            assert fleet.lease_owner("n1") == "me"
        keeper.check("n1")


def test_two_failed_renewals_do_not_lose_the_lease(fleet):
    fleet["n1"].fail("lease.renew", LOST_BEFORE, 1)
    fleet["n1"].fail("lease.renew", LOST_BEFORE, 2)

    with held(fleet) as keeper:
        fleet.clock.sleep(2 * TTL_S)
        assert fleet.lease_owner("n1") == "me"
        keeper.check("n1")


def slow(fleet, monkeypatch, name, share):
    """
    Let renewals of *name* take *share* of a time to live, or their time limit if that is shorter.
    """
    send = fleet[name].run

    def run(argv, **options):
        if argv[-1] != LeaseRenew.VERB:
            return send(argv, **options)
        took_s = min(options["timeout_s"], share * TTL_S)
        fleet.clock.now_s += took_s
        for transport in fleet.transports.values():
            transport.system.clock.pass_s(took_s)
        if took_s < share * TTL_S:
            raise TransportError(f"{name}: no answer", why=f"within {took_s} s", fix="-", host=name)
        return send(argv, **options)

    monkeypatch.setattr(fleet[name], "run", run)


@pytest.mark.parametrize("share", [0.19, 0.3, 0.38])
def test_slow_renewals_do_not_lose_the_lease(fleet, monkeypatch, share):
    """
    Each attempt has more time than the one before, as long as the lease is in force on the host.
    """
    slow(fleet, monkeypatch, "n1", share)

    with held(fleet) as keeper:
        fleet.clock.sleep(10 * TTL_S)
        assert fleet.lease_owner("n1") == "me"
        for name in NAMES:
            keeper.check(name)


def test_a_renewal_that_hangs_delays_no_other_host(fleet, monkeypatch):
    """
    n1 does not answer for longer than its lease lives; the other leases are renewed meanwhile.
    """
    monkeypatch.setattr("tests.unit.deploy.leases.test_keeper.TTL_S", 0.5)
    ended, send = threading.Event(), fleet["n1"].run

    def run(argv, **options):
        if argv[-1] == LeaseRenew.VERB:
            ended.wait(300)
        return send(argv, **options)

    monkeypatch.setattr(fleet["n1"], "run", run)
    try:
        with held(fleet) as keeper:
            for _ in range(20):
                fleet.clock.sleep(TTL_S / 4)
                assert fleet.lease_owner("n2") == "me"
            assert fleet.lease_owner("n1") is None
            keeper.check("n2")
    finally:
        ended.set()


def test_a_lease_that_was_granted_too_late_is_not_renewed(fleet, monkeypatch):
    """
    n1 grants it after its time limit: it counts as refused, and expires.
    """
    may_send, has_sent, send = threading.Event(), threading.Event(), fleet["n1"].run

    def run(argv, **options):
        if argv[-1] != LeaseAcquire.VERB:
            return send(argv, **options)
        may_send.wait(60)
        try:
            return send(argv, **options)
        finally:
            has_sent.set()

    monkeypatch.setattr(fleet["n1"], "run", run)
    keeper = LeaseKeeper(fleet.clients, owner="me", release="r1", ttl_s=TTL_S, clock=fleet.clock)
    try:
        errors = keeper.take_all(fleet.clients, within_s=2.0)
        may_send.set()
        assert has_sent.wait(60)

        assert set(errors) == {"n1"}
        assert fleet.lease_owner("n1") == "me"
        fleet.clock.sleep(2 * TTL_S)
        assert fleet.lease_owner("n1") is None
        assert keeper.held == {"n2", "n3"}
        assert fleet.clients["n1"].fence is None
    finally:
        may_send.set()
        keeper.release_all()


def test_a_lease_that_is_taken_again_after_a_late_one_is_held(fleet, monkeypatch):
    """
    The late answer to the first attempt does not end the second.
    """
    answers, send = [threading.Event()], fleet["n1"].run

    def run(argv, **options):
        result = send(argv, **options)
        if argv[-1] == LeaseAcquire.VERB and answers:
            answers.pop().wait(60)
        return result

    late = answers[0]
    monkeypatch.setattr(fleet["n1"], "run", run)
    keeper = LeaseKeeper(fleet.clients, owner="me", release="r1", ttl_s=TTL_S, clock=fleet.clock)
    try:
        keeper.take_all(fleet.clients, within_s=2.0)
        keeper.take("n1")
        fence = fleet.clients["n1"].fence
        late.set()
        fleet.clock.sleep(2 * TTL_S)

        assert fleet.lease_owner("n1") == "me"
        assert (keeper.held, fleet.clients["n1"].fence) == ({"n1", "n2", "n3"}, fence)
        keeper.check("n1")
    finally:
        late.set()
        keeper.release_all()


@pytest.mark.parametrize("due", [1, 64, 65, 106, 107, 500, 1000, 5000])
def test_hanging_renewals_leave_the_others_their_time(fleet, monkeypatch, due):
    """
    The last of them begins within a sixth of the time to live, also where all others hang.
    """
    limits = []

    def noted(hosts, work, *, within_s=None):
        limits.append(within_s)
        return on_each(hosts, work, within_s=within_s)

    monkeypatch.setattr(lease, "on_each", noted)
    with held(fleet):
        limits.clear()
        fleet.clock.sleep(TTL_S / 2)
    share = lease.share_of_worker(due)

    assert limits[0] == TTL_S * lease.share_of_worker(len(NAMES))
    assert (due - 1) // WORKERS * share <= 1 / 6
    assert share <= 1 / 5


def test_a_lost_lease_says_how_late_its_renewal_was(fleet):
    """
    The host, the time to live, the delay, and what to do.
    """
    with held(fleet) as keeper:
        fleet["n1"].is_cut = True
        fleet.clock.sleep(2 * TTL_S)
        with pytest.raises(LeaseLost) as caught:
            keeper.check("n1")

    assert caught.value.host == "n1"
    assert "it lives 15 s, was last renewed 14" in caught.value.why
    assert "s late" in caught.value.why
    assert "release.lease_ttl" in caught.value.fix


def test_a_busy_machine_that_renews_too_late_says_so(fleet):
    """
    Its timer ran after the lease had ended; the host refuses the renewal.
    """
    with held(fleet) as keeper:
        fleet.clock.now_s += 2 * TTL_S
        fleet.system("n1").clock.pass_s(2 * TTL_S)
        fleet.clock.sleep(1.0)
        with pytest.raises(LeaseLost) as caught:
            keeper.check("n1")

    assert "it expired 15." in caught.value.why
    assert "this renewal began 25.0 s late" in caught.value.why


def test_a_host_without_an_answer_for_a_time_to_live_is_lost(fleet):
    """
    Its connection is closed, so that a running command fails; the other leases are renewed.
    """
    with held(fleet) as keeper:
        fleet["n2"].is_cut = True
        fleet.clock.sleep(0.9 * TTL_S)
        keeper.check("n2")
        fleet.clock.sleep(TTL_S)

        with pytest.raises(LeaseLost, match="n2: the lease was lost"):
            keeper.check("n2")
        assert fleet["n2"].closed == 1
        assert fleet["n1"].closed == 0
        keeper.check("n1")


@pytest.mark.parametrize(("failures", "is_lost"), [(1, False), (100, True)])
def test_a_defect_in_a_renewal_counts_as_no_answer(fleet, monkeypatch, failures, is_lost):
    """
    Renewals go on after it, and a host where they all fail is lost like one that does not answer.
    """
    send, left = fleet["n1"].run, [failures]

    def run(argv, **options):
        if argv[-1] == LeaseRenew.VERB and left[0]:
            left[0] -= 1
            raise ZeroDivisionError
        return send(argv, **options)

    monkeypatch.setattr(fleet["n1"], "run", run)

    with held(fleet) as keeper:
        fleet.clock.sleep(2 * TTL_S)
        assert keeper.is_lost("n1") is is_lost
        assert not keeper.is_lost("n2")


def test_a_lease_that_another_owner_took_is_lost_at_the_next_renewal(fleet):
    with held(fleet) as keeper:
        fleet.system("n1").layout.lease.unlink()
        other = HostClient(fleet["n1"], actor="other", sudo=False)
        other.call(LeaseAcquire(owner="other", ttl_s=600.0))

        fleet.clock.sleep(TTL_S / 2)

        with pytest.raises(LeaseLost):
            keeper.check("n1")
    assert fleet.lease_owner("n1") == "other", "the other owner's lease is not released"


def test_a_lease_taken_again_is_renewed_again(fleet):
    """
    A lost host that is leased again keeps its lease like the others.
    """
    with held(fleet) as keeper:
        fleet["n1"].is_cut = True
        fleet.clock.sleep(2 * TTL_S)
        assert keeper.is_lost("n1")
        fleet["n1"].is_cut = False

        keeper.take("n1")
        fleet.clock.sleep(5 * TTL_S)

        keeper.check("n1")
        assert fleet.lease_owner("n1") == "me"
        fleet.clients["n1"].call(LeaseRenew(ttl_s=TTL_S))
    assert fleet.lease_owner("n1") is None


def test_the_error_of_one_host_is_its_own(fleet):
    """
    The others are leased; whether that is enough, `store` decides.
    """
    fleet["n3"].fail("lease.acquire", LOST_BEFORE)

    with keep(fleet) as (keeper, errors):
        assert keeper.held == {"n1", "n2"}
        assert list(errors) == ["n3"]
        assert isinstance(errors["n3"], TransportError)
    assert fleet.lease_owner("n1") is None


def test_a_held_host_names_its_owner(fleet):
    with held(fleet), keep(fleet, owner="you") as (_, errors):
        assert {type(error) for error in errors.values()} == {LeaseHeld}
        assert "me holds the lease" in str(errors["n1"])
