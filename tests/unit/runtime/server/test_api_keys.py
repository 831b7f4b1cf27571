"""
Requests with API keys: who is let in, what a key may spend, what is counted.
"""

import asyncio
import json
import logging

import pytest

from runtime.engines.base.protocol import FinishReason, Share
from runtime.server.key_watch import KeyWatch
from runtime.server.metrics import MAX_KEY_NAMES
from tests.unit.runtime.server.test_grammars import HeldChecker, settle
from tests.unit.runtime.server.test_key_file import digest_of
from tests.unit.runtime.serving import VOCABULARY, Runtime, assert_is_error

pytestmark = pytest.mark.anyio
WEB, ANN, OLD = "sk-slipway-web", "sk-slipway-ann", "sk-slipway-old"


def key(name, token, expires_at=None, **more):
    return {
        "name": name,
        "secrets": [{"sha256": digest_of(token.encode()), "expires_at": expires_at}],
        **more,
    }


class Keys:
    """
    A file of keys and the runtime that reads it.
    """

    def __init__(self, tmp_path, **config):
        self.path = tmp_path / "keys.json"
        self.version = 0
        self.set()
        self.watch = KeyWatch(self.path, tmp_path / "host_key")
        self.runtime = Runtime(keys=self.watch, **config)

    def set(self, *keys):
        self.version += 1
        draft = self.path.with_name("draft")
        draft.write_text(json.dumps({"format": 1, "version": self.version, "keys": keys}))
        draft.replace(self.path)
        if self.version > 1:
            self.watch.look()

    async def ask(self, token=WEB, text="", route="/generate", headers=None, **body):
        if text is not None:
            self.runtime.engine.will(text or "abc")
        given = {"authorization": f"Bearer {token}"} if token else {}
        body = {"prompt": "ask", "max_tokens": 9} | body
        return await self.runtime.http.post(route, json=body, headers=given | (headers or {}))


@pytest.fixture
def keys(tmp_path):
    return Keys(tmp_path)


async def test_a_key_is_accepted_from_the_moment_that_the_file_has_it(keys):
    """
    And refused from the moment that it has it no more.
    """
    assert_is_error(await keys.ask(text=None), 401, "invalid_api_key", retry_safe=False)
    keys.set(key("web", WEB))
    assert (await keys.ask()).status_code == 200
    for token in (None, "", WEB + "x", WEB[:-1]):
        response = await keys.ask(token, text=None)
        assert_is_error(response, 401, "invalid_api_key", retry_safe=False)
    keys.set(key("web", WEB) | {"secrets": []})
    assert_is_error(await keys.ask(text=None), 401, "invalid_api_key", retry_safe=False)


async def test_without_a_file_everybody_is_let_in(tmp_path):
    runtime = Runtime(keys=KeyWatch(tmp_path / "none"))
    runtime.engine.will("abc")
    assert (await runtime.generate()).status_code == 200


async def test_tokens_of_the_environment_and_keys_of_the_file_live_together(tmp_path):
    """
    A rollback to a release that knows only the former keeps serving their holders.
    """
    both = Keys(tmp_path, tokens=("old-token",))
    both.set(key("web", WEB))
    assert (await both.ask("old-token")).status_code == 200
    assert (await both.ask(WEB)).status_code == 200
    assert (await both.ask("other", text=None)).status_code == 401


async def test_an_expired_key_says_so(keys):
    keys.set(key("web", WEB, expires_at=1), key("ann", ANN, expires_at=2**39))
    response = await keys.ask(text=None)
    assert_is_error(response, 401, "invalid_api_key", retry_safe=False)
    assert "expired" in response.json()["error"]["message"]
    assert (await keys.ask(ANN)).status_code == 200


async def test_both_tokens_of_a_rotation_are_accepted_during_the_overlap(keys):
    new = {"sha256": digest_of(WEB.encode())}
    old = {"sha256": digest_of(OLD.encode()), "expires_at": 2**39}
    keys.set({"name": "web", "secrets": [new, old]})
    assert (await keys.ask(WEB)).status_code == 200
    assert (await keys.ask(OLD)).status_code == 200
    keys.set({"name": "web", "secrets": [new, old | {"expires_at": 1}]})
    assert (await keys.ask(OLD, text=None)).status_code == 401


