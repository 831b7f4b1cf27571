"""
Hosts and slots that lie to a release, over the real host program.
"""

import pytest

from deploy.release import gates
from deploy.release.desired import Ending
from deploy.release.evidence import History
from deploy.release.rollback import plan_rollback
from tests.builders import make_policy
from tests.local_fleet import DIGESTS
from tests.unit.deploy.release.conftest import NAMES
from tests.unit.deploy.release.test_controller import release

ALL_AT_ONCE = make_policy(waves=["100%"], lease_ttl="60s")  # longer than a drain
ERRORS = "http_request_error_rate"


def wave(outcome):
    return outcome.evidence["waves"][-1]


def each_second(fleet, work):
    """
    Run *work* after each second that passes while a canary has traffic.
    """
    fleet.on_sleep = lambda: work() if fleet.serves("n1").get("b2") else None


def forge_host(fleet, name, requests):
    """
    Let root on *name* forge both witnesses: each second its canary has so many more requests.
    """
    fleet.system(name).answer("green", requests)


def test_a_slot_that_denies_its_errors_is_judged_by_haproxy(fleet):
    """
    Its metrics say that everything is fine; clients got errors.
    """

    def answer_badly():
        for name in NAMES:
            system = fleet.system(name)
            system.answer("green", 5, errors=5)
            system.runtimes["green"].errors = 0

    each_second(fleet, answer_badly)
    outcome, _ = release(fleet, policy=ALL_AT_ONCE)

    assert outcome.ending is not Ending.PROMOTED
    assert wave(outcome)["gate"] in {ERRORS, "evidence"}
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_by_its_own_word_the_same_slot_would_be_promoted(fleet, monkeypatch):
    """
    Negative control of the test above: without HAProxy's counters of errors.
    """
    monkeypatch.setattr(History, "_good_since", lambda self, _: self._totals[-1].own.requests)
    monkeypatch.setattr(History, "_errors", lambda self, _: self._totals[-1].own.errors)
    monkeypatch.setattr(History, "_contradiction", lambda _: None)
    test = test_a_slot_that_denies_its_errors_is_judged_by_haproxy
    with pytest.raises(AssertionError):
        test(fleet)
    assert fleet.serves("n1") == {"b2": 100}


def test_a_slot_that_invents_requests_reverts_with_both_numbers(fleet):
    """
    A canary cannot fill its minimum of requests by itself.
    """
    fleet.requests_per_s = 0

    def invent():
        fleet.system("n1").runtimes["green"].requests += 10**6

    each_second(fleet, invent)
    outcome, _ = release(fleet)

    assert outcome.ending is Ending.REVERTED
    assert wave(outcome)["gate"] == "evidence"
    assert "n1: the numbers of the canary are false" in outcome.reason
    assert "HAProxy sent it 0" in outcome.reason


def test_a_slot_with_garbage_metrics_fails_its_own_gate_only(fleet):
    """
    The others are measured; the wave pauses with the host's name and the reason.
    """
    fleet.system("n2").runtimes["green"].metrics = lambda: "<html>" * 1000
    outcome, _ = release(fleet, policy=ALL_AT_ONCE)

    assert outcome.ending is Ending.PAUSED
    assert "n2: the canary cannot be measured: /metrics: line 1" in outcome.reason
    assert wave(outcome)["requests"] > 100, "of the other hosts"


def test_a_canary_that_answers_nothing_on_one_host_is_not_passed_by_the_others(fleet):
    """
    HAProxy sent it requests, and none has come back.
    """
    fleet.silent = {"n3"}
    outcome, _ = release(fleet, policy=ALL_AT_ONCE)

    assert outcome.ending is Ending.PAUSED
    assert "n3: the canary answered none of" in outcome.reason


def fail_some_beside_a_liar(fleet):
    """
    n1 claims a million good requests a second; n2 and n3 fail 8 % of theirs.
    """
    fleet.requests_per_s = 0

    def pass_second():
        forge_host(fleet, "n1", 10**6)
        for name in ("n2", "n3"):
            fleet.system(name).answer("green", 25, errors=2)

    each_second(fleet, pass_second)
    return release(fleet, policy=ALL_AT_ONCE)[0]


