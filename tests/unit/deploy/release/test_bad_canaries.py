"""
Canaries that fail in ways that a count of 5xx does not show, and clients that look like that.

Each story gives the counters second by second; the verdict is asked for after every second.
"""

import pytest

from deploy.host.protocol import OwnCounters, ProxyCounters, SlotCounters
from deploy.release import gates
from deploy.release.evidence import History, Reading, windows
from deploy.release.gates import Verdict, judge, judge_promoted
from tests.builders import make_policy

POLICY = make_policy(
    canary={"share_pct": 10, "duration": "40s", "give_up_after": "120s", "min_requests": 100}
)
STOPS = {Verdict.PAUSE, Verdict.REVERT}
OF_PROXY = ProxyCounters.__dataclass_fields__


class Slot:
    """
    The two witnesses of one slot.
    """

    def __init__(self):
        self.own = dict.fromkeys(OwnCounters.__dataclass_fields__, 0)
        self.proxy = dict.fromkeys(OF_PROXY, 0)
        self.is_ready, self.has_metrics, self.restarts, self.unit = True, True, 0, "active"

    def answers(self, good=0, errors=0, refused=0, excused=0):
        """
        Answer so many requests with 200, 500, 401, and 503 for a full queue.
        """
        self.own["requests"] += good + errors
        self.own["errors"] += errors
        self.own["answers_5xx"] += errors + excused
        self.own["excused"] += excused
        self.sees(
            attempts=good + errors + refused + excused,
            answers_2xx=good,
            answers_4xx=refused,
            answers_5xx=errors + excused,
        )

    def sees(self, **counters):
        """
        Let HAProxy alone count *counters*.
        """
        for name, number in counters.items():
            self.proxy[name] += number

    def reading(self, at_s):
        own = OwnCounters(**self.own) if self.has_metrics else None
        problem = None if self.has_metrics else "/metrics: timed out"
        counters = SlotCounters(
            own, ProxyCounters(**self.proxy), problem, self.restarts, self.is_ready, self.unit
        )
        return Reading(float(at_s), counters)


def measured(canary, stable=None, seconds=41, hosts=("n1",)):
    """
    Return the verdict after each second.

    Args:
        canary, stable: Called for each host and second with the slot, second and host's name.
            Without *stable* the hosts are promoted ones.
    """
    new, old = {n: Slot() for n in hosts}, {n: Slot() for n in hosts}
    histories = {n: History([new[n].reading(0)]) for n in hosts}
    beside = {n: History([old[n].reading(0)]) for n in hosts}
    verdicts = []
    for second in range(1, seconds + 1):
        for name in hosts:
            canary(new[name], second, name)
            histories[name].append(new[name].reading(second))
            if stable is not None:
                stable(old[name], second, name)
                beside[name].append(old[name].reading(second))
        if stable is None:
            seen = windows(histories, 300)
            verdicts.append(judge_promoted(seen, second, POLICY.canary, POLICY.gates))
        else:
            seen = windows(histories, 300, stable=beside)
            verdicts.append(judge(seen, second, POLICY.canary, POLICY.gates))
    return verdicts


def good(slot, _second, _name, requests=10):
    slot.answers(good=requests)


def busy(slot, _second, _name):
    slot.answers(good=90)


def first_stop(verdicts):
    """
    Return the second of the first verdict that stops, and the verdict.
    """
    return next((n, v) for n, v in enumerate(verdicts, 1) if v.verdict in STOPS)


def assert_passes(verdicts):
    assert verdicts[-1].verdict is Verdict.PASS, verdicts[-1]
    assert not STOPS & {v.verdict for v in verdicts}


def assert_never_passes(verdicts):
    assert Verdict.PASS not in {v.verdict for v in verdicts}


def after(second, story, otherwise=good):
    """
    Return a story that is *otherwise* up to *second*, and then *story*.
    """
    return lambda slot, now, name: (story if now > second else otherwise)(slot, now, name)


# -- canaries


def test_a_good_canary_passes_and_a_promoted_host_keeps():
    """
    Negative control of all the others.
    """
    assert_passes(measured(good, busy))
    assert_passes(measured(good))


@pytest.mark.parametrize("counter", ["connection_errors", "response_errors", "retries"])
def test_a_canary_that_closes_connections_is_stopped(counter):
    """
    Clients get answers of the other slot, and no 5xx is counted anywhere.
    """

    def closes(slot, *_):
        slot.sees(attempts=10, **{counter: 10})

    second, verdict = first_stop(measured(closes, busy))
    assert second == 2, "20 requests are needed"
    assert verdict.gate == "http_request_error_rate"


def hangs(slot, *_):
    slot.sees(attempts=10)  # and /readyz answers 200


