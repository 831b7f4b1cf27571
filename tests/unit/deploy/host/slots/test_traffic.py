"""
Against a real HAProxy with two runtimes on Unix sockets.
"""

import threading

import pytest

from deploy.host.layout import BACKEND, SLOTS
from deploy.host.protocol import DeadmanArm, TrafficDrain, TrafficSet
from deploy.host.slots import traffic
from deploy.host.sockets import HttpAnswer


def serve(host, **weights):
    return host.call(TrafficSet(weights)).weights


def on_sleep(host, work):
    """
    Call *work* before each sleep of the host's verbs.
    """
    real = host.system.sleep

    def sleep(seconds):
        work()
        real(seconds)

    host.system.sleep = sleep


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(traffic, "UP_TIMEOUT_S", 0.4)


def test_weights_are_shares(leased, proxy):
    """
    90 and 10 of 20 requests: 18 and 2; the weights read back are those that were set.
    """
    assert serve(leased, blue=100) == {"blue": 100, "green": 0}
    assert proxy.share() == {"blue": 20}

    assert serve(leased, blue=90, green=10) == {"blue": 90, "green": 10}
    assert proxy.share() == {"blue": 18, "green": 2}


def test_a_slot_with_traffic_has_normal_priority(leased, proxy):
    """
    A serving slot has an equal share of the processor, from before its first request.
    """
    leased.units["green"].cpu_weight = 20

    serve(leased, blue=100)
    assert leased.units["green"].cpu_weight == 20
    serve(leased, blue=90, green=10)
    assert leased.units["green"].cpu_weight == 100


def test_promoting_and_rolling_back_move_all_traffic(leased, proxy):
    """
    The slot at 0 drains: it gets no new requests and keeps those in flight.
    """
    serve(leased, blue=90, green=10)

    serve(leased, blue=0, green=100)
    assert proxy.share() == {"green": 20}
    assert proxy.control.servers()["blue"].admin == "drain"

    serve(leased, blue=100, green=0)
    assert proxy.share() == {"blue": 20}


def test_setting_the_same_weights_again_changes_nothing(leased, proxy):
    """
    So a verb that was killed after its effect can be repeated.
    """
    serve(leased, blue=90, green=10)
    before = proxy.control.servers()

    serve(leased, blue=90, green=10)

    after = proxy.control.servers()
    assert {n: (s.admin, s.weight) for n, s in after.items()} == {
        n: (s.admin, s.weight) for n, s in before.items()
    }


@pytest.mark.usefixtures("impatient")
def test_a_slot_that_is_not_ready_gets_no_traffic(leased, proxy, runtimes):
    """
    The other slot keeps its weight, and the new one returns to its old state.
    """
    serve(leased, blue=100)
    runtimes["green"].is_ready = False

    error = leased.refusal(TrafficSet({"blue": 0, "green": 100}))

    assert error.kind == "CommandFailed"
    assert "green is not UP" in error.what
    by_slot = proxy.control.servers()
    assert (by_slot["blue"].weight, by_slot["green"].admin) == (100, "maint")
    assert proxy.share() == {"blue": 20}


@pytest.mark.usefixtures("impatient")
def test_rolling_back_to_a_slot_that_is_down_is_refused(leased, proxy, runtimes):
    """
    The canary keeps the traffic; otherwise no slot would have it.
    """
    serve(leased, blue=90, green=10)
    runtimes["blue"].is_ready = False
    until_down(leased, proxy, "blue")

    error = leased.refusal(TrafficSet({"blue": 100, "green": 0}))
    assert "blue is not UP" in error.what
    assert proxy.share(5) == {"green": 5}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("line_end", ["\x0b", "\x0c", "\xc2\x85", "\xe2\x80\xa8", '",\x0b'])
def test_a_canary_whose_reason_phrase_has_a_line_end_is_taken_back(
    leased, proxy, runtimes, line_end
):
    """
    HAProxy shows the reason phrase of a failed check in `show stat`: it is not a row of a server.
    """
    serve(leased, blue=90, green=10)
    runtimes["green"].reason = f"no{line_end}{BACKEND}"
    runtimes["green"].is_ready = False
    until_down(leased, proxy, "green")

    leased.call(TrafficSet({"blue": 100, "green": 0}))

    assert set(proxy.control.servers()) == {"blue", "green"}
    assert proxy.share(5) == {"blue": 5}