def test_forged_counters_of_one_host_do_not_pass_the_canary_for_all(fleet):
    """
    Both witnesses of n1 are forged: the wave has to hold without it.
    """
    outcome = fail_some_beside_a_liar(fleet)

    assert outcome.ending is Ending.PAUSED
    assert wave(outcome)["gate"] == ERRORS
    assert outcome.reason.endswith("without n1")
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_by_the_sum_of_the_wave_the_forged_counters_would_pass(fleet, monkeypatch):
    """
    Negative control of the test above: with the sum of all hosts only.
    """
    monkeypatch.setattr(gates, "_is_no_chance", lambda *_: False)
    monkeypatch.setattr(gates, "_without", lambda wave, _: wave)

    assert fail_some_beside_a_liar(fleet).ending is Ending.PROMOTED


# -- slots that refuse their own replacement


def refuse_to_be_ready(fleet, name):
    system = fleet.system(name)
    system.runtimes["blue"].is_ready = system.runtimes["blue"].has_metrics = False
    system.proxy.servers["blue"].health = 0
    system.proxy.servers["blue"].sessions = 7  # that never end


def test_a_release_replaces_a_serving_slot_that_is_not_ready(fleet):
    """
    Its host gets the release without a canary; the others have theirs.
    """
    refuse_to_be_ready(fleet, "n1")

    outcome, _ = release(fleet, policy=ALL_AT_ONCE)

    assert outcome.ending is Ending.PROMOTED
    assert outcome.error is None
    assert wave(outcome)["hosts"] == ["n2", "n3"]
    for name in NAMES:
        assert fleet.serves(name) == {"b2": 100}
        assert fleet.running(name) == {"b2"}


@pytest.mark.parametrize("action", ["pause", "revert"])
def test_a_release_that_fails_returns_to_the_slot_that_was_not_ready(fleet, action):
    """
    What served before has the traffic again, as it was.
    """
    refuse_to_be_ready(fleet, "n1")
    fleet.system("n2").bad_golden = {DIGESTS["b2"]} if action == "revert" else set()
    fleet.errors_per_s = 5
    gates_of = {"http_request_error_rate": {"action": action}}
    policy = make_policy(waves=[1, "100%"], lease_ttl="60s", gates=gates_of)

    outcome, _ = release(fleet, policy=policy)

    assert outcome.ending is (Ending.PAUSED if action == "pause" else Ending.REVERTED)
    assert "could not go back" not in outcome.error.what
    assert all(fleet.serves(name) == {"b1": 100} for name in NAMES)


def test_a_release_clears_a_leftover_beside_a_slot_that_is_not_ready(fleet):
    """
    Neither slot of the host is ready: there is no service to lose.
    """
    refuse_to_be_ready(fleet, "n1")
    fleet.place("b9", "n1")
    system = fleet.system("n1")
    system.layout.slot_link("green").symlink_to(system.layout.release(DIGESTS["b9"]))
    system.unit_of("green").run()
    system.runtimes["green"].is_ready = False
    blue, green = (system.proxy.servers[slot] for slot in ("blue", "green"))
    blue.own_weight, green.admin, green.own_weight = 90, "ready", 10
    system.before = lambda argv: restart_ready(system, argv)

    outcome, _ = release(fleet, policy=ALL_AT_ONCE)

    assert outcome.ending is Ending.PROMOTED
    assert fleet.serves("n1") == {"b2": 100}


def restart_ready(system, argv):
    if argv[:2] == ["systemctl", "start"]:
        system.runtimes["green"].is_ready = True


def test_a_rollback_replaces_a_serving_slot_that_is_not_ready(fleet):
    fleet.serve("b2")
    refuse_to_be_ready(fleet, "n1")

    plan = plan_rollback(fleet.observed())
    outcome = fleet.roll_back(plan, policy=ALL_AT_ONCE)

    assert outcome.error is None
    for name in NAMES:
        assert fleet.serves(name) == {"b1": 100}
        assert fleet.running(name) == {"b1"}


def test_a_canary_beside_a_slot_that_went_down_gets_its_share(fleet):
    """
    The old slot fails its checks after the plan was made: the split does not wait for it.
    """
    for name in NAMES:
        fleet.system(name).proxy.servers["blue"].health = 0
    fleet.system("n1").runtimes["blue"].is_ready = True

    outcome, _ = release(fleet, policy=ALL_AT_ONCE)

    assert outcome.ending is Ending.PROMOTED
