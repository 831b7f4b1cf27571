"""
Successful answers of all routes.
"""

import asyncio
import contextlib
import json

import pytest

from runtime.engines.base.protocol import FinishReason
from runtime.engines.base.sampling import SamplingParams
from tests.unit.runtime.serving import assert_is_error, events_of

pytestmark = pytest.mark.anyio


async def test_an_answer_names_its_release(runtime):
    """
    Text, version, counts and finish reason; version, slot and id in the headers.
    """
    runtime.engine.will("the sea")

    response = await runtime.generate(prompt="where", seed=3, temperature=0.5, top_p=0.9)

    assert response.status_code == 200
    assert response.json() == {
        "id": response.headers["x-request-id"],
        "version": "v1.2.0",
        "text": "the sea",
        "result": "the sea",
        "tokens": 7,
        "prompt_tokens": 5,
        "finish_reason": "stop",
    }
    assert response.headers["x-slipway-version"] == "v1.2.0"
    assert response.headers["x-slipway-slot"] == "blue"
    assert runtime.engine.asked == [
        {"prompt": "where", "timeout_s": 60.0, **vars(SamplingParams(9, 0.5, 0.9, 3))}
    ]
    assert runtime.counted("/generate", 200) == 1


async def test_a_stream_is_deltas_then_a_finish_reason_then_done(runtime):
    """
    The deltas together are the text; the last one has the finish reason.
    """
    runtime.engine.will("the sea", FinishReason.LENGTH)

    response = await runtime.generate(stream=True)

    *pieces, last, done = events_of(response)
    assert done == (None, "[DONE]")
    assert "".join(data["text"] for _, data in pieces) + last[1]["text"] == "the sea"
    assert not any("finish_reason" in data for _, data in pieces)
    assert (last[1]["finish_reason"], last[1]["tokens"]) == ("length", 7)
    assert {data["id"] for _, data in [*pieces, last]} == {response.headers["x-request-id"]}
    assert runtime.counted("/generate", 200) == 1


async def test_completions_have_the_shape_of_openai(runtime):
    """
    OpenAI's document and its defaults: 16 tokens at temperature 1.
    """
    runtime.engine.will("the sea")

    response = await runtime.http.post("/v1/completions", json={"model": "lab", "prompt": "x"})

    document = response.json()
    assert document["object"] == "text_completion"
    assert document["id"] == "cmpl-" + response.headers["x-request-id"]
    assert document["choices"] == [
        {"index": 0, "text": "the sea", "logprobs": None, "finish_reason": "stop"}
    ]
    assert document["usage"] == {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8}
    assert runtime.engine.asked[0]["max_tokens"] == 16
    assert runtime.engine.asked[0]["temperature"] == 1.0


async def test_completions_stream_choices(runtime):
    """
    Each event has one choice with the next text.
    """
    runtime.engine.will("the sea")
    body = {"prompt": "x", "stream": True}

    response = await runtime.http.post("/v1/completions", json=body)

    *pieces, done = events_of(response)
    assert "".join(data["choices"][0]["text"] for _, data in pieces) == "the sea"
    assert pieces[-1][1]["choices"][0]["finish_reason"] == "stop"
    assert done == (None, "[DONE]")


async def test_the_model_is_listed_and_another_is_not_found(runtime):
    """
    The error for an unknown model names the one that is served.
    """
    listed = (await runtime.http.get("/v1/models")).json()["data"]
    assert [(model["id"], model["version"]) for model in listed] == [("lab", "v1.2.0")]

    body = {"model": "other", "prompt": "x"}
    response = await runtime.http.post("/v1/completions", json=body)
    assert_is_error(response, 404, "model_not_found", retry_safe=False)


async def test_a_deadline_travels_with_the_request(runtime):
    """
    The engine gets the client's deadline, within the configured limit.
    """
    runtime.engine.will("a")
    runtime.engine.will("a")
    await runtime.generate(timeout_s=2.5)
    await runtime.generate(timeout_s=2000)
    assert [asked["timeout_s"] for asked in runtime.engine.asked] == [2.5, 60.0]


async def test_a_stop_string_ends_the_answer_and_frees_the_engine(runtime):
    """
    It is not part of the text, and the engine computes nothing after it.
    """
    runtime.engine.will("one. two. three", ending=None)
    runtime.engine.will("one. two. three", ending=None)

    whole = await runtime.generate(stop=". t")
    stream = await runtime.generate(stop=["#", ". t"], stream=True)

    assert (whole.json()["text"], whole.json()["finish_reason"]) == ("one", "stop")
    *pieces, _ = events_of(stream)
    assert "".join(data["text"] for _, data in pieces) == "one"
    assert runtime.engine.cancelled == [0, 1]


@contextlib.asynccontextmanager
async def leaving_client(runtime, body):
    """
    A request over plain ASGI; yields its answer, and the event that disconnects it.
    """
    gone, sent = asyncio.Event(), []
    content = json.dumps(body).encode()
    first = [{"type": "http.request", "body": content, "more_body": False}]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/generate",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }

    async def receive():
        if first:
            return first.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asking = asyncio.create_task(runtime.app(scope, receive, send))
    yield gone, sent
    async with asyncio.timeout(5):
        await asking


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the fake has no event for it
            await asyncio.sleep(0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["", "the s"])
async def test_a_client_that_disconnects_frees_the_engine(runtime, stream, text):
    """
    Queued, running or streaming: the request is cancelled and counted as 499.
    """
    runtime.engine.will(text, ending=None)
    body = {"prompt": "x", "stream": stream}

    async with leaving_client(runtime, body) as (gone, sent):
        await until(lambda: runtime.engine.asked)
        if stream and text:
            await until(lambda: len(sent) > 1)
        gone.set()

    assert runtime.engine.cancelled == [0]
    assert runtime.counted("/generate", 499) == 1


async def test_a_valid_request_id_is_kept(runtime):
    """
    Any other x-request-id is replaced.
    """
    for request_id, is_kept in (("abc-1.2_3", True), ("a b", False), ("x" * 200, False)):
        response = await runtime.http.get("/livez", headers={"x-request-id": request_id})
        assert (response.headers["x-request-id"] == request_id) is is_kept
