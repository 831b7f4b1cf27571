"""
`/v1/chat/completions`, whole and as a stream.
"""

import json
from contextlib import closing

import openai.types.chat as chat_types
import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params

from runtime.chat import load_chat_template
from runtime.engines.base.protocol import FinishReason
from runtime.server.embeddings import EmbeddingBody
from runtime.server.openai_bodies import (
    MAX_MESSAGES,
    ChatBody,
    CompletionBody,
    Message,
    StreamOptions,
    TextPart,
)
from runtime.server.prompts import Conversation
from tests.unit.runtime.server.test_sampling_fields import SAMPLING
from tests.unit.runtime.serving import CONTEXT, Runtime, assert_is_error, events_of

pytestmark = pytest.mark.anyio
PROMPT = "user=hi|>"

# Fields that have no effect here, with the values that ask for nothing.
NEUTRAL = {
    "audio": None,
    "continue_final_message": False,
    "function_call": "none",
    "functions": [],
    "include_reasoning": True,
    "modalities": ["text"],
    "moderation": None,
    "prediction": None,
    "reasoning_effort": None,
    "response_format": {"type": "text"},
    "verbosity": None,
    "web_search_options": None,
}
ACCEPTED = {
    "metadata": {"run": "7"},
    "parallel_tool_calls": True,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "auto",
    "store": False,
    "user": "u",
}
UNSUPPORTED = {
    "audio": {"voice": "a"},
    "continue_final_message": True,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "include_reasoning": False,
    "modalities": ["text", "audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "verbosity": "low",
    "web_search_options": {},
}


async def test_an_answer_has_the_shape_of_openai(runtime):
    """
    One choice with a message of the assistant, and the usage.
    """
    runtime.engine.will("the sea")

    response = await runtime.chat("hi", model="lab")

    document = response.json()
    assert document.pop("created") >= 0
    assert document == {
        "id": "chatcmpl-" + response.headers["x-request-id"],
        "object": "chat.completion",
        "model": "lab",
        "version": "v1.2.0",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "the sea", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16},
    }
    assert runtime.engine.asked[0]["prompt"] == PROMPT
    assert runtime.counted("/v1/chat/completions", 200) == 1


async def test_an_answer_may_take_what_is_left_of_the_context(runtime):
    """
    Unless the client bounds it, by the old name or the new one.
    """
    for bound, most in (
        ({}, CONTEXT - len(PROMPT)),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7}, 7),
        ({"max_completion_tokens": 7, "max_tokens": 5}, 7),
    ):
        runtime.engine.will("a")
        assert (await runtime.chat("hi", **bound)).status_code == 200
        assert runtime.engine.asked[-1]["max_tokens"] == most


async def test_sampling_is_that_of_the_request(runtime):
    """
    OpenAI's defaults; a top_p of 0 is greedy, and any seed of 64 bits is one.
    """
    for sent, got in (
        ({}, (1.0, 1.0, None)),
        ({"temperature": 0.5, "top_p": 0.9, "seed": 3}, (0.5, 0.9, 3)),
        ({"temperature": None, "top_p": None, "seed": None}, (1.0, 1.0, None)),
        ({"top_p": 0, "seed": -1}, (0.0, 1.0, 2**63 - 1)),
    ):
        runtime.engine.will("a")
        assert (await runtime.chat("hi", **sent)).status_code == 200
        asked = runtime.engine.asked[-1]
        assert (asked["temperature"], asked["top_p"], asked["seed"]) == got


async def test_a_stream_is_a_role_then_text_then_a_finish_reason(runtime):
    """
    Without the usage, which was not asked for.
    """
    runtime.engine.will("the sea", FinishReason.LENGTH)

    response = await runtime.chat("hi", stream=True)

    *events, done = events_of(response)
    assert done == (None, "[DONE]")
    choices = [data["choices"][0] for _, data in events]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"]["content"] for choice in choices[1:-1]) == "the sea"
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "length")
    assert {data["object"] for _, data in events} == {"chat.completion.chunk"}
    assert not any("usage" in data for _, data in events)


async def test_a_stream_has_the_usage_if_it_is_asked_for(runtime):
    """
    In an event of its own without a choice; in all others it is null.
    """
    runtime.engine.will("the sea")

    response = await runtime.chat("hi", stream=True, stream_options={"include_usage": True})

    *events, last, _ = [data for _, data in events_of(response)]
    assert {data["usage"] for data in events} == {None}
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}


async def test_messages_reach_the_template_as_they_were_sent(runtime):
    """
    Every role, text and parts; what OpenAI's client sends back of an answer is taken.
    """
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None}
    answer |= {"annotations": [], "audio": None, "function_call": None}
    runtime.engine.will("a")
    response = await runtime.chat(
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": t} for t in "pq"], "name": "n"},
        answer,
        {"role": "tool", "content": "t", "tool_call_id": "c"},
        chat_template_kwargs={"x": 1},
        add_generation_prompt=False,
    )
    assert response.status_code == 200, response.text
    assert runtime.engine.asked[0]["prompt"] == "system=d|user=p+q|assistant=None|tool=t|x=1|"


