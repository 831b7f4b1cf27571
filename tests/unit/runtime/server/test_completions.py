"""
`/v1/completions` with all forms of a prompt, `/v1/models`, `/tokenize` and `/detokenize`.
"""

import asyncio
import json
from collections import Counter

import pytest

from runtime.server import generation, openai_routes
from runtime.server.errors import Failed
from runtime.server.openai_bodies import MAX_PROMPTS, CompletionBody
from tests.unit.runtime.serving import CONTEXT, VOCABULARY, assert_is_error, events_of

pytestmark = pytest.mark.anyio
USER = {"role": "user", "content": "a"}
JSON = {"content-type": "application/json"}


def ids(text):
    return [ord(char) for char in text]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab"], ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        (ids("ab"), ["ab"]),
        ([ids("ab"), ids("c")], ["ab", "c"]),
        (["ab", ids("c")], ["ab", "c"]),
    ],
)
async def test_a_prompt_is_text_or_token_ids_one_or_many(runtime, prompt, texts):
    """
    One choice for each, in their order; the usage counts all.
    """
    for text in texts:
        runtime.engine.will(text.upper())

    document = (await runtime.complete(prompt)).json()

    assert [asked["prompt"] for asked in runtime.engine.asked] == texts
    assert [choice["text"] for choice in document["choices"]] == [t.upper() for t in texts]
    tokens = len("".join(texts))
    assert document["usage"]["prompt_tokens"] == document["usage"]["completion_tokens"] == tokens


async def test_a_whole_number_may_have_a_point(runtime):
    """
    JSON has one kind of number: 16.0 is 16, and 16.5 is refused.
    """
    runtime.engine.will("x")
    whole = {"n": 1.0, "max_tokens": 3.0, "seed": 5.0, "stop_token_ids": [7.0], "top_k": 2.0}
    response = await runtime.complete([97.0, 98], **whole)
    assert response.status_code == 200
    (asked,) = runtime.engine.asked
    assert (asked["prompt"], asked["max_tokens"], asked["seed"]) == ("ab", 3, 5)
    assert type(asked["max_tokens"]) is int
    text = await runtime.http.post("/detokenize", json={"tokens": [97.0, 98]})
    assert text.json() == {"prompt": "ab"}
    for name, value in ({"prompt": [97.5]} | dict.fromkeys(whole, 1.5)).items():
        if name == "stop_token_ids":
            value = [1.5]
        response = await runtime.complete(**{name: value})
        assert_is_error(response, 400, "invalid_request", retry_safe=False)
        assert response.json()["error"]["param"].startswith(name)
    for tokens in ([97.5], [True, 97.0], [97.0, "a"]):
        response = await runtime.http.post("/detokenize", json={"tokens": tokens})
        assert_is_error(response, 400, "invalid_request", retry_safe=False)


async def test_several_answers_follow_their_prompt(runtime):
    """
    With n: 2 the first two choices are of the first prompt; each draws with its own seed.
    """
    for text in "1234":
        runtime.engine.will(text)
    document = (await runtime.complete(["a", "b"], n=2, seed=5)).json()
    assert [choice["text"] for choice in document["choices"]] == list("1234")
    assert [asked["prompt"] for asked in runtime.engine.asked] == list("aabb")
    assert [asked["seed"] for asked in runtime.engine.asked] == [5, 6, 7, 8]
    assert document["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}


@pytest.mark.parametrize("prompt", [["ab", "c"], [ids("ab"), ids("c")]])
async def test_echo_repeats_the_prompt(runtime, prompt):
    """
    Once, at the beginning of each choice, also of token ids and in a stream.
    """
    for stream in (False, True):
        runtime.engine.will("xyz")
        runtime.engine.will("w")
        response = await runtime.complete(prompt, echo=True, stream=stream)
        documents = [d for _, d in events_of(response)[:-1]] if stream else [response.json()]
        texts = ["", ""]
        for document in documents:
            for choice in document["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts == ["abxyz", "cw"]


async def test_a_stream_has_the_usage_only_if_it_is_asked_for(runtime):
    """
    As for chat.
    """
    for options, is_asked in (({}, False), ({"stream_options": {"include_usage": True}}, True)):
        runtime.engine.will("the sea")
        response = await runtime.complete("x", stream=True, **options)
        *events, last = [data for _, data in events_of(response)[:-1]]
        assert any("usage" in data for data in events) is is_asked
        assert (last["choices"] == []) is is_asked
        if is_asked:
            usage = {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8}
            assert last["usage"] == usage


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        [],
        None,
        5,
        {},
        [""],
        [[]],
        ["a", 5],
        [5, "a"],
        [True],
        [1.5],
        [[["a"]]],
        ["a"] * (MAX_PROMPTS + 1),
        [[1]] * (MAX_PROMPTS + 1),
    ],
    ids=lambda prompt: str(prompt)[:12],
)
async def test_another_prompt_is_400(runtime, prompt):
    """
    The message has its form, not its value.
    """
    response = await runtime.complete(prompt)
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("token", [-1, VOCABULARY, 10**30])
async def test_a_token_that_the_model_does_not_have_is_refused(runtime, token):
    """
    By request: it would fail the step of all others.
    """
    for prompt in ([token], ["a", [1, token]]):
        response = await runtime.complete(prompt)
        assert_is_error(response, 400, "unknown_token", retry_safe=False)
        assert response.json()["error"]["param"] == "prompt"
    assert runtime.engine.asked == []
    response = await runtime.http.post("/detokenize", json={"tokens": [token]})
    assert_is_error(response, 400, "unknown_token", retry_safe=False)
    assert response.json()["error"]["param"] == "tokens"


