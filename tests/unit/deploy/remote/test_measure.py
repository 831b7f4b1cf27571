import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from deploy.remote import measure
from deploy.remote.measure import count, parse_metrics
from runtime import contract
from tests.unit.deploy.remote.fakes import BUNDLE


def exposed(answers, seconds=(0.02, 0.2)):
    """
    Return what a runtime exposes after *answers*: (route, code) and how many.
    """
    registry = CollectorRegistry()
    labels = ("version", "slot", "route", "code")
    counter = Counter(contract.REQUESTS_TOTAL, "x", labels, registry=registry)
    for (route, code), number in answers.items():
        counter.labels("v1", "green", route, code).inc(number)
    times = Histogram(contract.REQUEST_SECONDS, "x", labels[:3], registry=registry)
    for value in seconds:
        times.labels("v1", "green", "/generate").observe(value)
    times.labels("v1", "green", "/readyz").observe(1)
    return prometheus_client.generate_latest(registry).decode()


def test_names_are_those_of_the_runtime():
    """
    `runtime.contract` and the host tool mean the same metrics.
    """
    for name in ("REQUESTS_TOTAL", "REQUEST_SECONDS", "GENERATE_ROUTES", "READYZ", "METRICS"):
        assert getattr(measure, name) == getattr(contract, name)


def test_requests_and_errors_are_those_of_the_generating_routes():
    """
    Health checks count as nothing; 4xx is the client's.
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

    found = count(parse_metrics(text))

    assert (found["requests"], found["errors"]) == (99, 7)


def test_buckets_are_cumulative():
    """
    Each edge counts the requests that took at most so many seconds.
    """
    buckets = count(parse_metrics(exposed({})))["latency_buckets"]

    assert (buckets["0.01"], buckets["0.025"], buckets["0.25"], buckets["+Inf"]) == (0, 1, 2, 2)


def test_labels_may_hold_anything():
    """
    Quotes, commas, braces, line ends and backslashes in a value.
    """
    value = 'a"b,c}d\\e\nf'
    registry = CollectorRegistry()
    Counter("x", "x", ["route"], registry=registry).labels(value).inc()

    samples = parse_metrics(prometheus_client.generate_latest(registry).decode())

    assert samples[0].labels["route"] == value


@pytest.fixture
def serving(leased, runtimes):
    leased.stage(BUNDLE, "v1")
    leased.call("slot.start", slot="green", bundle=BUNDLE)
    runtimes["green"].metrics = exposed({("/generate", "200"): 5, ("/generate", "500"): 1})
    return leased


def test_a_slot_is_measured_without_a_lease(serving, proxy):
    """
    Read only: anybody may look, and nothing is written.
    """
    lines = len(serving.journal())
    serving.fence = None
    proxy.control.set_weight("green", 10)

    found = serving.call("measure")["slots"]["green"]

    assert (found["version"], found["bundle"], found["unit"]) == ("v1", BUNDLE, "active")
    assert (found["requests"], found["errors"], found["broken"]) == (6, 1, 0)
    assert (found["metrics"], found["ready"]) == (True, True)
    assert (found["weight"], found["sessions"]) == (0, 0)  # in maint
    assert len(serving.journal()) == lines


def test_a_request_that_the_other_slot_answered_is_an_error_of_the_first(serving, proxy, runtimes):
    """
    HAProxy hides the 500 from the client; the runtime's own count is what is measured.
    """
    serving.call("traffic.set", weights={"green": 50, "blue": 50})
    runtimes["green"].fails_with = 500

    assert proxy.share(10) == {"blue": 10}

    found = serving.call("measure")["slots"]["green"]
    assert found["haproxy"]["answers_5xx"] == 0
    assert found["haproxy"]["redispatches"] > 0


def test_a_slot_without_metrics_says_so_and_keeps_haproxys_numbers(serving, proxy, runtimes):
    """
    A canary that answers nothing is measured as such, not as free of errors.
    """
    serving.call("traffic.set", weights={"green": 100})
    assert proxy.share(5) == {"green": 5}
    runtimes["green"].metrics = None

    found = serving.call("measure")["slots"]["green"]

    assert (found["metrics"], found["ready"]) == (False, False)
    assert (found["requests"], found["errors"], found["latency_buckets"]) == (0, 0, {})
    assert found["haproxy"]["requests"] == 5


def test_a_host_where_nothing_runs_is_measured(host):
    """
    Before the first release: nothing, and no error.
    """
    found = host.call("measure")["slots"]["blue"]

    assert (found["bundle"], found["weight"], found["haproxy"]) == (None, None, None)
    assert (found["metrics"], found["requests"], found["unit"]) == (False, 0, "inactive")
