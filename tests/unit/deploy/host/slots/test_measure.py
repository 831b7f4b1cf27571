import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter

from deploy.host.protocol import Measure, OwnCounters, SlotStart, TrafficSet
from deploy.host.slots import measure, runtime_api
from deploy.host.slots.measure import count
from deploy.host.slots.metrics import MetricsError, parse_metrics
from deploy.release.evidence import Reading, counted
from runtime import contract
from tests.unit.deploy.host.fakes import BUNDLE, OTHER


def exposed(answers, excused=()):
    """
    Return the metrics of a runtime after *answers*: (route, code) and their number.

    Args:
        excused: Those that are the client's doing: (route, reason) and their number.
    """
    registry = CollectorRegistry()
    labels = ("version", "slot", "route", "code")
    counter = Counter(contract.REQUESTS_TOTAL, "x", labels, registry=registry)
    for (route, code), number in answers.items():
        counter.labels("v1", "green", route, code).inc(number)
    labels = ("version", "slot", "route", "reason")
    counter = Counter(contract.EXCUSED_TOTAL, "x", labels, registry=registry)
    for (route, reason), number in dict(excused).items():
        counter.labels("v1", "green", route, reason).inc(number)
    return prometheus_client.generate_latest(registry).decode()


def test_metric_names_match_the_runtime():
    """
    `runtime.contract` and the host program use the same names.
    """
    for name in ("REQUESTS_TOTAL", "EXCUSED_TOTAL", "EXCUSES", "GENERATE_ROUTES", "METRICS"):
        assert getattr(measure, name) == getattr(contract, name)
    assert runtime_api.READYZ == contract.READYZ


def test_only_generating_routes_are_counted():
    """
    Health checks do not count, nor do answers that are the client's fault (4xx).
    """
    text = exposed(
        {
            ("/generate", "200"): 90,
            ("/v1/completions", "503"): 4,
            ("/generate", "500"): 3,
            ("/generate", "422"): 2,
            ("/readyz", "503"): 50,
        }
    )

    assert count(parse_metrics(text)) == OwnCounters(requests=97, errors=7, answers_5xx=57)


def test_a_full_queue_and_deadlines_of_clients_are_excused():
    """
    They are no evidence; an unknown reason and another route excuse nothing.
    """
    answers = {("/generate", "200"): 90, ("/generate", "503"): 6, ("/generate", "504"): 4}
    excuses = {
        ("/generate", "queue_full"): 5,
        ("/generate", "client_deadline"): 3,
        ("/generate", "bad_weather"): 2,
        ("/healthz", "queue_full"): 7,
    }
    counted = count(parse_metrics(exposed(answers, excuses)))
    assert counted == OwnCounters(requests=92, errors=2, answers_5xx=10, excused=8)


def test_more_excuses_than_answers_with_a_5xx_cannot_be_read():
    with pytest.raises(MetricsError, match="is 3, but only 2 answers were a 5xx"):
        count(parse_metrics(exposed({("/generate", "503"): 2}, {("/generate", "queue_full"): 3})))


@pytest.fixture
def serving(leased, runtimes):
    leased.stage(BUNDLE, "v1")
    leased.call(SlotStart("green", BUNDLE))
    runtimes["green"].metrics = exposed({("/generate", "200"): 5, ("/generate", "500"): 1})
    return leased


def test_a_slot_is_measured_without_a_lease(serving, proxy):
    """
    It is read-only: nothing is written.
    """
    lines = len(serving.journal())
    serving.fence = None
    proxy.control.set_weight("green", 10)

    green = serving.call(Measure()).slots["green"]

    assert green.own == OwnCounters(requests=6, errors=1, answers_5xx=1)
    assert (green.restarts, green.is_ready, green.unit, green.problem) == (0, True, "active", None)
    assert len(serving.journal()) == lines


def test_haproxy_counts_what_a_slot_does_not_admit(serving, proxy, runtimes):
    """
    The slot's metrics stay as they are; what it answered to clients stands beside them.
    """
    serving.call(TrafficSet({"green": 100}))
    assert proxy.share(4) == {"green": 4}
    runtimes["green"].fails_with = 503
    assert proxy.share(3) == {503: 3}

    green = serving.call(Measure()).slots["green"]

    assert (green.own.requests, green.own.errors) == (6, 1)
    assert (green.proxy.attempts, green.proxy.answers_2xx, green.proxy.answers_5xx) == (7, 4, 3)