async def test_a_key_uses_the_models_that_it_may(keys):
    keys.set(key("web", WEB, models=["other"]), key("ann", ANN, models=["lab", "other"]))
    response = await keys.ask(text=None)
    assert_is_error(response, 403, "model_not_found", retry_safe=False)
    assert response.json()["error"]["param"] == "model"
    assert (await keys.ask(ANN)).status_code == 200


async def test_requests_beyond_the_limit_are_refused_with_a_time_to_wait(keys):
    """
    OpenAI's headers are on every answer of a key with a limit; another key is not touched.
    """
    keys.set(key("web", WEB, requests_per_minute=2), key("ann", ANN))
    first, _ = await keys.ask(), await keys.ask()
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"

    refused = await keys.ask(text=None)
    assert_is_error(refused, 429, "rate_limit_exceeded", retry_safe=True)
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-ratelimit-reset-requests"].endswith("s")

    other = await keys.ask(ANN)
    assert other.status_code == 200
    assert "x-ratelimit-limit-requests" not in other.headers


async def test_tokens_are_reserved_and_what_was_not_generated_is_given_back(keys):
    """
    3 of the prompt and 90 asked for; 3 are generated.
    """
    keys.set(key("web", WEB, tokens_per_minute=100))
    response = await keys.ask(max_tokens=90)
    assert response.headers["x-ratelimit-remaining-tokens"] == "7"
    after = await keys.ask(max_tokens=1)
    assert int(after.headers["x-ratelimit-remaining-tokens"]) in range(90, 92)

    refused = await keys.ask(text=None, max_tokens=95)
    assert_is_error(refused, 429, "rate_limit_exceeded", retry_safe=True)
    assert keys.runtime.serving.generator.promised == 0


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ["one", "two"], "max_tokens": 60},
        {"prompt": ["x" * 60, "y" * 60], "max_tokens": 1},
        {"prompt": ["one"] * 8, "max_tokens": 5, "n": 4},
    ],
)
async def test_prompts_of_one_request_are_taken_as_one(keys, body):
    """
    Together they are larger than the limit: a full bucket admits them, as one prompt of that size.
    """
    keys.set(key("web", WEB, tokens_per_minute=100))
    count = len(body["prompt"]) * body.get("n", 1)
    for _ in range(count):
        keys.runtime.engine.will("ab")
    headers = {"authorization": f"Bearer {WEB}"}
    response = await keys.runtime.http.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["x-ratelimit-remaining-tokens"] == "0"

    refused = await keys.runtime.http.post("/v1/completions", json=body, headers=headers)
    assert_is_error(refused, 429, "rate_limit_exceeded", retry_safe=True)
    used = sum(map(len, body["prompt"])) + 2 * count
    assert abs(int(refused.headers["x-ratelimit-remaining-tokens"]) - max(100 - used, 0)) <= 1


async def test_a_request_that_is_refused_for_its_tokens_costs_none(keys):
    keys.set(key("web", WEB, tokens_per_minute=100))
    await keys.ask(max_tokens=9)
    for _ in range(5):
        assert (await keys.ask(text=None, max_tokens=96)).status_code == 429
    assert (await keys.ask(max_tokens=70)).status_code == 200


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("completions", {"logit_bias": {str(VOCABULARY): 1}}),
        ("completions", {"min_tokens": 9, "max_tokens": 3}),
        ("completions", {"structured_outputs": {"regex": "<refuse>"}}),
        ("completions", {"prompt": ["one", "two", [VOCABULARY]]}),
        ("completions", {"prompt": "x" * 200}),
        ("embeddings", {"input": ["a", [VOCABULARY]]}),
        ("embeddings", {"input": "abc", "dimensions": 7}),
    ],
)
async def test_a_request_that_is_refused_is_not_charged(keys, route, body):
    """
    Whatever refuses it, and whichever of its prompts; the answer already says so.
    """
    keys.runtime.serving.generator.make_embeddings(3, [])
    keys.set(key("web", WEB, tokens_per_minute=100))
    headers = {"authorization": f"Bearer {WEB}"}
    body = ({"prompt": "ask"} if route == "completions" else {}) | body
    response = await keys.runtime.http.post(f"/v1/{route}", json=body, headers=headers)
    assert response.status_code == 400, response.text
    assert response.headers["x-ratelimit-remaining-tokens"] == "100"
    assert (await keys.ask(max_tokens=97)).status_code == 200
    assert keys.runtime.used("web") == 3


