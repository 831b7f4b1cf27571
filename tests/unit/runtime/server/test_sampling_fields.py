"""
The fields of chat and completions that choose tokens, and log probabilities in their answers.
"""

import asyncio
from collections import Counter

import pytest

from runtime.engines.base.protocol import FinishReason
from runtime.engines.base.sampling import MAX_BIASED, SamplingParams, TokenLogprobs
from runtime.server import generation, openai_routes
from runtime.server.body import MAX_KEYS
from runtime.server.openai_bodies import MAX_STOP_TOKENS
from tests.unit.runtime.fakes import SPECIAL
from tests.unit.runtime.serving import VOCABULARY, assert_is_error, events_of

pytestmark = pytest.mark.anyio

# Of each field: values, and what the engine gets.
SAMPLING = {
    "frequency_penalty": [(-2, -2.0), (0.5, 0.5), (2, 2.0)],
    "presence_penalty": [(-2, -2.0), (0.5, 0.5), (2, 2.0)],
    "repetition_penalty": [(0.01, 0.01), (1.1, 1.1), (100, 100.0)],
    "top_k": [(-1, 0), (0, 0), (5, 5)],
    "min_p": [(0, 0.0), (0.1, 0.1), (1, 1.0)],
    "min_tokens": [(0, 0), (9, 9)],
    "ignore_eos": [(False, False), (True, True)],
    "stop_token_ids": [([], ()), ([5, 0], (5, 0)), ([7] * MAX_STOP_TOKENS, (7,) * 64)],
    "logit_bias": [
        ({}, ()),
        ({"5": 1, "0": -100.0}, ((5, 1.0), (0, -100.0))),
        ({str(i): 1 for i in range(MAX_BIASED)}, tuple((i, 1.0) for i in range(MAX_BIASED))),
    ],
}
WRONG = {
    "frequency_penalty": [-2.1, 2.1, "1", True],
    "presence_penalty": [-2.1, 2.1, "1"],
    "repetition_penalty": [0, -1, 1e-45, 100.1],
    "top_k": [-2, 1.5, 2**31],
    "min_p": [-0.1, 1.1],
    "min_tokens": [-1, 10],
    "ignore_eos": [1, "true"],
    "stop_token_ids": [[-1], ["5"], 5, [True], [5] * (MAX_STOP_TOKENS + 1)],
    "logit_bias": [
        {"a": 1},
        {"-1": 1},
        {"05": 1},
        {"5": 101},
        {"5": None},
        [5],
    ],
}


async def ask(runtime, route, **body):
    return await (runtime.chat if route == "chat" else runtime.complete)("hi", **body)


@pytest.mark.parametrize("route", ["chat", "completions"])
@pytest.mark.parametrize("field", SAMPLING)
async def test_a_field_reaches_the_engine(runtime, route, field):
    """
    With null, or absent, the engine gets the default.
    """
    for value, expected in [*SAMPLING[field], (None, getattr(SamplingParams(1), field))]:
        runtime.engine.will("a")
        response = await ask(runtime, route, max_tokens=9, **{field: value})
        assert response.status_code == 200, response.text
        assert runtime.engine.asked[-1][field] == expected


@pytest.mark.parametrize(("value", "expected"), [(1e-45, 0), (9e-6, 0), (1e-5, 1e-5), (0.1, 0.1)])
async def test_a_tiny_temperature_is_greedy(runtime, value, expected):
    """
    A logit divided by 1e-45 is infinite, and the token that is drawn then is any.
    """
    for send in (runtime.chat, runtime.complete):
        runtime.engine.will("a")
        await send("hi", temperature=value)
        assert runtime.engine.asked[-1]["temperature"] == expected
    runtime.engine.will("a")
    await runtime.generate(temperature=value)
    assert runtime.engine.asked[-1]["temperature"] == expected


@pytest.mark.parametrize("route", ["chat", "completions"])
@pytest.mark.parametrize("field", WRONG)
async def test_a_value_out_of_range_is_refused_by_name(runtime, route, field):
    """
    400, before the engine gets anything.
    """
    for value in WRONG[field]:
        response = await ask(runtime, route, max_tokens=9, **{field: value})
        assert_is_error(response, 400, "invalid_request", retry_safe=False)
        assert response.json()["error"]["param"].split("[")[0].split(".")[0] == field
    assert runtime.engine.asked == []


