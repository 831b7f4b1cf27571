"""
Health checks, proxies and browsers; tokens; metrics.
"""

import json
import re

import pytest

from runtime.engines.base.protocol import EngineReport, FinishReason
from runtime.server.lifecycle import Phase
from runtime.server.middleware import ROUTES
from tests.unit.runtime.fakes import FakeEngine
from tests.unit.runtime.server.raw_client import served
from tests.unit.runtime.serving import TO, Runtime, assert_is_error

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("phase", [phase for phase in TO if phase is not Phase.READY])
async def test_only_a_ready_runtime_takes_requests(phase):
    """
    In every other phase /readyz and requests get a 503 with the reason; /livez is 200.
    """
    runtime = Runtime(phase)

    ready = await runtime.http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["phase"] == phase
    assert ready.json()["reason"]
    assert_is_error(await runtime.generate(), 503, "not_ready", retry_safe=True)
    assert (await runtime.generate()).headers["retry-after"] == "1"
    assert (await runtime.http.get("/livez")).status_code == 200


async def test_a_draining_runtime_closes_its_connections():
    """
    Each answer ends its connection, so that the proxy uses another server.
    """
    draining, ready = Runtime(Phase.DRAINING), Runtime()
    assert (await draining.http.get("/readyz")).headers["connection"] == "close"
    assert "connection" not in (await ready.http.get("/readyz")).headers


async def test_a_ready_runtime_answers_readyz(runtime):
    """
    200 with the version.
    """
    response = await runtime.http.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {"ready": True, "phase": "ready", "version": "v1.2.0"}


async def test_a_deep_check_generates_and_may_warm_up():
    """
    deep=1 generates a real answer, also while warming up; an empty answer fails.
    """
    runtime = Runtime(Phase.WARMING)
    runtime.engine.will("here")
    runtime.engine.will("", FinishReason.NONFINITE)
    runtime.engine.will("")

    assert (await runtime.http.get("/healthz")).status_code == 200
    response = await runtime.http.get("/healthz?deep=1")
    assert (response.status_code, response.json()["tokens"]) == (200, 4)
    assert runtime.engine.asked[0]["prompt"] == "are you there"

    response = await runtime.http.get("/healthz?deep=1")
    assert_is_error(response, 500, "engine_nonfinite", retry_safe=True)
    response = await runtime.http.get("/healthz?deep=1")
    assert_is_error(response, 500, "no_answer", retry_safe=True)

    response = await Runtime(Phase.DRAINING).http.get("/healthz?deep=1")
    assert_is_error(response, 503, "not_ready", retry_safe=True)


async def test_tokens_guard_generation_but_not_health_checks():
    """
    Any configured token is accepted; health and metrics need none.
    """
    runtime = Runtime(tokens=("one", "two"))
    for path in ("/v1/models", "/healthz?deep=1"):
        assert_is_error(await runtime.http.get(path), 401, "invalid_api_key", retry_safe=False)
    response = await runtime.generate()
    assert_is_error(response, 401, "invalid_api_key", retry_safe=False)
    assert response.headers["www-authenticate"] == "Bearer"
    for header in ("Bearer three", "Basic two", "two", "Bearer"):
        response = await runtime.http.get("/v1/models", headers={"authorization": header})
        assert response.status_code == 401, header
    for path in ("/livez", "/readyz", "/healthz", "/metrics"):
        assert (await runtime.http.get(path)).status_code == 200, path
    response = await runtime.http.get("/v1/models", headers={"authorization": "Bearer two"})
    assert response.status_code == 200


async def test_cors_allows_the_configured_origins():
    """
    The preflight needs no token, and the version header is exposed.
    """
    runtime = Runtime(cors_origins=("https://a.example",), tokens=("one",))
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}

    response = await runtime.http.options("/generate", headers=asked)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://a.example"

    runtime.engine.will("a")
    headers = {"origin": "https://a.example", "authorization": "Bearer one"}
    response = await runtime.http.post("/generate", json={"prompt": "x"}, headers=headers)
    assert response.headers["access-control-allow-origin"] == "https://a.example"
    assert "x-slipway-version" in response.headers["access-control-expose-headers"]

    asked |= {"access-control-request-headers": "authorization,x-stainless-retry-count"}
    response = await runtime.http.options("/v1/chat/completions", headers=asked)
    assert "x-stainless-retry-count" in response.headers["access-control-allow-headers"]

    strange = asked | {"origin": "https://b.example"}
    response = await runtime.http.options("/generate", headers=strange)
    assert "access-control-allow-origin" not in response.headers


