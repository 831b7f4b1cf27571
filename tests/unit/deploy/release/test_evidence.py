from hypothesis import given
from hypothesis import strategies as st

from deploy.release import evidence
from deploy.release.evidence import History, Window, counted
from tests.builders import make_reading


def window(*readings, within_s=300):
    return counted(readings, within_s)


def test_a_request_is_good_where_both_say_so():
    """
    The slot counts generating routes only; HAProxy counts what really went to clients.
    """
    first = make_reading(0)
    fewer = make_reading(1, requests=100, own={"requests": 60, "errors": 0, "answers_5xx": 0})
    more = make_reading(1, requests=100, own={"requests": 120, "errors": 0, "answers_5xx": 0})

    assert window(first, fewer).requests == 60
    assert window(first, more).requests == 100


def test_an_error_is_one_where_either_says_so():
    """
    The slot's word adds errors that HAProxy hid from clients, and never removes one.
    """
    first = make_reading(0)
    hidden = make_reading(1, requests=50, own={"requests": 50, "errors": 5, "answers_5xx": 5})
    denied = make_reading(1, requests=50, errors=9, own={"errors": 0, "answers_5xx": 0})

    assert window(first, hidden).errors == 5
    assert window(first, denied).errors == 9


def test_every_kind_of_failure_that_haproxy_sees_is_an_error():
    """
    A repetition that it counts as a retry and as a redispatch is one.
    """
    failed = {
        "connection_errors": 1,
        "response_errors": 2,
        "cut_answers": 3,
        "retries": 4,
        "redispatches": 4,
    }
    assert window(make_reading(0), make_reading(1, proxy=failed)).errors == 10


def test_what_the_slot_did_before_the_first_reading_is_not_counted():
    """
    Golden prompts are asked before the canary has traffic.
    """
    assert window(make_reading(0, requests=40, errors=2)) == Window(0, 0, 0)


def test_a_restart_resets_counters_without_hiding_errors():
    """
    Counts before and after a restart are added; none becomes negative.
    """
    seen = window(
        make_reading(0),
        make_reading(1, requests=10, errors=3),
        make_reading(2, requests=12, errors=4, own={"requests": 2, "errors": 1}, restarts=1),
    )
    assert (seen.requests, seen.errors, seen.restarts) == (12, 4, 1)


def test_a_restart_of_haproxy_loses_no_count():
    """
    All of its counters start again at 0, so that one that decreases shows it.
    """
    zero = {"attempts": 6, "answers_2xx": 5, "answers_5xx": 1}
    seen = window(
        make_reading(0, requests=100),
        make_reading(1, requests=110, errors=2),
        make_reading(2, requests=116, errors=3, proxy=zero),
    )
    assert (seen.requests, seen.errors, seen.contradiction) == (16, 3, None)


def test_restarts_count_within_their_time():
    """
    A restart before the gate's window does not count.
    """
    history = [make_reading(0), make_reading(1, restarts=2), make_reading(400, restarts=3)]
    assert counted(history, within_s=300).restarts == 0
    assert counted([*history, make_reading(401, restarts=4)], within_s=300).restarts == 1


def test_a_missing_reading_counts_nothing():
    """
    A slot too busy to show its counters did not restart, and its old requests are not new ones.
    """
    history = [
        make_reading(0, requests=8),
        make_reading(1, requests=14),
        make_reading(2, requests=14, own=False, problem="/metrics: timed out"),
        make_reading(3, requests=19),
    ]
    assert counted(history, within_s=300).requests == 11
    assert counted(history[:3], within_s=300).unreadable == "/metrics: timed out"
    assert counted(history, within_s=300).unreadable is None


def test_errors_of_a_slot_without_metrics_are_counted_by_haproxy():
    """
    Silence hides nothing.
    """
    quiet = [make_reading(i, requests=20 * i, errors=8 * i, own=False) for i in range(3)]
    assert counted(quiet, within_s=300).errors == 16


def test_no_reading_is_an_empty_window():
    assert counted([], within_s=300).requests == 0


FORGED = {"requests": 10**9, "errors": 0, "answers_5xx": 0}


def test_a_slot_that_claims_more_than_it_was_sent_is_found():
    """
    Both numbers are quoted; what was in flight at the first reading is no lie.
    """
    first = make_reading(0, proxy={"sessions": 30})
    honest = {"requests": 130, "errors": 0, "answers_5xx": 0}

    assert window(first, make_reading(1, requests=100, own=honest)).contradiction is None
    lie = window(first, make_reading(1, requests=100, own=FORGED)).contradiction
    assert "answered 1000000000 requests, HAProxy sent it 130" in lie


def test_a_slot_that_hides_errors_that_clients_got_is_found():
    none = {"errors": 0, "answers_5xx": 0}
    lie = window(make_reading(0), make_reading(1, requests=100, errors=40, own=none)).contradiction
    assert lie == "the slot says that it answered 0 requests with 5xx, HAProxy saw 40"


def test_a_restart_is_no_lie():
    """
    The counts of the process that ended are lost.
    """
    none = {"requests": 0, "errors": 0, "answers_5xx": 0}
    restarted = make_reading(1, requests=200, errors=100, own=none, restarts=1)
    assert window(make_reading(0), restarted).contradiction is None


def test_without_haproxys_word_a_lie_would_count(monkeypatch):
    """
    Negative control: judged by its own word alone, the slot has a thousand million good requests.
    """
    lie = [make_reading(0), make_reading(1, requests=100, errors=90, own=FORGED)]
    assert counted(lie, within_s=300).error_rate > 0.5

    monkeypatch.setattr(History, "_good_since", lambda self, _: self._totals[-1].own.requests)
    monkeypatch.setattr(History, "_errors", lambda self, _: self._totals[-1].own.errors)
    assert counted(lie, within_s=300).error_rate < 0.001


rows = st.lists(
    st.tuples(*[st.integers(0, 50)] * 5, st.booleans(), st.booleans()), min_size=1, max_size=8
)


@given(rows)
def test_counts_are_never_negative_and_errors_never_exceed_requests(rows):
    """
    For any counters of a slot and of HAProxy, restarts and gaps included.
    """
    history = [
        make_reading(
            i,
            requests=good + bad,
            errors=bad,
            own=False if no_own else {"requests": own, "errors": own_bad},
            proxy=False if no_proxy else {"retries": retries},
        )
        for i, (good, bad, own, own_bad, retries, no_own, no_proxy) in enumerate(rows)
    ]
    seen = counted(history, within_s=300)
    assert 0 <= seen.errors <= seen.requests
    assert seen.attempts >= 0


@given(rows)
def test_no_claim_of_a_slot_makes_it_better_than_haproxy_saw(rows):
    """
    Whatever its metrics say: not fewer errors, and not more good requests.
    """
    honest, told = [], []
    for i, (good, bad, own, own_bad, *_) in enumerate(rows):
        honest.append(make_reading(i, requests=good + bad, errors=bad, own=FORGED))
        told.append(make_reading(i, requests=good + bad, errors=bad,
                                 own={"requests": own, "errors": own_bad}))  # fmt: skip
    rise = evidence._Rise(evidence.ProxyCounters)
    seen = [rise.add(reading.slot.proxy) for reading in honest][-1]
    window = counted(told, within_s=300)
    assert window.errors >= seen.answers_5xx
    assert window.requests - window.errors <= seen.answers_2xx