def test_a_canary_that_hangs_after_enough_requests_never_passes():
    """
    It waits, and is stopped well before it would give up.
    """
    verdicts = measured(after(30, hangs), busy, seconds=120)
    assert_never_passes(verdicts)
    second, verdict = first_stop(verdicts)
    assert (second, verdict.verdict, verdict.gate) == (70, Verdict.PAUSE, "health")
    assert "no good answer of the canary for 40 s, and none at all to 400" in verdict.reason
    # Negative control: it only pauses between answers.
    pauses = after(30, lambda s, n, _: hangs(s) if n % 3 else s.answers(30))
    assert_passes(measured(pauses, busy, seconds=42))


def test_without_the_check_of_silence_a_hung_canary_would_pass(monkeypatch):
    """
    Negative control: its sums are those of a good canary.
    """
    monkeypatch.setattr(gates, "_is_hung", lambda _: False)
    monkeypatch.setattr(gates, "_silent", lambda *_: None)
    assert measured(after(30, hangs), busy)[-1].verdict is Verdict.PASS


def silent(*_):
    pass


def test_a_canary_that_falls_silent_never_passes():
    """
    It gets no requests any more, and the stable slot does.
    """
    verdicts = measured(after(30, silent), busy, seconds=120)
    assert_never_passes(verdicts)
    assert verdicts[-1].verdict is Verdict.PAUSE
    assert (
        "n1: no good answer of the canary for 90 s, and 8100 of the stable" in verdicts[-1].reason
    )
    # Negative control: clients have left both slots.
    assert_passes(measured(after(30, silent), after(30, silent, otherwise=busy)))


def test_a_host_whose_canary_never_gets_traffic_is_not_passed_by_the_others():
    """
    By the share that it should have, unless the stable slot has none either.
    """

    def only_n1(slot, second, name):
        if name == "n1":
            good(slot, second, name)

    hosts = ("n1", "n2")
    last = measured(only_n1, busy, hosts=hosts)[-1]
    assert (last.verdict, last.gate) == (Verdict.WAIT, "health")
    assert last.reason.startswith("n2: ")
    assert_passes(measured(only_n1, only_n1, hosts=hosts))


@pytest.mark.parametrize("change", [{"is_ready": False}, {"is_ready": False, "has_metrics": False}])
def test_a_canary_that_is_not_well_at_the_verdict_does_not_pass(change):
    """
    Not ready, or without numbers, after enough good requests.
    """

    def ends_badly(slot, second, name):
        good(slot, second, name)
        if second == 40:
            vars(slot).update(change)
        if second == 41:
            vars(slot).update(is_ready=True, has_metrics=True)

    verdicts = measured(ends_badly, busy)
    assert (verdicts[39].verdict, verdicts[39].gate) == (Verdict.WAIT, "health")
    assert verdicts[40].verdict is Verdict.PASS


def fails(slot, *_):
    slot.answers(errors=10)


def test_errors_of_the_last_seconds_count_by_themselves():
    """
    They are within the limit of 5 % of all.
    """
    fails_late = after(
        35, lambda s, *_: s.answers(errors=25), otherwise=lambda s, *_: s.answers(good=100)
    )
    second, verdict = first_stop(measured(fails_late, busy))
    assert second <= 39
    assert "in the last 10 s" in verdict.reason


# -- clients


def strangers(slot, share):
    slot.answers(refused=round(500 * share))


def test_a_flood_of_401_is_no_evidence():
    """
    It neither stops a good canary nor passes one that nobody else uses.
    """

    def flooded_canary(slot, second, name):
        strangers(slot, 0.1)
        good(slot, second, name)

    def flooded_stable(slot, second, name):
        strangers(slot, 0.9)
        busy(slot, second, name)

    assert_passes(measured(flooded_canary, flooded_stable))

    alone = measured(lambda s, *_: strangers(s, 0.1), lambda s, *_: strangers(s, 0.9), seconds=120)
    assert_never_passes(alone)
    assert alone[-1].gate == "min_requests"
    assert {v.verdict for v in alone[:118]} == {Verdict.WAIT}


def test_a_canary_that_refuses_those_whom_the_stable_slot_answers_is_stopped():
    """
    Half of its answers are 401, and none of the stable slot's.
    """
    _, verdict = first_stop(measured(lambda s, *_: s.answers(good=5, refused=5), busy))
    assert verdict.gate == "refusals"


def test_a_storm_that_fills_the_queues_is_no_evidence():
    """
    503s of a full queue are counted as 5xx by HAProxy; the slot excuses them.
    """

    def storm(slot, *_):
        slot.answers(good=10, excused=100)

    assert_passes(measured(storm, storm))
    assert_passes(measured(storm))  # promoted
    # Negative control: the same answers without the slot's excuse.
    second, verdict = first_stop(measured(lambda s, *_: s.answers(good=10, errors=100), storm))
    assert (second, verdict.gate) == (1, "http_request_error_rate")