async def test_more_biases_than_the_engine_keeps_are_refused(runtime):
    """
    As any object with so many keys.
    """
    assert MAX_BIASED == MAX_KEYS
    response = await runtime.chat("hi", logit_bias={str(i): 1 for i in range(MAX_BIASED + 1)})
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert f"more than {MAX_BIASED} keys" in response.json()["error"]["message"]


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids"])
async def test_a_token_id_without_a_logit_is_refused(runtime, field):
    """
    On a GPU it would end the engine's process, and all requests with it.
    """
    value = {str(VOCABULARY): 1} if field == "logit_bias" else [VOCABULARY]
    response = await runtime.chat("hi", **{field: value})
    assert_is_error(response, 400, "unknown_token", retry_safe=False)
    assert response.json()["error"]["param"] == field
    assert runtime.serving.generator.promised == 0


async def test_special_tokens_are_skipped_unless_asked_for(runtime):
    """
    Token 1 of the fake is special.
    """
    for body, text in (({}, "ab"), ({"skip_special_tokens": False}, "a\x01b")):
        runtime.engine.will("a\x01b")
        document = (await runtime.complete(**body)).json()
        assert document["choices"][0]["text"] == text


async def test_answers_of_one_prompt_share_it(runtime):
    """
    The engine learns which request has the same prompt; other prompts share nothing.
    """
    for _ in range(6):
        runtime.engine.will("a", cached_tokens=1)
    document = (await runtime.complete(["x", "y"], n=3)).json()
    assert runtime.engine.shared == [None, 0, 0, None, 3, 3]
    assert document["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


# Log probabilities


def scores(token):
    return TokenLogprobs(-token / 100, ((token, -token / 100), (0xE9, -3.0)))


async def test_chat_has_the_log_probability_of_each_token(runtime):
    """
    With its text and bytes, and those of the likeliest ones.
    """
    runtime.engine.will("ab", logprobs=scores)
    document = (await runtime.chat("hi", logprobs=True, top_logprobs=2)).json()
    assert runtime.engine.asked[0]["logprobs"] == 2
    first = {"token": "a", "logprob": -0.97, "bytes": [97]}
    other = {"token": "\u00e9", "logprob": -3.0, "bytes": [0xC3, 0xA9]}
    content = document["choices"][0]["logprobs"]["content"]
    assert content[0] == first | {"top_logprobs": [first, other]}
    assert [each["token"] for each in content] == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
async def test_chat_asks_for_as_many_as_the_client_does(runtime, body, asked):
    """
    None without logprobs: the engine then computes none.
    """
    runtime.engine.will("a", logprobs=None if asked is None else scores)
    document = (await runtime.chat("hi", **body)).json()
    assert runtime.engine.asked[0]["logprobs"] == asked
    assert (document["choices"][0]["logprobs"] is None) is (asked is None)


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("chat", {"top_logprobs": 3}, "top_logprobs"),
        ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat", {"logprobs": 1}, "logprobs"),
        ("completions", {"logprobs": 6}, "logprobs"),
        ("completions", {"logprobs": True}, "logprobs"),
        ("completions", {"logprobs": 6, "echo": True}, "logprobs"),
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("completions", {"max_tokens": 0, "logprobs": 1}, "max_tokens"),
        ("completions", {"max_tokens": 0, "echo": False}, "max_tokens"),
    ],
)
async def test_other_logprobs_are_refused(runtime, route, body, field):
    """
    And an answer of no token, which only shows its prompt.
    """
    response = await ask(runtime, route, **body)
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert response.json()["error"]["param"] == field


