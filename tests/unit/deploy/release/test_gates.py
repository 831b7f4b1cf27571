from hypothesis import given
from hypothesis import strategies as st

from deploy.inventory.schema import CanaryPolicy, Gates
from deploy.release.gates import Verdict, Window, counted, judge, summed
from tests.builders import make_policy, make_reading

POLICY = make_policy()


def verdict(window, elapsed_s=10.0, gates=None):
    return judge(window, elapsed_s, POLICY.canary, gates or POLICY.gates)


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
    assert verdict(Window(0, 0, 0, ("n1",)), elapsed_s=1.0).verdict is Verdict.REVERT


def test_the_fleet_chooses_the_action():
    """
    Each gate takes the action of the fleet file.
    """
    gates = Gates.model_validate({"http_request_error_rate": {"action": "revert"}})
    assert verdict(Window(20, 20, 0), gates=gates).verdict is Verdict.REVERT


def test_a_restart_resets_counters_without_hiding_errors():
    """
    Counts before and after a restart are added; none becomes negative.
    """
    history = [
        make_reading(0, requests=0, errors=0),
        make_reading(1, requests=10, errors=3, broken=0),
        make_reading(2, requests=2, errors=1, broken=4, restarts=1),
    ]
    window = counted(history, within_s=300)
    assert (window.requests, window.errors, window.restarts) == (16, 8, 1)


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
        make_reading(2, requests=0, is_whole=False),
        make_reading(3, requests=19),
    ]
    assert counted(history, within_s=300).requests == 11


def test_no_reading_is_an_empty_window():
    assert counted([], within_s=300) == Window(0, 0, 0)


readings = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8
)


@given(readings)
def test_counts_are_never_negative_and_errors_never_exceed_requests(rows):
    """
    For any counters of a slot, restarts included.
    """
    history = [
        make_reading(i, requests=r + e, errors=e, broken=b) for i, (r, e, b) in enumerate(rows)
    ]
    window = counted(history, within_s=300)
    assert 0 <= window.errors <= window.requests


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0, 1000))
def test_nothing_passes_before_its_time_or_its_requests(requests, errors, elapsed_s):
    """
    PASS implies the whole duration, the whole minimum and an error rate within the limit.
    """
    errors = min(errors, requests)
    judgement = judge(Window(requests, errors, 0), elapsed_s, CanaryPolicy(), Gates())
    if judgement.verdict is Verdict.PASS:
        assert elapsed_s >= CanaryPolicy().duration
        assert requests >= CanaryPolicy().min_requests
        assert errors <= 0.05 * requests


def test_a_wave_is_judged_by_the_sum_of_its_hosts():
    """
    The verdict names hosts whose unit is down.
    """
    window = summed(
        {
            "n1": [make_reading(0), make_reading(1, requests=10, errors=1)],
            "n2": [make_reading(0), make_reading(1, requests=5, is_failed=True)],
        },
        within_s=300,
    )
    assert window == Window(15, 1, 0, ("n2",))
