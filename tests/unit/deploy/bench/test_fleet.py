"""
`inv bench.fleet`: its hosts answer as real ones do, and what it counts does not grow with a fleet.
"""

import time

import pytest

from deploy.bench import one_fleet
from deploy.bench.fleet import time_fleets
from deploy.bench.fleet_report import PHASES, FleetFigures, FleetTimes, Phase, exponent
from deploy.bench.simulated_host import STABLE, SimulatedHost
from deploy.errors import UsageError
from deploy.host import protocol
from deploy.host.protocol import Call
from deploy.host.rpc import encode_request
from deploy.release.observe import observed
from deploy.transport.answers import read_answer
from tests.local_fleet import DIGESTS, local_fleet

FLAT = {"lease.renew", "measure", "state.read"}  # by time, or of one host


def make_figures(hosts, cpu_s=1.0, **changes):
    fields = {
        "hosts": hosts,
        "latency_ms": 5.0,
        "phases": {name: Phase(2.0, cpu_s, 5 * hosts) for name in PHASES},
        "measured_s": 4.0,
        "idle_mib": 60.0,
        "peak_mib": 60.0 + hosts,
        "connections": 64,
        "sent_bytes": hosts**2,
        "received_bytes": hosts,
        "state_bytes": 1000 + hosts,
        "printed_bytes": hosts,
        "verbs": {"status": 3.0},
    }
    return FleetFigures(**fields | changes)


@pytest.fixture(scope="module")
def fleets():
    """
    Two real runs, of sizes on both sides of the number of workers.
    """
    return [one_fleet.run(count, 0.0, measure_s=0.1) for count in (8, 80)]


def test_a_host_gets_the_same_commands_in_a_fleet_of_any_size(fleets):
    small, large = ({v: n for v, n in f.verbs.items() if v not in FLAT} for f in fleets)

    assert small == large
    assert sum(small.values()) < 70


def test_no_more_commands_run_at_once_than_there_are_workers(fleets):
    """
    64 of the loop, and as many of the renewals of the leases.
    """
    assert fleets[1].connections <= 128


def test_what_hosts_store_grows_with_their_names_alone(fleets):
    small, large = fleets

    assert (large.state_bytes - small.state_bytes) / 72 < 16


def test_a_simulated_host_goes_through_the_states_of_a_real_one():
    """
    The calls of a release and a rollback to both: what they answer, and their status after each.
    """
    new, version = DIGESTS["b2"], "v2"
    old = {STABLE: DIGESTS["b1"]}
    simulated = SimulatedHost(time.monotonic)
    with local_fleet("n1") as fleet:
        fleet.place("b2")
        client = fleet.clients["n1"]

        def ask(request, fence):
            call = Call(fence, "r-v2", "me@desk")
            text = simulated.answer(request.VERB, encode_request(request, call).decode())
            return read_answer("n1", request, text)

        fences = {}
        for request in (
            protocol.LeaseAcquire("me", 30.0, epoch=7),
            protocol.StateWrite(1, "text"),
            protocol.DeadmanArm("green", "blue"),
            protocol.SlotStart("green", new),
            protocol.TrafficSet({"blue": 90, "green": 10}),
            protocol.TrafficSet({"blue": 0, "green": 100}),
            protocol.DeadmanConfirm(new, version),
            protocol.GoodRecord(new, version, "green"),
            protocol.TrafficDrain("blue"),
            protocol.SlotStop("blue"),
            protocol.LeaseRelease(),
        ):
            client.fence, client.release = fences.get("real"), "r-v2"
            real, ours = client.call(request), ask(request, fences.get("ours"))
            if isinstance(real, protocol.LeaseGranted):
                fences = {"real": real.fence, "ours": ours.fence}
            assert type(real) is type(ours)
            after = [
                facts(observed("n1", client.call(protocol.Status())), {}),
                facts(observed("n1", ask(protocol.Status(), None)), old),
            ]
            assert after[0] == after[1], request.VERB


def facts(current, names):
    """
    What plans and decisions read of a host; *names* are what stands for its digests.
    """
    slots = [
        (s.slot, names.get(s.bundle, s.bundle), s.unit, s.weight_pct, s.is_ready, s.is_idle)
        for s in current.slots
    ]
    good = [names.get(good.bundle, good.bundle) for good in current.good]
    pending = current.pending and (current.pending.to_slot, current.pending.from_slot)
    state = current.state and (current.state.epoch, current.state.number, current.state.sha256)
    return slots, good, pending, state, current.epoch, current.lease_owner, current.boot_id


def test_a_host_refuses_a_change_without_its_lease():
    host = SimulatedHost(time.monotonic)
    text = encode_request(protocol.SlotStop("blue"), Call(1)).decode()

    assert '"LeaseLost"' in host.answer("slot.stop", text)


def test_the_growth_is_that_of_the_two_largest_fleets():
    assert exponent(1.0, 100.0, 10.0) == 2.0
    times = FleetTimes((make_figures(1000, 10.0), make_figures(10), make_figures(100)))

    growth = times.growth()

    assert (growth["cpu_s"], growth["sent_bytes"], growth["memory"]) == (1.0, 2.0, 1.0)
    assert FleetTimes((make_figures(10),)).growth() == {}


def test_the_table_and_the_document_have_every_fleet():
    times = FleetTimes((make_figures(10), make_figures(100)))

    assert [row[0] for row in times.table().rows] == ["10", "100"]
    assert [FleetFigures.of(one) for one in times.as_json()["fleets"]] == list(times.fleets)


def test_a_fleet_has_hosts():
    with pytest.raises(UsageError, match="--counts 0"):
        time_fleets([10, 0], latency_ms=5.0, progress=print)