async def test_a_completion_has_lists_of_them(runtime):
    """
    Offsets are places in its text; the chosen token is among the likeliest.
    """
    runtime.engine.will("ab", logprobs=scores)
    document = (await runtime.complete(logprobs=1)).json()
    assert document["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.97, -0.98],
        "top_logprobs": [{"a": -0.97, "\u00e9": -3.0}, {"b": -0.98, "\u00e9": -3.0}],
        "text_offset": [0, 1],
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("text", "most"), [("ab", 2), ("", 0)])
@pytest.mark.parametrize("prompt", ["xyz", [ord("x"), ord("y"), ord("z")]])
async def test_an_echoed_prompt_has_them_too(runtime, prompt, text, most, stream):
    """
    Its first token has none; offsets count from the beginning of the prompt.
    """
    ending = FinishReason.STOP if text else FinishReason.LENGTH
    runtime.engine.will(text, ending, logprobs=scores)
    response = await runtime.complete(prompt, echo=True, logprobs=1, max_tokens=most, stream=stream)
    assert runtime.engine.asked[0]["prompt_logprobs"] == runtime.engine.asked[0]["logprobs"] == 1
    assert runtime.engine.asked[0]["max_tokens"] == most
    documents = [d for _, d in events_of(response)[:-1]] if stream else [response.json()]
    choices = [choice for document in documents for choice in document["choices"]]
    merged = {}
    for choice in choices:
        for name, values in choice["logprobs"].items():
            merged[name] = merged.get(name, []) + values
    assert "".join(choice["text"] for choice in choices) == f"xyz{text}"
    assert merged["tokens"] == list(f"xyz{text}")
    assert merged["token_logprobs"][0] is merged["top_logprobs"][0] is None
    assert merged["token_logprobs"][1:] == [-ord(c) / 100 for c in f"yz{text}"]
    assert all(c in top for c, top in zip(f"yz{text}", merged["top_logprobs"][1:], strict=True))
    assert merged["text_offset"] == list(range(3 + len(text)))
    assert choices[-1]["finish_reason"] == ("stop" if text else "length")


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("is_text", [True, False])
async def test_offsets_of_an_echoed_prompt_are_places_in_the_text(runtime, is_text, skips):
    """
    With special tokens in it: a text is repeated as it came, token ids as the answer is decoded.
    """
    runtime.engine.will("cd", logprobs=scores)
    prompt = f"a{chr(SPECIAL)}b"
    response = await runtime.complete(
        prompt if is_text else list(map(ord, prompt)),
        echo=True,
        logprobs=0,
        skip_special_tokens=skips,
    )
    (choice,) = response.json()["choices"]
    text, offsets = choice["text"], choice["logprobs"]["text_offset"]
    assert text == (prompt if is_text or not skips else "ab") + "cd"
    places = dict(zip(choice["logprobs"]["tokens"], offsets, strict=True))
    assert all(text[places[char]] == char for char in "abcd")
    assert offsets == sorted(offsets)


async def test_an_evaluation_harness_reads_them_by_position(runtime):
    """
    As lm-evaluation-harness does: token ids, several prompts, one more token, which it drops.
    """
    for _ in range(2):
        runtime.engine.will("!", FinishReason.LENGTH, logprobs=scores)
    context, continuation = [ord(c) for c in "abc"], [ord(c) for c in "de"]
    body = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    response = await runtime.complete([[*context, *continuation], context], **body)
    for choice, length in zip(response.json()["choices"], (5, 3), strict=True):
        assert choice["index"] == (0 if length == 5 else 1)
        found = choice["logprobs"]
        assert len(found["token_logprobs"]) == len(found["top_logprobs"]) == length + 1
    found = response.json()["choices"][0]["logprobs"]
    assert found["token_logprobs"][len(context) : -1] == [-1.0, -1.01]
    assert [max(top.values()) for top in found["top_logprobs"][len(context) : -1]] == [-1.0, -1.01]