async def test_a_key_without_tokens_gets_no_grammar_checked(keys):
    """
    Checks cost time: they come after the limits.
    """
    keys.set(key("web", WEB, tokens_per_minute=5))
    body = {"structured_outputs": {"regex": "<refuse>"}, "max_tokens": 6}
    assert (await keys.ask(text=None, route="/v1/completions", **body)).status_code == 400
    assert (await keys.ask(max_tokens=2)).status_code == 200
    assert (await keys.ask(text=None, route="/v1/completions", **body)).status_code == 429


async def test_a_client_that_leaves_before_the_engine_has_its_request_is_not_charged(tmp_path):
    checker = HeldChecker()
    keys = Keys(tmp_path, checker=checker)
    keys.set(key("web", WEB, tokens_per_minute=100))
    body = {"structured_outputs": {"regex": "a"}, "max_tokens": 60}
    asking = asyncio.create_task(keys.ask(text=None, route="/v1/completions", **body))
    await settle()
    asking.cancel()
    await asyncio.wait([asking])
    checker.go_on()
    assert (await keys.ask(max_tokens=97)).status_code == 200


async def test_what_a_key_used_is_counted_and_logged(tmp_path, caplog):
    keys = Keys(tmp_path, request_log=True)
    keys.set(key("web", WEB))
    with caplog.at_level(logging.INFO, "runtime.middleware"):
        await keys.ask(text="four")
        await keys.ask(text="no", max_tokens=2)
    metrics = keys.runtime.metrics.render().decode()
    labels = 'key="web",slot="blue",version="v1.2.0"'
    assert f'slipway_key_requests_total{{code="200",{labels}}} 2.0' in metrics
    assert f"slipway_key_prompt_tokens_total{{{labels}}} 6.0" in metrics
    assert f"slipway_key_generated_tokens_total{{{labels}}} 6.0" in metrics
    [line, _] = [r.getMessage() for r in caplog.records if "request.answered" in r.getMessage()]
    assert "key=web" in line
    assert "prompt_tokens=3 cached_tokens=0 generated_tokens=4" in line
    assert WEB not in caplog.text
    assert "ask" not in line  # never content


@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_the_cache_has_of_a_prompt_counts_once(keys, is_stream):
    """
    As the prompt does, whatever n is: the later answers find all of it in the cache.
    """
    keys.set(key("web", WEB))
    for cached in (1, 3, 3, 0, 3, 3):
        keys.runtime.engine.will("abc", cached_tokens=cached)
    body = {"prompt": ["one", "two"], "n": 3, "stream": is_stream}
    headers = {"authorization": f"Bearer {WEB}"}
    response = await keys.runtime.http.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    assert (keys.runtime.used("web"), keys.runtime.cached("web")) == (6, 1)


async def test_requests_are_not_logged_unless_the_fleet_asks_for_it(keys, caplog):
    keys.set(key("web", WEB))
    with caplog.at_level(logging.INFO, "runtime.middleware"):
        await keys.ask()
    assert "request.answered" not in caplog.text


async def test_the_label_of_the_metrics_is_bounded(keys):
    names = [f"k{number:03d}" for number in range(MAX_KEY_NAMES + 20)]
    keys.set(*(key(name, f"token-{name}") for name in names))
    for name in names:
        await keys.ask(f"token-{name}", route="/tokenize", text=None)
    lines = keys.runtime.metrics.render().decode().splitlines()
    found = {line for line in lines if line.startswith("slipway_key_requests_total{")}
    assert len(found) == MAX_KEY_NAMES + 1
    assert any('key="other"' in line and line.endswith(" 20.0") for line in found)


