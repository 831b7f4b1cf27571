"""
Canaries that fail in ways that a count of 5xx does not show, on a booted host with live traffic.

Each is refused or taken back, and what its clients saw is bounded.  Their runtime is
bad_canary.py.  Two hosts: the second one gets the release after the first.
"""

import json
import shutil
import threading
import time
import urllib.error
import urllib.request

import pytest

from deploy.demo.load import LoadGenerator
from deploy.lab import lab
from deploy.wiring import checkout, lab_models
from tests.lab.conftest import say
from tests.lab.own_lab import booted_lab, fleet_document, inv, write_fleet_file
from tests.lab.test_hostile_slot import make_bundle

HOSTS = ("n1", "n2")
RATE_RPS = 40
MODES = {"v3.0.0": "close", "v3.1.0": "hang", "v3.2.0": "silent", "v3.3.0": "promoted"}
FLEET = "canaries"
TOKEN = "a-token-that-only-users-know"


@pytest.fixture(scope="module")
def config():
    with booted_lab("canaries", len(HOSTS)) as config:
        yield config


@pytest.fixture(scope="module")
def fleets(config, tmp_path_factory):
    """
    The paths of the fleet file, and of the same fleet with a token for its users.
    """
    document = fleet_document(
        config,
        HOSTS,
        service={"memory_max": "2GiB"},
        release={
            "waves": [1, "100%"],
            # Long enough for a canary, which gets 2 requests a second, to turn bad meanwhile.
            "canary": {"duration": "20s", "give_up_after": "60s", "min_requests": 20},
            "drain_timeout": "5s",
            "lease_ttl": "30s",
            "gates": {"http_request_error_rate": {"action": "revert"}},
        },
    )
    folder = tmp_path_factory.mktemp("canaries")
    closed = document | {
        "secrets": {"token": {"env": "SLIPWAY_LAB_TOKEN"}},
        "service": document["service"] | {"api_tokens": ["token"]},
    }
    # The name of the file is that of the fleet, which the bundles name.
    paths = folder / "open" / f"{FLEET}.yml", folder / "closed" / f"{FLEET}.yml"
    for path, content in zip(paths, (document, closed), strict=True):
        write_fleet_file(path, content)
    return paths


@pytest.fixture(scope="module")
def model():
    return lab_models.make_lab_model("good-v1", None, say)


@pytest.fixture(scope="module")
def served(fleets, model, tmp_path_factory):
    """
    v1.0.0 serves; the digests of all bundles by version.
    """
    fleet, _ = fleets
    tree = tmp_path_factory.mktemp("trees")
    inv(fleet, "provision", "--yes")
    modes = {"v1.0.0": None, "v2.0.0": None, **MODES}
    digests = {
        version: make_bundle(fleet, tree, model, version, mode, "bad_canary.py")
        for version, mode in modes.items()
    }
    inv(fleet, "release", "--version", digests["v1.0.0"], "--yes")
    yield digests
    for digest in digests.values():
        shutil.rmtree(checkout.store().get(digest, FLEET).directory)


@pytest.fixture
def users(config, served, model):
    """
    Live traffic on both hosts.
    """
    with LoadGenerator(
        [f"http://{config.address(name)}:8000" for name in HOSTS],
        prompts=json.loads((model / "live_prompts.json").read_text()),
        rate_rps=RATE_RPS,
        connections=64,
        max_tokens=4,
        timeout_s=5.0,
        networks=(config.subnet,),
    ) as generator:
        yield generator


def serving(fleet):
    document, _ = inv(fleet, "status")
    return [
        {s["version"]: s["weight_pct"] for s in host["slots"] if s["weight_pct"]}
        for host in document["hosts"]
    ]


def refused(fleet, served, version, *wanted):
    """
    Release *version*, which has to end with an exit code of *wanted*; return its document.
    """
    outcome, took_s = inv(fleet, "release", "--version", served[version], "--yes", wanted=wanted)
    say(f"{version}: {outcome['outcome']} after {took_s:.1f} s: {outcome['reason']}")
    assert serving(fleet) == [{"v1.0.0": 100}] * len(HOSTS)
    return outcome


def assert_lost(users, version, at_most):
    """
    Check what users saw: lost requests and answers with an error.
    """
    report = users.stop()
    seen = report.lost_requests + report.error_requests
    say(
        f"{version}: {report.requests} requests, {report.lost_requests} lost, "
        f"{report.error_requests} answered with an error"
    )
    assert seen <= at_most, report.losses
    return report