def test_an_excuse_may_come_one_reading_after_its_answer():
    """
    HAProxy is read after the slot: it has seen refusals that the slot's numbers lack.
    """

    def storm(slot, second, _name):
        slot.sees(answers_5xx=-50 if second > 1 else 0)
        slot.answers(good=10, excused=100)
        slot.sees(answers_5xx=50)

    assert_passes(measured(storm, storm))


def test_without_the_time_for_excuses_a_storm_would_stop_a_canary(monkeypatch):
    """
    Negative control of the test above.
    """
    monkeypatch.setattr(History, "_excusable", lambda self: len(self.readings) - 1)
    with pytest.raises(AssertionError):
        test_an_excuse_may_come_one_reading_after_its_answer()


def test_errors_cannot_hide_as_a_full_queue():
    """
    The stable slot beside it has no full queue.
    """

    def hides(slot, *_):
        slot.answers(good=6, excused=4)

    second, verdict = first_stop(measured(hides, busy))
    assert verdict.gate == "refusals"
    assert second <= 10
    assert "beside 0 of" in verdict.reason


def test_an_excuse_does_not_cover_later_errors_of_a_slot_without_numbers():
    """
    It excused one answer, and then shows no numbers: HAProxy's word counts after some seconds.
    """

    def hides(slot, second, _name):
        if second == 1:
            slot.answers(good=10, excused=1)
            return
        slot.has_metrics = slot.is_ready = False
        slot.sees(attempts=10, answers_5xx=10)

    second, verdict = first_stop(measured(hides, busy))
    assert verdict.gate in {"http_request_error_rate", "evidence"}
    assert second <= 9


def test_clients_with_deadlines_of_1_ms_are_no_evidence():
    """
    Nine of ten requests of both slots end at a deadline that the client set.
    """
    assert_passes(measured(lambda s, *_: s.answers(9, excused=90), busy_with_deadlines))
    # Negative control: only the canary is late, so that it is slower.
    _, verdict = first_stop(measured(lambda s, *_: s.answers(9, excused=90), busy))
    assert verdict.gate == "refusals"


def busy_with_deadlines(slot, *_):
    slot.answers(good=90, excused=900)


# -- promoted hosts


@pytest.mark.parametrize(
    ("story", "gate", "by_s"),
    [
        (fails, "http_request_error_rate", 33),
        (lambda s, *_: s.sees(attempts=10, connection_errors=10), "http_request_error_rate", 33),
        (hangs, "health", 70),
        (lambda s, *_: setattr(s, "is_ready", False), "health", 41),
        (lambda s, *_: setattr(s, "unit", "failed"), "unit", 31),
        (lambda s, *_: setattr(s, "restarts", s.restarts + 1), "runtime_restarts", 34),
    ],
    ids=["fails", "closes connections", "hangs", "not ready", "failed unit", "restarts"],
)
def test_a_host_that_fails_after_its_promotion_is_taken_back(story, gate, by_s):
    """
    REVERT, whatever the action of the gate.
    """
    verdicts = measured(after(30, story), seconds=90)
    second, verdict = first_stop(verdicts)
    assert (verdict.verdict, verdict.gate) == (Verdict.REVERT, gate)
    assert second <= by_s


def test_one_promoted_host_that_fails_is_found_beside_the_others():
    hosts = tuple(f"n{i}" for i in range(20))

    def one_fails(slot, second, name):
        (fails if name == "n7" and second > 30 else good)(slot, second, name)

    second, verdict = first_stop(measured(one_fails, hosts=hosts))
    assert second <= 33
    assert verdict.reason.startswith("n7: ")


def test_a_promoted_host_without_traffic_does_not_block_for_ever():
    """
    It passes after its time, with a note.
    """
    last = measured(silent)[-1]
    assert last.verdict is Verdict.PASS
    assert "no traffic to judge on n1" in last.reason
    assert_passes(measured(after(20, silent)))


def test_a_promoted_host_that_falls_silent_beside_others_does_not_pass():
    """
    It had its share of the traffic.
    """
    hosts = ("n1", "n2")

    def one_is_silent(slot, second, name):
        (silent if name == "n2" and second > 20 else good)(slot, second, name)

    verdicts = measured(one_is_silent, hosts=hosts, seconds=121)
    assert_never_passes(verdicts)
    assert verdicts[-1].verdict is Verdict.PAUSE
    assert verdicts[-1].reason.startswith("n2: no good answer")


def test_a_promoted_host_cannot_hide_its_errors_as_a_full_queue():
    """
    It has the requests of the others, and few of their good answers; a storm at one host is
    another thing.
    """
    hosts = ("n1", "n2", "n3")

    def one(name, good_requests):
        return lambda slot, _second, at: (
            slot.answers(good=good_requests, excused=100 if good_requests == 10 else 8)
            if at == name
            else slot.answers(good=10)
        )

    _, verdict = first_stop(measured(one("n2", 2), hosts=hosts))
    assert (verdict.verdict, verdict.gate) == (Verdict.REVERT, "refusals")
    assert_passes(measured(one("n2", 10), hosts=hosts))