async def test_the_engine_is_told_whose_request_it_is(keys):
    keys.set(key("web", WEB, weight=3, priority=1, concurrency=2))
    await keys.ask()
    assert keys.runtime.engine.shares == [Share("web", 3, 1, 2)]


ROUTES = {
    "/generate": {"prompt": "ask"},
    "/v1/completions": {"prompt": ["one", "two"], "n": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "ask"}]},
    "/v1/embeddings": {"input": ["one", "two", "three", "four"]},
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("priority", [None, 0, 7, -100, 100])
async def test_the_engine_is_told_the_priority_of_a_request(keys, route, priority):
    """
    Of each of its prompts, answers and texts, with the key whose it is.
    """
    keys.runtime.serving.generator.make_embeddings(3, [])
    keys.set(key("web", WEB, weight=2))
    body = ROUTES[route] | ({} if priority is None else {"priority": priority})
    count = 1 if route in ("/generate", "/v1/chat/completions") else 4
    for _ in range(count if route != "/v1/embeddings" else 0):
        keys.runtime.engine.will("abc")
    headers = {"authorization": f"Bearer {WEB}"}
    response = await keys.runtime.http.post(route, json=body, headers=headers)
    assert response.status_code == 200, response.text
    assert keys.runtime.engine.priorities == [priority or 0] * count
    assert keys.runtime.engine.shares == [Share("web", 2)] * count


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("priority", [101, -101, 1.5, "1", True, 10**30])
async def test_a_priority_out_of_range_is_refused_by_name(keys, route, priority):
    keys.runtime.serving.generator.make_embeddings(3, [])
    keys.set(key("web", WEB))
    headers = {"authorization": f"Bearer {WEB}"}
    body = ROUTES[route] | {"priority": priority}
    response = await keys.runtime.http.post(route, json=body, headers=headers)
    assert response.status_code == (422 if route == "/generate" else 400)
    assert response.json()["error"]["param"] == "priority"


async def test_an_engine_without_priorities_refuses_all_but_0(keys):
    keys.runtime.engine.has_priorities = False
    keys.set(key("web", WEB))
    response = await keys.ask(text=None, priority=1)
    assert_is_error(response, 400, "not_supported", retry_safe=False)
    assert response.json()["error"]["param"] == "priority"
    assert (await keys.ask(priority=0)).status_code == 200


async def test_the_warm_up_needs_no_key(keys):
    """
    Nor does it have one that a client could send: its token is of this process alone.
    """
    token = keys.runtime.serving.own_token.get_secret_value()
    keys.runtime.engine.will("abc")
    headers = {"authorization": f"Bearer {token}"}
    assert (await keys.runtime.http.get("/healthz?deep=1", headers=headers)).status_code == 200
    assert (await keys.runtime.http.get("/healthz?deep=1")).status_code == 401


async def test_the_host_program_has_a_token_of_its_own(tmp_path):
    (tmp_path / "host_key").write_text(digest_of(b"host-token"))
    keys = Keys(tmp_path)
    assert (await keys.ask("host-token")).status_code == 200
    assert (await keys.ask(digest_of(b"host-token"), text=None)).status_code == 401


@pytest.mark.parametrize(
    ("headers", "timeout_s"),
    [
        ({"x-request-timeout-s": "2.5"}, 2.5),
        ({"x-request-timeout-s": "9999"}, 60),
        ({"x-stainless-read-timeout": "3"}, 3),
        ({"x-stainless-timeout": "4"}, 4),
        ({"x-stainless-read-timeout": "never"}, 60),
        ({"x-request-timeout-s": "5", "x-stainless-timeout": "4"}, 5),
        ({}, 60),
    ],
)
async def test_a_deadline_may_come_in_a_header(keys, headers, timeout_s):
    keys.set(key("web", WEB))
    await keys.ask(headers=headers)
    assert keys.runtime.engine.asked[0]["timeout_s"] == timeout_s