def test_a_retried_request_is_a_retry_of_the_slot_that_failed(serving, proxy, runtimes):
    """
    HAProxy hides the 500 from the client, and counts the attempt.
    """
    serving.call(TrafficSet({"green": 50, "blue": 50}))
    runtimes["green"].fails_with = 500

    assert proxy.share(10) == {"blue": 10}

    slots = serving.call(Measure()).slots
    assert slots["green"].proxy.answers_5xx == 0
    assert slots["green"].proxy.retries > 0
    assert (slots["blue"].proxy.retries, slots["blue"].proxy.redispatches) == (0, 0)


GARBAGE = {
    "nothing": None,
    "html": "<html>it works</html>",
    "not a number": 'slipway_http_requests_total{route="/generate",code="200"} x\n',
    "NaN": 'slipway_http_requests_total{route="/generate",code="200"} NaN\n',
    "infinite": 'slipway_http_requests_total{route="/generate",code="200"} +Inf\n',
    "negative": 'slipway_http_requests_total{route="/generate",code="200"} -1\n',
    "overflow": 'slipway_http_requests_total{route="/generate",code="200"} 1e300\n',
    "endless line": "x" * 100_000,
    "endless labels": "x{" + 'a="b",' * 1000,
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_an_unreadable_slot_is_its_own_problem(serving, proxy, runtimes, garbage):
    """
    It has no counters of its own, with the reason; HAProxy's and the other slot's are there.
    """
    serving.stage(OTHER, "v2")
    serving.call(SlotStart("blue", OTHER))
    serving.call(TrafficSet({"green": 100}))
    runtimes["blue"].metrics = exposed({("/generate", "200"): 3})
    runtimes["green"].metrics = GARBAGE[garbage]

    slots = serving.call(Measure()).slots

    assert (slots["green"].own, slots["green"].is_ready) == (None, False)
    assert slots["green"].problem.startswith("/metrics")
    assert slots["green"].proxy is not None
    assert slots["blue"].own.requests == 3
    assert (slots["blue"].problem, slots["blue"].is_ready) == (None, True)

    runtimes["green"].metrics = exposed({("/generate", "200"): 7})  # negative control
    assert serving.call(Measure()).slots["green"].own.requests == 7


def test_a_slot_without_haproxy_is_incomplete(serving, runtimes):
    """
    Without HAProxy's counters, there is only the slot's own word.
    """
    serving.system.proxy.is_running = False

    green = serving.call(Measure()).slots["green"]

    assert (green.proxy, green.is_ready, green.own.requests) == (None, True, 6)
    assert "HAProxy" in green.problem


def test_a_host_without_releases_is_measured(host):
    """
    No counters and no error.
    """
    blue = host.call(Measure()).slots["blue"]

    assert (blue.own, blue.unit) == (None, "inactive")


def test_an_honest_slot_and_a_real_haproxy_agree(serving, proxy, runtimes):
    """
    Good answers, answers that HAProxy repeats on the other slot, and errors that clients get: both
    witnesses have the same numbers, and each failure counts once.
    """
    green, answers = runtimes["green"], {("/generate", "200"): 0, ("/generate", "500"): 0}
    serving.call(TrafficSet({"green": 50, "blue": 50}))
    history = []

    def read():
        green.metrics = exposed(answers)
        history.append(Reading(float(len(history)), serving.call(Measure()).slots["green"]))

    def share(number, code):
        before = len(green.requests)
        green.fails_with = None if code == "200" else int(code)
        proxy.share(number)
        key = ("/generate", code)
        answers[key] = answers.get(key, 0) + len(green.requests) - before

    read()
    share(40, "200")
    good = len(green.requests)
    read()
    share(10, "500")
    share(6, "503")
    failed = len(green.requests) - good
    read()

    window = counted(history, within_s=300)
    assert (window.requests, window.errors) == (good + failed, failed)
    assert (window.contradiction, window.unreadable) == (None, None)
    assert failed > 0