async def test_the_loop_goes_on_within_a_long_answer_with_scores(runtime, monkeypatch):
    """
    Each of its tokens is decoded by itself: in a turn of the loop, few of them.
    """
    turn, decoded = 0, Counter()

    class Counted(generation.AnswerText):
        def add(self, tokens, logprobs=()):
            decoded[turn] += len(tokens)
            return super().add(tokens, logprobs)

    async def tick():
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(generation, "AnswerText", Counted)
    runtime.engine.will("x" * 5000, logprobs=scores)
    ticking = asyncio.create_task(tick())
    response = await runtime.complete(logprobs=1, max_tokens=90)
    ticking.cancel()
    assert len(response.json()["choices"][0]["logprobs"]["tokens"]) == 5000
    assert decoded.total() == 5000
    assert max(decoded.values()) < 2 * generation.DECODED_ALONE


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("scored", [False, True])
async def test_the_usage_ends_with_the_stop_text(runtime, stream, scored):
    """
    Whatever the engine has generated by the time that it is found: here all at once.
    """
    runtime.engine.will("the sea is calm", logprobs=scores)
    asks = {"stop": ["sea", "#"], "logprobs": 1 if scored else None}
    if stream:
        asks |= {"stream": True, "stream_options": {"include_usage": True}}
    response = await runtime.complete("x", **asks)
    document = events_of(response)[-2][1] if stream else response.json()
    assert document["usage"]["completion_tokens"] == len("the sea")


async def test_scored_prompts_are_bounded_together(runtime, monkeypatch):
    """
    Their document is made at once.
    """
    monkeypatch.setattr(openai_routes, "MAX_SCORED", 5)
    runtime.engine.will("x", logprobs=scores)
    assert (await runtime.complete("abcde", echo=True, logprobs=0)).status_code == 200
    for prompt, more in (("abcdef", {}), (["abc", "def"], {}), ("abc", {"n": 2})):
        response = await runtime.complete(prompt, echo=True, logprobs=0, **more)
        assert_is_error(response, 400, "invalid_request", retry_safe=False)
        assert response.json()["error"]["param"] == "logprobs"
    assert runtime.serving.generator.promised == 0


async def test_an_engine_that_scores_no_prompts_says_so(runtime):
    """
    With `engine: vllm`; the control is an answer's own.
    """
    runtime.engine.scores_prompts = False
    response = await runtime.complete(echo=True, logprobs=1)
    assert_is_error(response, 400, "not_supported", retry_safe=False)
    assert response.json()["error"]["param"] == "logprobs"
    runtime.engine.will("x", logprobs=scores)
    assert (await runtime.complete(logprobs=1)).status_code == 200


@pytest.mark.parametrize("route", ["chat", "completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_of_a_stop_string_have_none(runtime, route, stream):
    """
    The scores are those of the text, in one piece or in many.
    """
    runtime.engine.will("the sea, and", logprobs=scores, ending=FinishReason.LENGTH)
    asks = {"logprobs": True} if route == "chat" else {"logprobs": 0}
    response = await ask(runtime, route, stop=["a,"], stream=stream, **asks)
    documents = [data for _, data in events_of(response)[:-1]] if stream else [response.json()]
    tokens = []
    for document in documents:
        found = document["choices"][0]["logprobs"] or {}
        tokens += found.get("tokens", []) + [one["token"] for one in found.get("content", [])]
    assert "".join(tokens) == "the se"


async def test_tokens_without_text_have_scores_too(runtime):
    """
    Also at the end, where no text comes with them.
    """
    for stream in (False, True):
        runtime.engine.will("a\x01b\x01", logprobs=scores)
        response = await runtime.chat("hi", logprobs=True, stream=stream)
        documents = [data for _, data in events_of(response)[:-1]] if stream else [response.json()]
        found = [document["choices"][0]["logprobs"] for document in documents]
        tokens = [one["token"] for each in found if each for one in each["content"]]
        assert tokens == ["a", "\x01", "b", "\x01"]


async def test_tokens_of_text_that_is_held_back_keep_their_scores(runtime):
    """
    A reader that looks for a mark gives out the text later, and the scores with it.
    """
    for text in ("<think>so</think>the sea", "<th"):
        runtime.engine.will(text, logprobs=scores)
        response = await runtime.chat("hi", logprobs=True, stream=True, separate_reasoning=True)
        found = [data["choices"][0]["logprobs"] for _, data in events_of(response)[:-1]]
        tokens = [one["token"] for each in found if each for one in each["content"]]
        assert "".join(tokens) == text