@pytest.mark.parametrize("share", [10, 100])
def test_a_canary_that_just_died_gets_no_more_traffic(leased, proxy, share):
    """
    HAProxy has it as UP until two of its checks have failed; the host asks it at that moment.
    """
    serve(leased, blue=100)
    leased.call(DeadmanArm("green", "blue"))
    before = {"blue": 100, "green": 0}
    if share == 100:
        before = serve(leased, blue=90, green=10)
    leased.system.http = lambda *words, **options: HttpAnswer(None, "connection refused")

    error = leased.refusal(TrafficSet({"blue": 100 - share, "green": share}))

    assert error.kind == "CommandFailed"
    assert "green is not ready any more" in error.what
    assert {n: s.weight for n, s in proxy.control.servers().items()} == before


def test_a_way_back_asks_the_stable_slot_for_no_readiness(leased, proxy):
    """
    It is UP, and the canary that it replaces may be worse.
    """
    serve(leased, blue=100)
    leased.call(DeadmanArm("green", "blue"))
    serve(leased, blue=90, green=10)
    leased.system.http = lambda *words, **options: HttpAnswer(None, "connection refused")

    assert serve(leased, blue=100, green=0) == {"blue": 100, "green": 0}


def until_down(host, proxy, slot):
    def down():
        return True if proxy.control.servers()[slot].status == "DOWN" else None

    assert host.system.poll_until(down, 5, 0.01)


@pytest.mark.usefixtures("impatient")
def test_a_slot_that_is_down_does_not_keep_another_from_its_share(leased, proxy, runtimes):
    """
    Only a slot that gains has to be UP: the serving slot cannot refuse its own replacement.
    """
    serve(leased, blue=100)
    runtimes["blue"].is_ready = False
    until_down(leased, proxy, "blue")

    assert leased.call(TrafficSet({"green": 10, "blue": 90})).weights == {"blue": 90, "green": 10}
    assert leased.call(TrafficSet({"green": 100})).weights == {"blue": 90, "green": 100}
    assert leased.call(TrafficSet({"blue": 0})).weights == {"blue": 0, "green": 100}
    assert proxy.share(5) == {"green": 5}


@pytest.mark.usefixtures("impatient")
def test_if_every_slot_with_traffic_had_to_be_up_it_would_refuse(
    leased, proxy, runtimes, monkeypatch
):
    """
    Negative control of the test above.
    """
    monkeypatch.setattr(traffic, "_gaining", lambda _, weights: [s for s in SLOTS if weights[s]])
    serve(leased, blue=100)
    runtimes["blue"].is_ready = False
    until_down(leased, proxy, "blue")

    assert "blue is not UP" in leased.refusal(TrafficSet({"green": 10, "blue": 90})).what


def test_a_new_slot_gets_no_request_before_its_check_has_passed(leased, proxy, runtimes):
    """
    HAProxy counts a server as UP as soon as it leaves maint; the traffic waits for a real check.
    """
    serve(leased, blue=100)
    runtimes["green"].is_ready = False
    states = []

    def look():
        server = proxy.control.servers()["green"]
        states.append((server.admin, server.weight))
        runtimes["green"].is_ready = len(states) > 3

    on_sleep(leased, look)
    serve(leased, blue=90, green=10)

    assert len(states) > 3
    assert set(states) == {("ready", 0)}


def test_weights_of_0_for_all_slots_need_force(leased, proxy):
    """
    Also if one slot is omitted.
    """
    serve(leased, blue=100)

    for weights in ({"blue": 0, "green": 0}, {"blue": 0}):
        assert leased.refusal(TrafficSet(weights)).kind == "PreconditionError"
    assert proxy.share(5) == {"blue": 5}

    assert leased.call(TrafficSet({"blue": 0}, force=True)).weights["blue"] == 0
    assert proxy.share(2) == {503: 2}


def test_a_slot_in_maint_stays_there_at_weight_0(leased, proxy):
    """
    A stopped slot is not moved to drain.
    """
    serve(leased, blue=100, green=0)

    assert proxy.control.servers()["green"].admin == "maint"


@pytest.mark.parametrize("weights", [{}, {"blue": 101}, {"blue": -1}, {"blue": "9"}, {"red": 1}])
def test_invalid_weights_are_refused(leased, proxy, weights):
    """
    They are from 0 to 100, for existing slots.
    """
    assert leased.refusal(TrafficSet(weights)).kind == "UsageError"


def test_draining_waits_for_the_request_in_flight(leased, proxy, runtimes):
    """
    Its answer arrives, then the slot goes into maint; new requests go to the other slot.
    """
    serve(leased, blue=100, green=0)
    runtimes["blue"].gate.clear()
    got = []
    client = threading.Thread(target=lambda: got.append(proxy.ask()))
    client.start()
    assert runtimes["blue"].entered.wait(60)
    serve(leased, blue=0, green=100)
    looked = []

    def look():
        looked.append((proxy.control.servers()["blue"].sessions, proxy.ask()))
        if len(looked) == 3:
            runtimes["blue"].gate.set()

    on_sleep(leased, look)
    result = leased.call(TrafficDrain("blue", timeout_s=20))
    client.join()

    assert got == ["blue"]
    assert looked[:3] == [(1, "green")] * 3
    assert (result.left, result.maint) == (0, True)
    assert proxy.control.servers()["blue"].admin == "maint"