async def test_the_earlier_of_two_deadlines_counts(keys):
    keys.set(key("web", WEB))
    await keys.ask(headers={"x-request-timeout-s": "5"}, timeout_s=3)
    await keys.ask(headers={"x-request-timeout-s": "2"}, timeout_s=3)
    assert [asked["timeout_s"] for asked in keys.runtime.engine.asked] == [3, 2]


async def test_a_late_answer_to_a_deadline_in_a_header_is_the_clients_doing(keys):
    keys.set(key("web", WEB))
    keys.runtime.engine.will(ending=FinishReason.EXPIRED)
    response = await keys.ask(text=None, headers={"x-request-timeout-s": "2"})
    assert_is_error(response, 504, "deadline_exceeded", retry_safe=False)
    assert keys.runtime.excused("client_deadline") == 1


@pytest.mark.parametrize("text", ["soon", "-1", "0", "nan", "inf", ""])
async def test_a_wrong_deadline_is_named(keys, text):
    keys.set(key("web", WEB))
    response = await keys.ask(text=None, headers={"x-request-timeout-s": text})
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert response.json()["error"]["param"] == "x-request-timeout-s"


async def test_openais_timeout_does_not_cut_a_stream(keys):
    """
    There it limits the silence between two events.
    """
    keys.set(key("web", WEB))
    await keys.ask(headers={"x-stainless-read-timeout": "3"}, stream=True)
    assert keys.runtime.engine.asked[0]["timeout_s"] == 60


async def test_a_flood_of_one_key_leaves_places_to_the_others(tmp_path):
    """
    8 of 9 places, those of the batch included; without keys all of them.
    """
    keys = Keys(tmp_path, max_batch_requests=4, max_queue_requests=5)
    keys.set(key("web", WEB), key("ann", ANN))
    engine = keys.runtime.engine
    flood = []
    for _ in range(8):
        engine.will(ending=None)
        headers = {"authorization": f"Bearer {WEB}"}
        body = {"prompt": "ask", "max_tokens": 9}
        flood.append(
            asyncio.create_task(keys.runtime.http.post("/generate", json=body, headers=headers))
        )
    for _ in range(1000):
        await asyncio.sleep(0)
    assert len(engine.running) == 8

    refused = await keys.ask(WEB, text=None)
    assert_is_error(refused, 503, "queue_full", retry_safe=True)
    assert "retry-after" in refused.headers
    assert (await keys.ask(ANN)).status_code == 200

    for id, answer in list(engine.running.items()):
        engine.end(id, answer, FinishReason.STOP)
    assert [(await task).status_code for task in flood] == [200] * 8
    assert (await keys.ask(WEB)).status_code == 200


@pytest.mark.parametrize(
    ("concurrency", "limits", "excused"),
    [(None, True, 0), (2, True, 0), (1, True, 1), (1, False, 0)],
)
async def test_a_request_that_waits_for_its_own_key_is_the_clients_doing(
    keys, concurrency, limits, excused
):
    """
    If it is late before its first token: a key that floods beyond its --concurrency must not stop
    a release by its own 504s.  An engine that does not heed it has no such excuse.
    """
    keys.set(key("web", WEB, concurrency=concurrency))
    engine = keys.runtime.engine
    engine.limits_keys = limits
    engine.will("abc", ending=None)
    running = asyncio.create_task(keys.ask(text=None))
    await settle()
    engine.will(ending=FinishReason.EXPIRED)
    late = await keys.ask(text=None)
    assert_is_error(late, 504, "deadline_exceeded", retry_safe=False)
    assert keys.runtime.excused("queue_full") == excused

    engine.will("a", FinishReason.EXPIRED)
    await keys.ask(text=None)
    assert keys.runtime.excused("queue_full") == excused, "its first token is there"
    [(id, answer)] = engine.running.items()
    engine.end(id, answer, FinishReason.STOP)
    assert (await running).status_code == 200