async def test_several_answers_have_an_index_each(runtime):
    """
    Each is a request of the engine; a seed is another one for each.
    """
    runtime.engine.will("one")
    runtime.engine.will("two")
    document = (await runtime.chat("hi", n=2, seed=2**63 - 1, max_tokens=9)).json()
    assert [c["message"]["content"] for c in document["choices"]] == ["one", "two"]
    assert [c["index"] for c in document["choices"]] == [0, 1]
    assert document["usage"] == {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
    assert [asked["seed"] for asked in runtime.engine.asked] == [2**63 - 1, 0]

    runtime.engine.will("one")
    runtime.engine.will("two")
    response = await runtime.chat("hi", n=2, stream=True)
    texts = {0: "", 1: ""}
    for _, data in events_of(response)[:-1]:
        choice = data["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "one", 1: "two"}


@pytest.mark.parametrize("stream", [False, True])
async def test_one_failed_answer_fails_all(runtime, stream):
    """
    The others are cancelled: nothing reads them.
    """
    runtime.engine.will("", ending=None)
    runtime.engine.will("", FinishReason.ERROR)
    response = await runtime.chat("hi", n=2, stream=stream)
    assert_is_error(response, 500, "engine_error", retry_safe=True)
    assert runtime.engine.cancelled == [0]


async def test_neutral_values_are_accepted(runtime):
    """
    Of fields that are not supported; null is one for every optional field.
    """
    runtime.engine.will("a")
    response = await runtime.chat("hi", **NEUTRAL, **ACCEPTED)
    assert response.status_code == 200, response.text

    optional = [name for name, field in ChatBody.model_fields.items() if not field.is_required()]
    runtime.engine.will("a")
    response = await runtime.chat("hi", **dict.fromkeys(optional))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("typed", "body"),
    [
        (chat_create_params.CompletionCreateParamsStreaming, ChatBody),
        (completion_create_params.CompletionCreateParamsStreaming, CompletionBody),
        (embedding_create_params.EmbeddingCreateParams, EmbeddingBody),
        (chat_types.ChatCompletionStreamOptionsParam, StreamOptions),
        (chat_types.ChatCompletionContentPartTextParam, TextPart),
        (chat_types.ChatCompletionUserMessageParam, Message),
        (chat_types.ChatCompletionAssistantMessageParam, Message),
        (chat_types.ChatCompletionToolMessageParam, Message),
    ],
    ids=lambda value: value.__name__,
)
def test_every_field_of_openais_client_is_known(typed, body):
    """
    A field that is not supported has a value that asks for nothing.
    """
    assert typed.__required_keys__ | typed.__optional_keys__ <= body.model_fields.keys()


def test_a_cache_breakpoint_of_a_part_does_not_reach_the_template():
    """
    Templates that write a part as JSON would write it into the prompt.
    """
    part = {"type": "text", "text": "hi"}
    marked = part | {"prompt_cache_breakpoint": {"mode": "explicit"}}
    message = {"role": "user", "content": [marked]}
    assert Message.model_validate(message).as_document() == {"role": "user", "content": [part]}


@pytest.mark.parametrize("field", sorted(UNSUPPORTED))
async def test_other_values_are_refused_by_name(runtime, field):
    """
    400, and the message has the neutral value.
    """
    response = await runtime.chat("hi", **{field: UNSUPPORTED[field]})
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    error = response.json()["error"]
    assert error["param"] == field
    assert "not supported" in error["message"]


def test_every_unsupported_field_is_tested():
    """
    The list above is that of the body.
    """
    assert NEUTRAL.keys() == UNSUPPORTED.keys() | {"response_format"}
    known = {"messages", "model", "max_tokens", "max_completion_tokens", "n", "temperature"}
    known |= {"top_p", "seed", "stop", "stream", "stream_options", "chat_template_kwargs"}
    known |= {"add_generation_prompt", "tools", "tool_choice", "separate_reasoning"}
    known |= {"logprobs", "top_logprobs", "skip_special_tokens", "structured_outputs", "priority"}
    known |= {f"guided_{kind}" for kind in ("json", "regex", "choice", "grammar")}
    known |= SAMPLING.keys() | ACCEPTED.keys()
    assert ChatBody.model_fields.keys() == known | NEUTRAL.keys()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"guided_json": {}}, "guided_json"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": "x", "y": 1}]}, "messages[0].y"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a"] * 9}, "stop"),
    ],
)
async def test_an_invalid_field_is_400_and_named(runtime, body, param):
    """
    By its path in the body.
    """
    response = await runtime.chat("hi", **body)
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert response.json()["error"]["param"] == param


