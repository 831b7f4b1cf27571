"""
The local transport and the faked operating system behave, and are strict.
"""

import threading

import pytest

from deploy.errors import CommandFailed, LeaseLost, TransportError
from deploy.host import layout
from deploy.host.protocol import (
    Golden,
    GoodRecord,
    JournalAppend,
    LeaseAcquire,
    LeaseRelease,
    LeaseRenew,
    Measure,
    Retire,
    SlotStart,
    SlotStop,
    Status,
    TrafficDrain,
    TrafficSet,
)
from deploy.host.slots.haproxy import merge, parse_servers_state, parse_stat, servers_of
from deploy.transport.client import HostClient
from tests.local_host import (
    ANSWER_LOST,
    CHECK_INTERVAL_S,
    LOST_BEFORE,
    RECORDED,
    REFUSED,
    FakeHaproxy,
    local_hosts,
    place_release,
    serve,
)

OLD, NEW = "a" * 64, "b" * 64


@pytest.fixture
def transport():
    with local_hosts("n1") as hosts:
        yield hosts["n1"]


def lease(transport, release="r2"):
    client = HostClient(transport, actor="ann", sudo=True)
    client.release = release
    client.fence = client.call(LeaseAcquire("ann", 3600)).fence
    return client


def release(client):
    """
    Take a host from OLD in blue to NEW in green, as a release does.
    """
    client.call(JournalAppend("release.begin", {"bundle": NEW}))
    client.call(SlotStart("green", NEW), timeout_s=400)
    assert client.call(Golden("green")).passed == 1
    client.call(TrafficSet({"blue": 90, "green": 10}))
    client.call(TrafficSet({"blue": 0, "green": 100}))
    client.call(TrafficDrain("blue"), timeout_s=100)
    client.call(SlotStop("blue"), timeout_s=100)
    client.call(GoodRecord(NEW, "v2", "green"))
    client.call(Retire(keep=3))
    client.call(JournalAppend("release.end", {"outcome": "promoted"}))
    client.call(LeaseRelease())


def test_a_host_that_serves_says_so(transport):
    """
    `serve` leaves what a promoted release leaves.
    """
    serve(transport.system, OLD)

    status = HostClient(transport, actor="ann", sudo=False).call(Status())

    blue, green = status.slots["blue"], status.slots["green"]
    assert (blue.bundle, blue.version, blue.unit, blue.ready) == (OLD, "v1", "active", True)
    assert (blue.weight, blue.haproxy) == (100, "UP")
    assert (green.weight, green.haproxy, green.unit) == (0, "MAINT", "inactive")
    assert [(good.release, good.bundle) for good in status.good] == [("r-v1", OLD)]
    assert (status.lease, status.unfinished, status.paused) == (None, None, None)


def test_a_release_of_three_hosts_side_by_side_runs_to_its_end():
    """
    The real verbs, from three threads.
    """
    with local_hosts("n1", "n2", "n3") as hosts:
        errors = []

        def work(transport):
            try:
                serve(transport.system, OLD)
                place_release(transport.system, NEW, "v2")
                release(lease(transport))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(t,)) for t in hosts.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert errors == []
        for transport in hosts.values():
            assert transport.system.proxy.weights == {"blue": 0, "green": 100}
            assert transport.system.unit_of("blue").active == "inactive"


def test_verbs_of_one_host_may_run_side_by_side(transport):
    """
    A lease is renewed during a slow start; the host's own lock keeps them apart.
    """
    place_release(transport.system, NEW)
    client = lease(transport)
    transport.system.unit_of("green").starts = "slow"
    errors = []

    def renew():
        try:
            for _ in range(30):
                client.call(LeaseRenew(3600))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=renew)
    thread.start()
    client.call(SlotStart("green", NEW))
    thread.join()

    assert errors == []


@pytest.mark.parametrize(("how", "runs"), [(LOST_BEFORE, False), (ANSWER_LOST, True)])
def test_a_lost_call_ran_or_did_not(transport, how, runs):
    """
    The controller gets the same error; the host tells.
    """
    place_release(transport.system, NEW)
    client = lease(transport)
    transport.fail("slot.start", how)

    with pytest.raises(TransportError):
        client.call(SlotStart("green", NEW))

    assert (transport.system.unit_of("green").active == "active") is runs
    assert client.call(SlotStart("green", NEW)).started is not runs


def test_a_refusal_is_the_error_of_the_controller(transport):
    """
    At the call that was named, and at no other.
    """
    client = lease(transport)
    transport.fail("measure", REFUSED, call=2)

    client.call(Measure())
    with pytest.raises(CommandFailed):
        client.call(Measure())
    client.call(Measure())


def test_a_host_that_is_cut_answers_nothing(transport):
    """
    Until the connection is back.
    """
    client = lease(transport)
    transport.is_cut = True
    with pytest.raises(TransportError):
        client.call(Measure())
    transport.is_cut = False

    client.call(Measure())


