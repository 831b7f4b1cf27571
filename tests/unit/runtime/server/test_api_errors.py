"""
Error answers of all routes: one document, one answer.
"""

import pytest

from runtime.contract import MAX_BODY_BYTES
from runtime.engines.base.protocol import FinishReason
from tests.unit.runtime.fakes import FakeEngine
from tests.unit.runtime.serving import assert_is_error, events_of

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_token": 3}, "max_token: Extra"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"seed": -1}, "seed"),
    ],
)
async def test_a_wrong_body_is_422_and_names_the_key(runtime, body, words):
    """
    Unknown keys are errors, too.
    """
    response = await runtime.generate(**body)
    assert_is_error(response, 422, "invalid_request", retry_safe=False)
    error = response.json()["error"]
    assert words in error["message"]
    assert error["param"].partition("[")[0] == next(iter(body))
    assert runtime.counted("/generate", 422) == 1


async def test_error_messages_do_not_repeat_the_input(runtime):
    """
    Messages are logged, and prompts must not be.
    """
    response = await runtime.generate(prompt=["a secret"])
    assert "secret" not in response.text


async def test_all_errors_have_the_same_document(runtime):
    """
    400, 404, 405 and 413.
    """
    send = runtime.http.request
    as_json = {"content-type": "application/json"}
    response = await send("POST", "/generate", content=b"{", headers=as_json)
    assert_is_error(response, 400, "invalid_json", retry_safe=False)
    assert_is_error(await send("GET", "/nothing"), 404, "not_found", retry_safe=False)
    response = await send("GET", "/generate")
    assert_is_error(response, 405, "method_not_allowed", retry_safe=False)
    assert response.headers["allow"] == "POST"
    response = await runtime.generate(prompt="x" * 50, max_tokens=51)
    assert_is_error(response, 400, "context_length_exceeded", retry_safe=False)
    response = await runtime.generate(prompt="x" * (MAX_BODY_BYTES + 1))
    assert_is_error(response, 413, "body_too_large", retry_safe=False)


async def test_a_body_of_another_type_names_json(runtime):
    """
    `curl -d` without a header sends a form.
    """
    response = await runtime.http.post("/generate", data={"prompt": "x"})
    assert_is_error(response, 422, "invalid_request", retry_safe=False)
    assert "content-type: application/json" in response.json()["error"]["message"]


async def test_a_body_of_unknown_length_is_bounded_too(runtime):
    """
    Without content-length, the bytes are counted on arrival.
    """

    async def body():
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    as_json = {"content-type": "application/json"}
    response = await runtime.http.post("/generate", content=body(), headers=as_json)
    assert_is_error(response, 413, "body_too_large", retry_safe=False)


@pytest.mark.parametrize(
    ("ending", "status", "code"),
    [
        (FinishReason.NONFINITE, 500, "engine_nonfinite"),
        (FinishReason.ERROR, 500, "engine_error"),
        (FinishReason.DIED, 502, "engine_died"),
        (FinishReason.EXPIRED, 504, "deadline_exceeded"),
        (FinishReason.ABANDONED, 503, "shutting_down"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_failure_is_an_answer(runtime, ending, status, code, stream):
    """
    Before its first token a stream fails like a plain answer.
    """
    runtime.engine.will("", ending, detail="details")

    response = await runtime.generate(stream=stream)

    is_final = ending in (FinishReason.DIED, FinishReason.EXPIRED)
    assert_is_error(response, status, code, retry_safe=not is_final)
    assert ("x-should-retry" in response.headers) == is_final
    assert "details" in response.json()["error"]["message"]
    assert runtime.counted("/generate", status) == 1
    assert b"slipway_http_excused_total{" not in runtime.metrics.render()


async def test_a_failed_stream_ends_with_an_error_event(runtime):
    """
    The status line is already sent: no [DONE] follows, and the failure is counted.
    """
    runtime.engine.will("the s", FinishReason.NONFINITE)

    response = await runtime.generate(stream=True)

    assert response.status_code == 200
    *pieces, (name, data) = events_of(response)
    assert "".join(piece["text"] for _, piece in pieces) == "the s"
    assert name == "error"
    assert data["error"]["code"] == "engine_nonfinite"
    assert data["error"]["retry_safe"] is False  # part of the answer is out
    assert runtime.counted("/generate", 500) == 1
    assert runtime.counted("/generate", 200) == 0


async def test_a_full_server_gives_retry_after(runtime):
    """
    503 with Retry-After; the request does not reach the engine.
    """
    runtime.engine.busy = 32 + 256

    response = await runtime.generate()

    assert_is_error(response, 503, "queue_full", retry_safe=True)
    assert int(response.headers["retry-after"]) >= 1
    assert runtime.engine.asked == []
    assert runtime.excused("queue_full") == 1


@pytest.mark.parametrize("text", ["", "the s"], ids=["before the first token", "later"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_that_the_client_set_is_excused(runtime, stream, text):
    """
    Unless it is no shorter than that of the runtime; another failure in its time is none either.
    """
    runtime.engine.will(text, FinishReason.EXPIRED)
    await runtime.generate(stream=stream, timeout_s=0.5)
    assert runtime.counted("/generate", 504) == runtime.excused("client_deadline") == 1

    runtime.engine.will(text, FinishReason.EXPIRED)
    await runtime.generate(stream=stream, timeout_s=3600)
    runtime.engine.will(text, FinishReason.ERROR)
    await runtime.generate(stream=stream, timeout_s=0.5)
    assert runtime.excused("client_deadline") == 1


async def test_an_engine_that_misses_a_deadline_is_not_waited_for(runtime, monkeypatch):
    """
    A silent engine also leads to one answer: 504, and the request is cancelled.
    """
    monkeypatch.setattr("runtime.server.requests.GRACE_S", 0.0)
    runtime.engine.will("", ending=None)
    runtime.engine.will("a", ending=None)

    response = await runtime.generate(timeout_s=0.01)
    assert_is_error(response, 504, "deadline_exceeded", retry_safe=False)

    response = await runtime.generate(timeout_s=0.01, stream=True)
    assert events_of(response)[-1][1]["error"]["code"] == "deadline_exceeded"
    assert runtime.engine.cancelled == [0, 1]
    assert runtime.excused("client_deadline") == 0, "the engine hangs"


async def test_an_internal_error_is_answered_and_logged(runtime, monkeypatch, caplog):
    """
    A bug is a 500 with the id under which its traceback is logged.
    """
    monkeypatch.setattr(FakeEngine, "submit", lambda *_, **__: 1 / 0)

    response = await runtime.generate()

    assert_is_error(response, 500, "internal", retry_safe=True)
    assert response.json()["error"]["request_id"] in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert runtime.counted("/generate", 500) == 1