async def test_a_template_refuses_in_its_own_words(runtime):
    """
    On one line: they are logged by clients.
    """
    response = await runtime.chat("<refuse>")
    assert_is_error(response, 400, "chat_template_refused", retry_safe=False)
    error = response.json()["error"]
    assert error["message"] == "roles must alternate, said the\\ntemplate"
    assert error["param"] == "messages"


async def test_a_model_without_a_template_says_so(runtime):
    """
    400: another request of this form will not succeed either.
    """
    runtime.serving.generator.prompts._template = None
    response = await runtime.chat("hi")
    assert_is_error(response, 400, "no_chat_template", retry_safe=False)
    assert response.json()["error"]["param"] == "messages"


async def test_a_conversation_that_is_too_long_has_openais_code(runtime):
    """
    With nothing left for an answer, or less than was asked for.
    """
    for body in ({}, {"max_tokens": 99}):
        text = "x" * (1 if body else CONTEXT)
        response = await runtime.chat(text, **body)
        assert_is_error(response, 400, "context_length_exceeded", retry_safe=False)
        assert response.json()["error"]["param"] == "messages"


@pytest.mark.parametrize(
    "content",
    [
        b"[{}" + b",{}" * 9000 + b"]",
        b'[{"role":"user","content":"a"}' + b',{"role":"user","content":"a"}' * 9000 + b"]",
        b'[{"role":"user","content":"a"}' + b',{"role":"user","content":"a"}' * MAX_MESSAGES + b"]",
        b"[" * 20_000 + b"]" * 20_000,
        b"[" * 4_000 + b"]" * 4_000,
        b"[" + b"1," * 120_000 + b"1]",
        b'[{"role":"user","content":[' + b'{"type":"text","text":"a"},' * 7000 + b"1]}]",
        b"[{" + b",".join(b'"k%d":1' % number for number in range(30_000)) + b"}]",
        b'[{"role":"user","content":"a","name":"\\ud800"}]',
        b'[{"role":"user","content":"\\ud800"}]',
    ],
    ids=range(10),
)
async def test_hostile_messages_are_one_error(runtime, content):
    """
    Many, deep, wide, of no character: 400, with a short message.
    """
    raw = b'{"messages":' + content + b"}"
    as_json = {"content-type": "application/json"}
    response = await runtime.http.post("/v1/chat/completions", content=raw, headers=as_json)
    assert response.status_code == 400, response.text
    assert len(response.json()["error"]["message"]) < 500


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[{}" + b",{}" * 9000 + b"]", "more than a request may have"),
        (b"[" + b"1," * 140_000 + b"1]", "more than a request may have"),
        (b"[" + b'"",' * 40_000 + b"1]", "more than a request may have"),
        (b"[{" + b",".join(b'"k%d":1' % n for n in range(300)) + b"}]", "more than 256 keys"),
    ],
)
async def test_each_bound_of_a_conversation_holds_alone(runtime, content, words):
    """
    Of objects, structure, strings and keys: pydantic never sees such a body.
    """
    raw = b'{"messages":' + content + b"}"
    as_json = {"content-type": "application/json"}
    response = await runtime.http.post("/v1/chat/completions", content=raw, headers=as_json)
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize("half", ['"x": "\\ud800"', '"\\ud800": 1'])
async def test_half_a_character_in_a_variable_of_the_template_is_400(runtime, half):
    """
    The tokenizer would raise.
    """
    raw = '{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {' + half + "}}"
    as_json = {"content-type": "application/json"}
    response = await runtime.http.post("/v1/chat/completions", content=raw, headers=as_json)
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert response.json()["error"]["param"] == "chat_template_kwargs"


def test_half_a_character_in_a_tool_is_named():
    tool = {"type": "function", "function": {"name": "f", "description": "\ud800"}}
    messages = ({"role": "user", "content": "x"},)
    assert Conversation(messages, tools=(tool,)).find_surrogate() == "tools"
    assert Conversation(messages, kwargs={"\ud800": 1}).find_surrogate() == "chat_template_kwargs"
    assert Conversation(messages).find_surrogate() == "messages"


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
async def test_a_variable_of_the_template_that_is_a_field_is_named(tmp_path, name):
    """
    The template would get one of the two.
    """
    (tmp_path / "chat_template.jinja").write_text("x")
    with closing(load_chat_template(tmp_path)) as template:
        runtime = Runtime(template=template)
        response = await runtime.chat("hi", chat_template_kwargs={name: []})
    assert_is_error(response, 400, "chat_template_refused", retry_safe=False)
    assert response.json()["error"]["param"] == f"chat_template_kwargs.{name}"


async def test_a_long_conversation_is_accepted(runtime):
    """
    As many messages as a body may have, with the spaces that Python writes.
    """
    messages = [{"role": "user", "content": ""}] * MAX_MESSAGES
    response = await runtime.http.post(
        "/v1/chat/completions",
        content=json.dumps({"messages": messages}),
        headers={"content-type": "application/json"},
    )
    assert response.json()["error"]["code"] == "context_length_exceeded"