async def test_errors_have_the_headers_of_cors(monkeypatch):
    """
    Refusals before the route, of the route, and bugs.
    """
    runtime = Runtime(cors_origins=("https://a.example",), tokens=("one",))
    origin = {"origin": "https://a.example"}
    known = origin | {"authorization": "Bearer one"}
    monkeypatch.setattr(FakeEngine, "submit", lambda *_, **__: 1 / 0)
    for headers, body, status in (
        (origin, {}, 401),
        (known | {f"x-{n}": "y" for n in range(100)}, {}, 431),
        (known, {}, 422),
        (known, {"prompt": "x"}, 500),
    ):
        response = await runtime.http.post("/generate", json=body, headers=headers)
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == "https://a.example"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/metrics"])
async def test_probes_answer_head(path):
    """
    Load balancers check with it; over the socket it has no body.
    """
    async with served() as server, server.client() as client:
        head = f"HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        await client.send(head.encode())
        answer = await client.reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"\r\n\r\n")


async def test_the_description_has_every_route(runtime):
    """
    And every body with its fields; the page loads nothing.
    """
    document = (await runtime.http.get("/openapi.json")).json()
    assert document["paths"].keys() == ROUTES
    text = json.dumps(document)
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert names <= document["components"]["schemas"].keys()
    chat = document["components"]["schemas"]["ChatBody"]
    assert chat["additionalProperties"] is False
    assert chat["properties"]["verbosity"]["enum"] == [None, "medium"]
    response = await runtime.http.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert "/v1/chat/completions" in response.text
    assert not re.search(r"<script|src=|href=|http:", response.text)


async def test_the_description_needs_no_token():
    """
    All that computes does.
    """
    runtime = Runtime(tokens=("one",))
    assert (await runtime.http.get("/openapi.json")).status_code == 200
    assert (await runtime.http.get("/docs")).status_code == 200
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        assert_is_error(await runtime.http.post(path), 401, "invalid_api_key", retry_safe=False)
    response = await runtime.http.get("/v1/models/lab")
    assert_is_error(response, 401, "invalid_api_key", retry_safe=False)


async def test_metrics_have_the_names_of_the_contract(runtime):
    """
    Every series has version and slot; unknown paths share one label.
    """
    runtime.engine.will("a")
    await runtime.generate()
    await runtime.http.get("/one")
    await runtime.http.get("/two")

    response = await runtime.http.get("/metrics")

    lines = [line for line in response.text.splitlines() if not line.startswith("#")]
    assert all('version="v1.2.0"' in line and 'slot="blue"' in line for line in lines)
    for name in (
        "slipway_http_requests_total",
        "slipway_http_request_seconds_bucket",
        "slipway_first_token_seconds_count",
        "slipway_generated_tokens_total",
        "slipway_queue_requests",
        "slipway_batch_requests_bucket",
        "slipway_prompt_tokens_total",
        "slipway_cached_tokens_total",
        "slipway_kv_pages_used",
        "slipway_kv_pages{",
        "slipway_memory_splits_total",
    ):
        assert any(line.startswith(name) for line in lines), name
    assert runtime.counted("other", 404) == 2


async def test_metrics_show_the_reports_of_the_engine(runtime):
    """
    Counters add up, gauges have the last value; a report may omit all of them.
    """
    numbers = {"prompt_tokens": 5, "cached_tokens": 16, "pages": 63, "oom_splits": 2}
    for used in (7, 4):
        runtime.metrics.engine(EngineReport([(1, 42)], [], 1, 0, 1, 1, pages_used=used, **numbers))
    assert (await engine_metrics(runtime)) == {
        "prompt_tokens_total": 10,
        "cached_tokens_total": 32,
        "kv_pages_used": 4,
        "kv_pages": 63,
        "memory_splits_total": 4,
    }

    other = Runtime()
    other.metrics.engine(EngineReport([(1, 42)], [], 1, 0, 1, 1))
    assert set((await engine_metrics(other)).values()) == {0}


async def engine_metrics(runtime):
    """
    Return the metrics of prompts, pages and memory.
    """
    lines = (await runtime.http.get("/metrics")).text.splitlines()
    own = '{slot="blue",version="v1.2.0"}'
    samples = [line.removeprefix("slipway_").split(own) for line in lines if own in line]
    return {
        name: float(value)
        for name, value in samples
        if name.startswith(("prompt_", "cached_", "kv_", "memory_"))
    }