def test_an_idle_keep_alive_connection_does_not_hold_up_a_drain(leased, proxy):
    """
    Drain waits for requests, not connections; the client's next request goes to the other slot.
    """
    serve(leased, blue=100, green=0)
    connection = proxy.client()
    assert proxy.ask(connection) == "blue"
    serve(leased, blue=0, green=100)

    assert leased.call(TrafficDrain("blue", timeout_s=5)).left == 0
    assert proxy.ask(connection) == "green"


def test_a_drain_that_times_out_reports_the_remaining_requests(leased, proxy, runtimes):
    """
    The slot stays in drain, and the requests still get their answers.
    """
    serve(leased, blue=100, green=0)
    runtimes["blue"].gate.clear()
    got = []
    client = threading.Thread(target=lambda: got.append(proxy.ask()))
    client.start()
    assert runtimes["blue"].entered.wait(60)
    serve(leased, blue=0, green=100)

    result = leased.call(TrafficDrain("blue", timeout_s=0.2))

    assert (result.left, result.maint) == (1, False)
    assert proxy.control.servers()["blue"].admin == "drain"
    runtimes["blue"].gate.set()
    client.join()
    assert got == ["blue"]


def test_a_slot_that_takes_requests_is_not_drained(leased, proxy):
    """
    It would never become empty.
    """
    serve(leased, blue=100, green=0)

    assert leased.refusal(TrafficDrain("blue")).kind == "PreconditionError"


def test_a_drain_that_loses_its_lease_changes_nothing_more(leased, proxy, runtimes):
    """
    The lease is checked again after every wait.
    """
    serve(leased, blue=100, green=0)
    runtimes["blue"].gate.clear()
    client = threading.Thread(target=proxy.ask)
    client.start()
    assert runtimes["blue"].entered.wait(60)
    serve(leased, blue=0, green=100)

    real = leased.system.steady_s

    def sleep(_):
        # The lease is over, and the request has been answered.
        leased.system.steady_s = lambda: real() + 100.0
        runtimes["blue"].gate.set()
        client.join()

    leased.system.sleep = sleep
    error = leased.refusal(TrafficDrain("blue", timeout_s=50))

    assert error.kind == "LeaseLost"
    assert proxy.control.servers()["blue"].admin == "drain"
    last = leased.journal()[-1]
    assert (last["step"], last["phase"], last["ok"]) == ("traffic.drain", "result", False)


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ([("set", {"blue": 90, "green": 10})], {"blue": ("ready", 90), "green": ("ready", 10)}),
        (
            [("set", {"blue": 100}), ("set", {"blue": 0, "green": 100})],
            {"blue": ("drain", 0), "green": ("ready", 100)},
        ),
        (
            [("set", {"blue": 100}), ("set", {"blue": 0, "green": 100}), ("drain", "blue")],
            {"blue": ("maint", 0), "green": ("ready", 100)},
        ),
    ],
    ids=["canary", "drain", "maint"],
)
def test_a_restart_of_haproxy_keeps_the_weights(leased, proxy, steps, wanted):
    """
    Every change writes the state file; the start reads it.
    """
    for verb, what in steps:
        if verb == "set":
            serve(leased, **what)
        else:
            leased.call(TrafficDrain(what))

    proxy.stop()
    proxy.start()

    assert {n: (s.admin, s.weight) for n, s in proxy.control.servers().items()} == wanted


def test_without_the_state_file_a_restart_loses_the_weights(leased, proxy):
    """
    Negative control: the file keeps the weights.
    """
    serve(leased, blue=100)
    leased.layout.haproxy_state.unlink()

    proxy.stop()
    proxy.start()

    assert proxy.control.servers()["blue"].admin == "maint"


def test_a_failing_canary_is_answered_by_the_stable_slot(leased, proxy, runtimes):
    """
    Clients see no 500 of the canary, and HAProxy's own 5xx counters stay at 0.
    """
    serve(leased, blue=90, green=10)
    runtimes["green"].fails_with = 500

    assert proxy.share(50) == {"blue": 50}
    assert proxy.control.servers()["green"].counters["answers_5xx"] == 0
    assert proxy.control.servers()["green"].counters["retries"] == 5