def test_a_good_release_passes(fleets, served, users):
    """
    Negative control: under the same traffic, with the same gates, both ways.
    """
    fleet, _ = fleets
    for version in ("v2.0.0", "v1.0.0"):
        inv(fleet, "release", "--version", served[version], "--allow-older", "--yes")
        assert serving(fleet) == [{version: 100}] * len(HOSTS)
    assert assert_lost(users, "good", 0).requests > 20 * RATE_RPS


def test_a_canary_that_closes_connections_is_refused(fleets, served, users):
    """
    HAProxy asks the stable slot, so that users see nothing of it.
    """
    fleet, _ = fleets
    outcome = refused(fleet, served, "v3.0.0", 8)
    assert outcome["evidence"]["waves"][-1]["gate"] == "http_request_error_rate"
    assert_lost(users, "closes connections", 0)


def test_a_canary_that_hangs_while_it_is_ready_is_refused(fleets, served, users):
    """
    Its share of one host's requests ends at the deadline of their clients.  Where HAProxy's ends
    first, the requests are the canary's errors, and it is taken back.
    """
    fleet, _ = fleets
    outcome = refused(fleet, served, "v3.1.0", 8, 10)
    if outcome["outcome"] == "reverted":
        assert outcome["evidence"]["waves"][-1]["gate"] == "http_request_error_rate"
    else:
        assert outcome["evidence"]["waves"][-1]["gate"] == "health"
        assert "no good answer of the canary" in outcome["reason"]
    # Hangs for 30 s at least: a tenth of the requests of one of two hosts, and those in flight.
    assert_lost(users, "hangs", 45 * RATE_RPS / 2 / 10)
    if outcome["outcome"] != "reverted":
        inv(fleet, "rollback", "--yes")


def test_a_canary_that_falls_silent_is_held(fleets, served, users):
    """
    HAProxy sends it nothing, because it fails HAProxy's checks; /readyz answers 200 to the host.
    """
    fleet, _ = fleets
    outcome = refused(fleet, served, "v3.2.0", 10)
    assert outcome["evidence"]["waves"][-1]["gate"] == "health"
    assert "of the stable slot" in outcome["reason"]
    assert_lost(users, "silent", 0)
    inv(fleet, "rollback", "--yes")


def test_a_release_that_fails_after_its_promotion_is_taken_back(fleets, served, users):
    """
    It is good with the share of a canary, and fails with all the traffic of its host.
    """
    fleet, _ = fleets
    outcome = refused(fleet, served, "v3.3.0", 8)
    first = outcome["evidence"]["waves"][0]
    assert first["verdict"] == "pass", "the canary of the first host"
    assert "the new slot" in outcome["reason"]
    # From the promotion of one host to its way back: the second host starts its slot meanwhile.
    assert_lost(users, "fails after its promotion", 60 * RATE_RPS / 2)


def flood(config, stop, counts):
    """
    Ask without a token until *stop*.
    """
    body = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
    while not stop.wait(0.01):
        for name in HOSTS:
            headers = {"content-type": "application/json"}
            url = f"http://{config.address(name)}:8000/generate"
            request = urllib.request.Request(url, body, headers)
            try:
                urllib.request.urlopen(request, timeout=5).close()
            except urllib.error.HTTPError as error:
                counts.append(error.code)


def test_a_canary_that_only_strangers_use_is_held(config, fleets, served, monkeypatch):
    """
    Their 401s neither pass it nor revert it: too few requests say something.
    """
    monkeypatch.setenv("SLIPWAY_LAB_TOKEN", TOKEN)
    _, fleet = fleets
    inv(fleet, "provision", "--yes")
    for name in HOSTS:
        lab.inside(name, ["systemctl", "restart", "slipway-runtime@*"], config=config)
    time.sleep(20)
    stop, counts = threading.Event(), []
    strangers = threading.Thread(target=flood, args=(config, stop, counts))
    strangers.start()
    try:
        outcome = refused(fleet, served, "v2.0.0", 10)
    finally:
        stop.set()
        strangers.join()
    wave = outcome["evidence"]["waves"][-1]
    assert (wave["gate"], wave["requests"], wave["errors"]) == ("min_requests", 0, 0)
    assert len(counts) > 500
    assert set(counts) == {401}
