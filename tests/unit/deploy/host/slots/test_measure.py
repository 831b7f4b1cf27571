import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter

from deploy.host.protocol import Measure, SlotCounters, SlotStart, TrafficSet
from deploy.host.slots import measure, runtime_api
from deploy.host.slots.measure import count, parse_metrics
from runtime import contract
from tests.unit.deploy.host.fakes import BUNDLE


def exposed(answers):
    """
    Return the metrics of a runtime after *answers*: (route, code) and their number.
    """
    registry = CollectorRegistry()
    labels = ("version", "slot", "route", "code")
    counter = Counter(contract.REQUESTS_TOTAL, "x", labels, registry=registry)
    for (route, code), number in answers.items():
        counter.labels("v1", "green", route, code).inc(number)
    return prometheus_client.generate_latest(registry).decode()


def test_metric_names_match_the_runtime():
    """
    `runtime.contract` and the host program use the same names.
    """
    for name in ("REQUESTS_TOTAL", "GENERATE_ROUTES", "METRICS"):
        assert getattr(measure, name) == getattr(contract, name)
    assert runtime_api.READYZ == contract.READYZ


def test_only_generating_routes_are_counted():
    """
    Health checks do not count; 4xx is the client's fault.
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

    assert count(parse_metrics(text)) == (99, 7)


def test_label_values_may_have_any_characters():
    """
    Quotes, commas, braces, line ends and backslashes.
    """
    value = 'a"b,c}d\\e\nf'
    registry = CollectorRegistry()
    Counter("x", "x", ["route"], registry=registry).labels(value).inc()

    samples = parse_metrics(prometheus_client.generate_latest(registry).decode())

    assert samples[0].labels["route"] == value


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

    assert serving.call(Measure()).slots["green"] == SlotCounters(
        requests=6,
        errors=1,
        broken=0,
        restarts=0,
        is_whole=True,
        is_ready=True,
        unit="active",
    )
    assert len(serving.journal()) == lines


def test_a_retried_request_is_an_error_of_the_first_slot(serving, proxy, runtimes):
    """
    HAProxy hides the 500 from the client; the runtime's own counter has it.
    """
    serving.call(TrafficSet({"green": 50, "blue": 50}))
    runtimes["green"].fails_with = 500

    assert proxy.share(10) == {"blue": 10}

    assert serving.call(Measure()).slots["green"].errors == 1
    counters = proxy.control.servers()["green"].counters
    assert counters["answers_5xx"] == 0
    assert counters["redispatches"] > 0


def test_a_slot_without_metrics_is_incomplete(serving, proxy, runtimes):
    """
    A canary that answers nothing is not counted as free of errors.
    """
    serving.call(TrafficSet({"green": 100}))
    runtimes["green"].metrics = None

    counters = serving.call(Measure()).slots["green"]

    assert (counters.is_whole, counters.is_ready, counters.requests) == (False, False, 0)


@pytest.mark.parametrize("value", ["x", "NaN", "+Inf"])
def test_a_metric_that_is_no_number_is_incomplete(serving, proxy, runtimes, value):
    """
    The release does not end in an error of the host program: such a reading says nothing.
    """
    serving.call(TrafficSet({"green": 100}))
    sample = 'slipway_http_requests_total{route="/generate",code="200"}'
    runtimes["green"].metrics = f"{sample} {value}\n"

    assert not serving.call(Measure()).slots["green"].is_whole

    runtimes["green"].metrics = f"{sample} 7\n"  # negative control
    assert serving.call(Measure()).slots["green"].is_whole


def test_a_slot_without_haproxy_is_incomplete(serving, runtimes):
    """
    Without HAProxy's counters, the number of lost requests is unknown.
    """
    serving.system.proxy.is_running = False

    counters = serving.call(Measure()).slots["green"]

    assert (counters.is_whole, counters.is_ready, counters.requests) == (False, True, 6)


def test_a_host_without_releases_is_measured(host):
    """
    No counters and no error.
    """
    counters = host.call(Measure()).slots["blue"]

    assert (counters.is_whole, counters.requests, counters.unit) == (False, 0, "inactive")