async def test_a_text_with_such_a_token_is_refused_too(runtime):
    """
    A tokenizer may have more tokens than the model's embedding has rows.
    """
    runtime.serving.generator.prompts._vocabulary = 0x80
    assert_is_error(await runtime.complete("a\x80"), 400, "unknown_token", retry_safe=False)


async def test_long_lists_of_token_ids_are_read(runtime):
    """
    A whole context is refused only where it is too long; more than a body may have, before that.
    """
    response = await runtime.complete([65] * 131_072)
    assert_is_error(response, 400, "context_length_exceeded", retry_safe=False)
    assert_is_error(
        await runtime.complete([65] * 600_000), 400, "invalid_request", retry_safe=False
    )


async def test_more_answers_than_ever_fit_are_400(runtime):
    """
    And as many as are not free now are 503.
    """
    response = await runtime.complete(["a"] * 128, n=16)
    assert_is_error(response, 400, "too_many_answers", retry_safe=False)
    assert response.json()["error"]["param"] == "n"
    runtime.engine.busy = 32 + 256 - 1
    assert_is_error(await runtime.complete(["a", "b"]), 503, "queue_full", retry_safe=True)
    assert runtime.engine.asked == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("best_of", 2), ("top_logprobs", 0), ("suffix", "x"), ("max_token", 1)],
)
async def test_what_is_not_supported_is_refused_by_name(runtime, field, value):
    """
    Unknown fields, too.
    """
    response = await runtime.complete("x", **{field: value})
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert response.json()["error"]["param"] == field


# Models and tokens


async def test_a_model_is_found_by_its_name(runtime):
    """
    With its context; any other name is 404.
    """
    (listed,) = (await runtime.http.get("/v1/models")).json()["data"]
    assert listed["max_model_len"] == CONTEXT
    assert (await runtime.http.get("/v1/models/lab")).json() == listed
    for name in ("other", "lab/x", "lab%2Fx"):
        response = await runtime.http.get(f"/v1/models/{name}")
        assert_is_error(response, 404, "model_not_found", retry_safe=False)


async def test_text_becomes_tokens_and_text_again(runtime):
    """
    Of a prompt or a conversation.
    """
    for body, text in (
        ({"prompt": "ab"}, "ab"),
        ({"messages": [{"role": "user", "content": "x"}]}, "user=x|>"),
        (
            {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False},
            "user=x|",
        ),
    ):
        document = (await runtime.http.post("/tokenize", json=body)).json()
        assert document == {
            "count": len(text),
            "max_model_len": CONTEXT,
            "tokens": ids(text),
            "token_strs": None,
        }
        response = await runtime.http.post("/detokenize", json={"tokens": ids(text)})
        assert response.json() == {"prompt": text}


@pytest.mark.parametrize(
    "body", [{}, {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}]
)
async def test_tokenize_takes_either_form(runtime, body):
    """
    Not both, and not none.
    """
    response = await runtime.http.post("/tokenize", json=body)
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert response.json()["error"]["param"] == "prompt"


async def test_tokenize_is_bounded_by_the_context(runtime):
    """
    Both ways.
    """
    response = await runtime.http.post("/tokenize", json={"prompt": "x" * (CONTEXT + 1)})
    assert_is_error(response, 400, "context_length_exceeded", retry_safe=False)
    response = await runtime.http.post("/detokenize", json={"tokens": [1] * (CONTEXT + 1)})
    assert_is_error(response, 400, "context_length_exceeded", retry_safe=False)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/chat/completions"])