def test_a_verb_that_takes_longer_than_its_caller_waits_is_lost(transport):
    """
    It runs to its end all the same.
    """
    place_release(transport.system, NEW)
    client = lease(transport)
    transport.system.unit_of("green").starts = "hang"

    with pytest.raises(TransportError, match="no answer"):
        client.call(SlotStart("green", NEW, timeout_s=60), timeout_s=10)

    assert client.call(Status()).unfinished is None


def test_a_lease_ends_with_the_time_that_passes(transport):
    """
    The real rule, on the clock that the test moves.
    """
    client = lease(transport)
    transport.system.clock.pass_s(3601)

    with pytest.raises(LeaseLost):
        client.call(LeaseRenew(30))


def test_a_runtime_counts_since_it_started(transport):
    """
    Counters are those that the test sets, until the next start.
    """
    serve(transport.system, OLD)
    runtime = transport.system.runtimes["blue"]
    runtime.requests, runtime.errors = 50, 3
    transport.system.proxy.servers["blue"].counters["econ"] = 2
    client = HostClient(transport, actor="ann", sudo=False)

    counters = client.call(Measure()).slots["blue"]

    assert (counters.own.requests, counters.own.errors) == (50, 3)
    assert counters.proxy.connection_errors == 2
    transport.system.unit_of("blue").fail()
    assert client.call(Measure()).slots["blue"].own is None


@pytest.mark.parametrize("how", ["exit", "crash", "hang", "skip"])
def test_a_bundle_may_fail_to_start(transport, how):
    """
    Wherever it is started; another bundle starts.
    """
    place_release(transport.system, NEW)
    place_release(transport.system, OLD)
    transport.system.bad_starts[NEW] = how
    client = lease(transport)

    with pytest.raises(CommandFailed):
        client.call(SlotStart("green", NEW, timeout_s=20), timeout_s=60)

    assert client.call(SlotStart("green", OLD)).unit == "active"


def test_a_bundle_may_answer_differently(transport):
    """
    Its golden prompts fail.
    """
    place_release(transport.system, NEW)
    transport.system.bad_golden.add(NEW)
    client = lease(transport)
    client.call(SlotStart("green", NEW))

    assert client.call(Golden("green")).passed == 0


# -- HAProxy


def recorded(name):
    lines = (RECORDED / name).read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("##"))


def played(which):
    proxy = FakeHaproxy(0.0)
    blue, green = proxy.servers["blue"], proxy.servers["green"]
    if which == "just_ready":
        blue.set_admin("ready", 0.0)
    else:
        blue.own_weight, green.own_weight = 90, 10
        green.set_admin("drain", 0.0)
        green.health = 0 if which == "drain_and_down" else 2
    return proxy


@pytest.mark.parametrize("which", ["drain_and_down", "drain_and_maint", "just_ready"])
def test_the_faked_haproxy_says_what_the_real_one_said(which):
    """
    Every field that the host program reads, in three recorded states.
    """
    proxy = played(which)
    stat = proxy.ask("show stat", 0.0, lambda slot: True)
    state = proxy.ask("show servers state", 0.0, lambda slot: True)

    def read(stat, state):
        rows = servers_of(parse_stat(stat), "runtime"), parse_servers_state(state, "runtime")
        return {name: merge(rows[0][name], rows[1][name]) for name in rows[0]}

    assert read(stat, state) == read(recorded(f"{which}.stat.csv"), recorded(f"{which}.state.txt"))


@pytest.mark.parametrize(
    ("ready", "checks", "status"),
    [(True, 0, "UP 1/2"), (True, 1, "UP"), (False, 1, "DOWN")],
)
def test_a_server_that_leaves_maint_is_up_after_its_first_check(ready, checks, status):
    """
    fall 2, rise 1, as the template has it.
    """
    proxy = FakeHaproxy(0.0)
    proxy.ask("set server runtime/blue state ready", 0.0, lambda slot: ready)

    proxy.ask("show stat", CHECK_INTERVAL_S * checks, lambda slot: ready)

    assert proxy.servers["blue"].status == status


# -- strict


@pytest.mark.parametrize(
    "work",
    [
        lambda t: t.system.run(["reboot"], timeout_s=1),
        lambda t: t.system.run(["systemctl", "mask", layout.unit("blue")], timeout_s=1),
        lambda t: t.system.haproxy("show sess"),
        lambda t: (serve(t.system, OLD), t.system.http("blue", "GET", "/x", timeout_s=1)),
        lambda t: t.run(["python3", "/tmp/other.pyz", "status"], timeout_s=1),
        lambda t: t.run(["reboot"], timeout_s=1),
        lambda t: t.put(RECORDED, "/etc/passwd", timeout_s=1),
        lambda t: t.fail("slot.explode", LOST_BEFORE),
    ],
)
def test_what_nobody_announced_is_an_error_of_the_test(transport, work):
    """
    Negative control: nothing is answered by accident.
    """
    with pytest.raises(AssertionError):
        work(transport)
