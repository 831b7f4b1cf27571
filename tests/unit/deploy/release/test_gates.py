import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.inventory.schema import CanaryPolicy, Gates
from deploy.release import gates as gates_module
from deploy.release.evidence import Window, pooled
from deploy.release.gates import Verdict, _is_no_chance, judge
from tests.builders import make_policy

POLICY = make_policy()


def judged(hosts, elapsed_s=10.0, gates=None):
    return judge(hosts, elapsed_s, POLICY.canary, gates or POLICY.gates)


def verdict(window, elapsed_s=10.0, gates=None):
    """
    Return the judgement of a wave of one host.
    """
    return judged({"n1": window}, elapsed_s, gates)


def test_enough_good_requests_pass_when_the_time_is_up():
    """
    After its duration, with at least the minimum of requests, and within every limit.
    """
    assert verdict(Window(20, 0, 0), elapsed_s=6.0).verdict is Verdict.PASS
    assert verdict(Window(20, 0, 0), elapsed_s=5.9).verdict is Verdict.WAIT


def test_too_little_traffic_waits_then_pauses():
    """
    A canary below the minimum waits, and is paused when its time is over.
    """
    assert verdict(Window(19, 0, 0), elapsed_s=29.9).verdict is Verdict.WAIT
    assert verdict(Window(19, 0, 0), elapsed_s=30.0).verdict is Verdict.PAUSE


def test_the_error_rate_needs_its_minimum_of_requests():
    """
    An error among few requests is not judged; the same share of enough requests is.
    """
    assert verdict(Window(19, 19, 0)).verdict is Verdict.WAIT
    assert verdict(Window(20, 2, 0)).verdict is Verdict.PAUSE, "the default action"


def test_the_error_rate_may_equal_its_limit():
    """
    5 % passes a limit of 5 %; more does not.
    """
    assert verdict(Window(100, 5, 0)).verdict is Verdict.PASS
    assert verdict(Window(100, 6, 0)).verdict is Verdict.PAUSE


def test_restarts_and_a_failed_unit_revert_at_once():
    """
    Too many restarts, or a unit that stays down, need no minimum of requests.
    """
    assert verdict(Window(0, 0, 3), elapsed_s=1.0).verdict is Verdict.WAIT
    assert verdict(Window(0, 0, 4), elapsed_s=1.0).verdict is Verdict.REVERT
    failed = verdict(Window(0, 0, 0, is_failed=True), elapsed_s=1.0)
    assert failed.verdict is Verdict.REVERT
    assert "n1" in failed.reason


def test_the_fleet_chooses_the_action():
    """
    Each gate takes the action of the fleet file.
    """
    gates = Gates.model_validate({"http_request_error_rate": {"action": "revert"}})
    assert verdict(Window(20, 20, 0), gates=gates).verdict is Verdict.REVERT


def test_numbers_that_contradict_haproxy_revert():
    """
    Both numbers are in the reason, with the host.
    """
    lie = verdict(Window(100, 0, 0, contradiction="it says 9, HAProxy saw 1"), elapsed_s=1.0)
    assert (lie.verdict, lie.gate) == (Verdict.REVERT, "evidence")
    assert lie.reason.startswith("n1: ")
    assert "it says 9, HAProxy saw 1" in lie.reason


@pytest.mark.parametrize(
    "bad",
    [
        Window(50, 0, 0, unreadable="/metrics answers 500"),
        Window(0, 0, 0, attempts=12),
    ],
    ids=["unreadable", "answers nothing"],
)
def test_a_canary_without_numbers_never_passes_beside_a_good_one(bad):
    """
    It waits for the next reading, and pauses the wave when the time is over; the host is named.
    """
    hosts = {"n1": Window(1000, 0, 0, attempts=1000, answered=1000), "n2": bad}

    assert judged(hosts).verdict is Verdict.WAIT
    late = judged(hosts, elapsed_s=30.0)
    assert late.verdict is Verdict.PAUSE
    assert "n2: the canary" in late.reason
    # Negative control: it answered what was not a request to generate.
    hosts["n2"] = Window(0, 0, 0, attempts=50, answered=50)
    assert judged(hosts).verdict is Verdict.PASS