async def test_the_limits_of_the_other_routes_hold(runtime, path):
    """
    A full queue, and another model.
    """
    body = {"model": "other", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    body |= {"tokens": [1]}
    fields = {"/tokenize": ("model", "prompt"), "/detokenize": ("model", "tokens")}
    asked = {name: body[name] for name in fields.get(path, ("model", "messages"))}
    response = await runtime.http.post(path, json=asked)
    assert_is_error(response, 404, "model_not_found", retry_safe=False)
    assert response.json()["error"]["param"] == "model"
    runtime.engine.busy = 32 + 256
    assert_is_error(await runtime.http.post(path, json=asked), 503, "queue_full", retry_safe=True)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_number_with_thousands_of_digits_is_refused_by_name(runtime, path):
    """
    Python refuses to print one of 4,301 digits, which a sum of two shorter ones has.
    """
    prompt = {"prompt": "a"} if path == "/v1/completions" else {"messages": [USER]}
    digits = "9" * 4300
    body = json.dumps(prompt | {"max_tokens": 0}).replace(": 0", f": {digits}")
    response = await runtime.http.post(path, content=body, headers=JSON)
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert response.json()["error"]["param"] == "max_tokens"


async def test_half_a_surrogate_pair_is_refused_by_every_route(runtime):
    """
    The tokenizer would raise.
    """
    for path in ("/tokenize", "/v1/completions"):
        for text in ("\\ud800", "a" * 30_000 + "\\ud800"):
            body = f'{{"prompt": "{text}"}}'.replace("\\\\", "\\")
            response = await runtime.http.post(path, content=body, headers=JSON)
            assert_is_error(response, 400, "invalid_request", retry_safe=False)
            assert response.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("stream", [False, True])
async def test_long_prompts_go_to_the_engine_one_after_the_other(runtime, monkeypatch, stream):
    """
    Its message of a whole context takes the loop 10 ms: not those of a list in one turn.
    """
    turn, sent = 0, Counter()
    submit = runtime.engine.submit

    async def tick():
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def counted(*args):
        sent[turn] += 1
        return submit(*args)

    monkeypatch.setattr(runtime.engine, "submit", counted)
    monkeypatch.setattr(generation, "LONG_SUBMIT_TOKENS", 9)
    for _ in range(8):
        runtime.engine.will("x")
    ticking = asyncio.create_task(tick())
    await runtime.complete(["a" * 10] * 8, stream=stream)
    ticking.cancel()
    assert sent.total() == 8
    assert max(sent.values()) == 1


async def test_echoed_prompts_are_bounded_together(runtime, monkeypatch):
    monkeypatch.setattr(openai_routes, "MAX_ECHOED", 12)
    runtime.engine.will("x")
    assert (await runtime.complete("abc", echo=True, n=1)).status_code == 200
    response = await runtime.complete(["abc", "abcd"], echo=True, n=2)
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert response.json()["error"]["param"] == "echo"
    assert runtime.serving.generator.promised == 0


async def test_lists_that_come_together_share_the_queue(runtime):
    """
    Their places are taken before the first prompt is read: what does not fit is 503 at once.
    """
    limits = runtime.settings.config.limits(CONTEXT)
    most = limits.max_batch_requests + limits.max_queue_requests
    generator = runtime.serving.generator
    n = 4
    bodies = [CompletionBody(prompt=["a"] * (most // n), n=n) for _ in range(8)]
    asked = await asyncio.gather(
        *(openai_routes._ask_completions(generator, body) for body in bodies),
        return_exceptions=True,
    )
    failed = [one.refused for one in asked if isinstance(one, Failed)]
    assert [(one.status, one.code) for one in failed] == [(503, "queue_full")] * 7
    assert generator.load.in_flight == most // n * n
    [admitted] = [one for one in asked if not isinstance(one, Failed)]
    for request in admitted.requests:
        request.place.leave()
        request.place.leave()  # counts once
    assert generator.load.in_flight == 0


def test_the_one_token_beside_echoed_scores_is_always_there():
    """
    lm-evaluation-harness asks for one token and drops the last score: without one, an end token
    would cost it the last token of the text that it scores.
    """
    asked = {"prompt": "a", "echo": True, "logprobs": 1, "max_tokens": 1}
    assert CompletionBody.model_validate(asked).params(0).ignore_eos
    for change in ({"echo": False}, {"logprobs": None}, {"max_tokens": 2}, {"max_tokens": 0}):
        assert not CompletionBody.model_validate(asked | change).params(0).ignore_eos