def test_a_host_with_few_requests_counts_and_is_named():
    """
    Low traffic on one host does not pause a wave whose others have enough.
    """
    passed = judged({"n1": Window(30, 0, 0), "n2": Window(2, 0, 0), "n3": Window(0, 0, 0)})
    assert passed.verdict is Verdict.PASS
    assert passed.reason.endswith(
        "too little data to judge alone: n2 (2 requests), n3 (0 requests)"
    )


# -- hosts that lie

FORGED = Window(10**9, 0, 0)


def test_forged_requests_of_one_host_do_not_dilute_the_errors_of_another():
    """
    8 % of 100 is no accident's proof, but it is above the limit without the host that lies.
    """
    refused = judged({"n1": FORGED, "n2": Window(100, 8, 0)})
    assert refused.verdict is Verdict.PAUSE
    assert refused.reason.endswith(
        "8 of 100 canary requests failed (8.0%, 5.0% allowed) without n1"
    )


def test_the_errors_of_a_host_with_few_requests_still_matter():
    """
    Below the minimum of requests, errors count as soon as chance does not explain them.
    """
    assert judged({"n1": FORGED, "n2": Window(3, 3, 0)}).verdict is Verdict.PAUSE
    assert judged({"n1": FORGED, "n2": Window(3, 1, 0)}).verdict is Verdict.PASS


def test_one_bad_host_is_found_in_a_large_wave():
    """
    Its errors are 1 % of the wave's requests.
    """
    hosts = {f"n{i}": Window(20, 0, 0) for i in range(50)} | {"bad": Window(10, 10, 0)}
    refused = judged(hosts)
    assert refused.verdict is Verdict.PAUSE
    assert refused.reason.startswith("bad: 10 of 10")


def test_judged_by_the_sum_alone_the_lies_would_pass(monkeypatch):
    """
    Negative control: without the parts of the wave, one host's numbers pass for all.
    """
    hosts = {"n1": FORGED, "n2": Window(100, 50, 0)}
    assert judged(hosts).verdict is Verdict.PAUSE

    monkeypatch.setattr(gates_module, "_is_no_chance", lambda *_: False)
    monkeypatch.setattr(gates_module, "_without", lambda wave, _: wave)
    assert judged(hosts).verdict is Verdict.PASS


def binomial_tail(requests, errors, rate):
    return sum(
        math.comb(requests, k) * rate**k * (1 - rate) ** (requests - k)
        for k in range(errors, requests + 1)
    )


@given(st.integers(0, 60), st.data(), st.sampled_from([0.0, 0.01, 0.05, 0.2, 1.0]))
def test_a_host_that_keeps_its_rate_hardly_ever_alarms(requests, data, rate):
    """
    The exact chance of as many errors at the allowed rate is below the limit wherever it alarms.
    """
    errors = data.draw(st.integers(0, requests))
    if _is_no_chance(Window(requests, errors, 0), rate, 0.001):
        assert binomial_tail(requests, errors, rate) <= 0.001


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=2, max_size=6),
    st.integers(0, 10**9),
)
def test_no_numbers_of_one_host_pass_what_the_others_would_not(rows, forged):
    """
    If the other hosts alone have enough requests and too many errors, the wave never passes.
    """
    others = {f"n{i}": Window(r, min(r, e), 0) for i, (r, e) in enumerate(rows)}
    gate, sum_of_others = POLICY.gates.http_request_error_rate, pooled(others.values())
    beside = judged(others | {"liar": Window(forged, 0, 0)}, elapsed_s=30.0)
    if sum_of_others.requests >= gate.min_requests and sum_of_others.error_rate > gate.max:
        assert beside.verdict is Verdict.PAUSE


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0, 1000))
def test_nothing_passes_before_its_time_or_its_requests(requests, errors, elapsed_s):
    """
    PASS implies the whole duration, the whole minimum and an error rate within the limit.
    """
    errors = min(errors, requests)
    window = {"n1": Window(requests, errors, 0)}
    judgement = judge(window, elapsed_s, CanaryPolicy(), Gates())
    if judgement.verdict is Verdict.PASS:
        assert elapsed_s >= CanaryPolicy().duration
        assert requests >= CanaryPolicy().min_requests
        assert errors <= 0.05 * requests
