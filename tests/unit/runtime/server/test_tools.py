"""
Tools and reasoning on `/v1/chat/completions`, whole and as a stream.
"""

import json
import threading

import pytest

from runtime.engines.base.protocol import FinishReason
from runtime.server.answers import AnswerForm, AnswerReader
from runtime.server.openai_documents import LONG_ANSWER_CHARS
from runtime.tools import Tool, ToolSyntax, ToolUse
from tests.unit.runtime.serving import Runtime, assert_is_error, events_of

pytestmark = pytest.mark.anyio
TAP = {"type": "function", "function": {"name": "tap", "parameters": {"type": "object"}}}
LOOK = {"type": "function", "function": {"name": "look", "description": "d", "strict": True}}
REFUSED = {"type": "function", "function": {"name": "a", "parameters": {"title": "<refuse>"}}}
NAMED = {"type": "function", "function": {"name": "tap"}}
CALL = '<tool_call>\n{"name": "tap", "arguments": {"x": 1}}\n</tool_call>'
BROKEN = '<tool_call>\n{"name": "tap", "arguments": {"x": oops}}\n</tool_call>'


@pytest.fixture
async def runtime():
    runtime = Runtime()
    runtime.serving.generator.tool_syntax = ToolSyntax("hermes")
    yield runtime
    runtime.engine.done()


async def ask(runtime, text, *, ending=FinishReason.STOP, **body):
    """
    Return message and finish reason of the answer *text*, whole and put together from a stream.
    """
    body = {"tools": [TAP, LOOK], **body}
    runtime.engine.will(text, ending)
    response = await runtime.chat("hi", **body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    runtime.engine.will(text, ending)
    streamed = add_up(await runtime.chat("hi", stream=True, **body))
    return (choice["message"], choice["finish_reason"]), streamed


def add_up(response):
    """
    Return the message and the finish reason of a stream, as OpenAI's clients add it up.
    """
    message, reasons = {"tool_calls": []}, []
    for _, data in events_of(response)[:-1]:
        (choice,) = data["choices"]
        delta = choice["delta"]
        for key in delta.keys() & {"content", "reasoning_content"}:
            message[key] = (message.get(key) or "") + (delta[key] or "")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                assert set(call) == {"index", "id", "type", "function"}
                message["tool_calls"].append(call)
            else:
                assert call.keys() == {"index", "function"}
                function = message["tool_calls"][call["index"]]["function"]
                function["arguments"] += call["function"]["arguments"]
        reasons.append(choice["finish_reason"])
    assert all(reason is None for reason in reasons[:-1])
    return message, reasons[-1]


def calls_of(message):
    return [
        (call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls", ())
    ]


async def test_a_call_is_a_call_of_the_message(runtime):
    """
    With an id of its own, content null, and the finish reason tool_calls.
    """
    for message, reason in await ask(runtime, CALL):
        assert calls_of(message) == [("tap", '{"x": 1}')]
        assert not message["content"]
        assert reason == "tool_calls"
        (call,) = message["tool_calls"]
        assert (call["type"], call["id"][:5]) == ("function", "call_")


async def test_the_tools_are_in_the_prompt_as_they_were_sent(runtime):
    """
    Those of a request with `none` or an empty list are not, as in SGLang.
    """
    await ask(runtime, CALL)
    assert runtime.engine.asked[0]["prompt"] == "tools=tap,look|user=hi|>"
    for body in ({"tool_choice": "none"}, {"tools": []}):
        for message, reason in await ask(runtime, CALL, **body):
            assert (message["content"], reason) == (CALL, "stop")
        assert runtime.engine.asked[-1]["prompt"] == "user=hi|>"


async def test_content_stands_beside_calls(runtime):
    """
    Several calls, each with an index and an id.
    """
    for message, reason in await ask(runtime, f"I look.\n{CALL}\n{CALL}"):
        assert message["content"] == "I look."
        assert calls_of(message) == [("tap", '{"x": 1}')] * 2
        assert len({call["id"] for call in message["tool_calls"]}) == 2
        assert reason == "tool_calls"


async def test_without_parallel_calls_there_is_one(runtime):
    """
    Further calls are dropped.
    """
    for message, _ in await ask(runtime, f"{CALL}\n{CALL}", parallel_tool_calls=False):
        assert calls_of(message) == [("tap", '{"x": 1}')]


async def test_an_answer_without_a_call_is_a_text(runtime):
    """
    Nothing binds the model to a call that it may choose.
    """
    for choice in ("auto", None):
        for message, reason in await ask(runtime, "No.\n", tool_choice=choice):
            assert (message["content"], reason) == ("No.\n", "stop")
            assert not calls_of(message)


@pytest.mark.parametrize(
    ("choice", "most", "reason"), [("required", None, "tool_calls"), (NAMED, 1, "stop")]
)
async def test_a_required_call_binds_the_answer(runtime, choice, most, reason):
    """
    To a list of calls; of a named tool to one, whose finish reason is that of OpenAI and vLLM.
    """
    text = '[{"name": "tap", "arguments": {"x": 1}}]'
    for message, found in await ask(runtime, text, tool_choice=choice):
        assert (calls_of(message), found) == ([("tap", '{"x": 1}')], reason)
    for asked in runtime.engine.asked:
        schema = json.loads(asked["grammar"].text)
        assert (schema["minItems"], schema.get("maxItems")) == (1, most)
        assert set(schema["$defs"]) == ({"tap"} if most else {"tap", "look"})


async def test_a_call_that_may_be_chosen_binds_nothing(runtime):
    """
    The control of the test above.
    """
    await ask(runtime, CALL, tool_choice="auto")
    assert [asked["grammar"] for asked in runtime.engine.asked] == [None, None]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": [REFUSED]}, "tools"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"stop_token_ids": [1]}, "stop_token_ids"),
    ],
)
async def test_a_required_call_can_not_be_bound_twice(runtime, change, param):
    """
    Nor to tools whose schemas can't be compiled.
    """
    body = {"tools": [TAP], "tool_choice": "required", **change}
    response = await runtime.chat("hi", **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


async def test_a_call_that_breaks_off_is_content_of_a_whole_answer(runtime):
    """
    A stream has begun it already, and its arguments are no JSON.
    """
    text = f"So.\n{BROKEN} End."
    (message, reason), (streamed, its_reason) = await ask(runtime, text)
    assert (message["content"], reason, its_reason) == (text, "stop", "stop")
    assert "tool_calls" not in message
    assert calls_of(streamed) == [("tap", '{"x": ')]
    assert streamed["content"] == "So.oops}}\n</tool_call> End."


async def test_an_answer_that_was_cut_says_so(runtime):
    """
    The finish reason stays length, whatever calls came before.
    """
    text = f"{CALL}\n" + CALL[:-20]
    (message, reason), (streamed, its_reason) = await ask(runtime, text, ending=FinishReason.LENGTH)
    assert calls_of(message) == [("tap", '{"x": 1}')]
    assert message["content"] == "\n" + CALL[:-20]
    assert (reason, its_reason) == ("length", "length")
    assert calls_of(streamed)[1] == ("tap", '{"')


async def test_an_answer_that_is_bound_is_a_list_of_calls():
    """
    Whatever form the model writes by itself; nothing in it is reasoning.
    """
    use = ToolUse((Tool("tap"), Tool("look")), "required")
    text = json.dumps([{"name": "tap", "arguments": {"s": "</think>"}}] * 2)
    form = AnswerForm(use, "hermes", is_in_reasoning=True, is_bound=True)
    message, reason = form.reader().whole(text, "stop")
    assert calls_of(message) == [("tap", '{"s": "</think>"}')] * 2
    assert (message["content"], reason) == (None, "tool_calls")
    reader = form.reader()
    deltas = [delta for char in text for delta in reader.feed(char)]
    names = [call["function"].get("name") for delta in deltas for call in delta["tool_calls"]]
    assert [name for name in names if name] == ["tap", "tap"]
    assert reader.close("stop") == ([], "tool_calls")


async def test_a_long_answer_is_split_in_another_thread(runtime, monkeypatch):
    """
    It takes a fifth of a second for 600,000 characters, in which health checks are answered.
    """
    threads = []
    whole = AnswerReader.whole

    def spy(*args):
        threads.append(threading.current_thread())
        return whole(*args)

    monkeypatch.setattr(AnswerReader, "whole", spy)
    text = "x" * LONG_ANSWER_CHARS
    for answer in (CALL, text + CALL):
        runtime.engine.will(answer)
        response = await runtime.chat("hi", tools=[TAP])
        (choice,) = response.json()["choices"]
        assert calls_of(choice["message"]) == [("tap", '{"x": 1}')]
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


async def test_a_stop_string_ends_a_call(runtime):
    """
    It is looked for in the text as the model writes it.
    """
    for message, reason in await ask(runtime, CALL, stop="</tool_call>"):
        assert (calls_of(message), reason) == ([("tap", '{"x": 1}')], "tool_calls")


async def test_each_answer_has_its_own_calls(runtime):
    """
    With n of two, and their deltas mixed.
    """
    for stream in (False, True):
        runtime.engine.will(CALL)
        runtime.engine.will("No.")
        response = await runtime.chat("hi", n=2, tools=[TAP], stream=stream)
        if not stream:
            first, second = response.json()["choices"]
            assert calls_of(first["message"]) == [("tap", '{"x": 1}')]
            assert second["message"]["content"] == "No."
            assert (first["finish_reason"], second["finish_reason"]) == ("tool_calls", "stop")
            continue
        choices = [data["choices"][0] for _, data in events_of(response)[:-1]]
        texts = {0: "", 1: ""}
        for choice in choices:
            delta = choice["delta"]
            texts[choice["index"]] += delta.get("content") or ""
            for call in delta.get("tool_calls", ()):
                texts[choice["index"]] += call["function"]["arguments"]
        assert texts == {0: '{"x": 1}', 1: "No."}


THINKING = "<think>\nShall I?\n</think>\n\n"


async def test_reasoning_stays_in_place_unless_it_is_asked_for(runtime):
    """
    With and without tools; calls within it are none.
    """
    thought = f"<think>\nI may {CALL}\n</think>\n\n"
    for message, reason in await ask(runtime, thought + CALL):
        assert message["content"].strip() == thought.strip()
        assert (calls_of(message), reason) == ([("tap", '{"x": 1}')], "tool_calls")
        assert "reasoning_content" not in message
    for message, _ in await ask(runtime, THINKING + "No.", tools=None):
        assert message["content"] == THINKING + "No."


async def test_reasoning_is_split_off(runtime):
    """
    With tools, without, and where there is none.
    """
    for tools in ([TAP], None):
        for message, _ in await ask(
            runtime, THINKING + "No.", tools=tools, separate_reasoning=True
        ):
            assert (message["reasoning_content"], message["content"]) == ("Shall I?", "No.")
    for message, reason in await ask(runtime, THINKING + CALL, separate_reasoning=True):
        assert (message["reasoning_content"], reason) == ("Shall I?", "tool_calls")
        assert not message["content"]
        assert calls_of(message) == [("tap", '{"x": 1}')]
    for message, _ in await ask(runtime, "No.", separate_reasoning=True):
        assert (message.get("reasoning_content"), message["content"]) == (None, "No.")


@pytest.mark.parametrize(
    ("end", "reasoning", "content"),
    [
        ("<think>\n", "a", "b"),
        ("<think>\n\n</think>\n\n", None, "a</think>b"),
        ("", None, "a</think>b"),
    ],
)
async def test_reasoning_may_have_begun_in_the_prompt(end, reasoning, content):
    """
    As templates of reasoning models write it, and end it where thinking is off.
    """

    class Template:
        def render(self, messages, **_):
            return "hi" + end

    runtime = Runtime(template=Template())
    for message, reason in await ask(runtime, "a</think>b", tools=None, separate_reasoning=True):
        assert (message.get("reasoning_content"), message["content"]) == (reasoning, content)
        assert reason == "stop"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["tap"]}, "tools[0]"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "x": 1}}]},
            "tools[0].function.x",
        ),
        ({"tools": [TAP, LOOK, TAP]}, "tools"),
        ({"tools": [TAP] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": NAMED}, "tool_choice"),
        ({"tools": [TAP], "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [TAP], "tool_choice": 5}, "tool_choice"),
        ({"tools": [TAP], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [TAP], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tools": [TAP], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"separate_reasoning": "yes"}, "separate_reasoning"),
    ],
)
async def test_an_invalid_field_is_400_and_named(runtime, body, param):
    """
    By its path in the body.
    """
    response = await runtime.chat("hi", **body)
    assert_is_error(response, 400, "invalid_request", retry_safe=False)
    assert response.json()["error"]["param"] == param


async def test_a_model_that_knows_no_tools_says_so(runtime):
    """
    400 by name; `none` asks for nothing.
    """
    runtime.serving.generator.tool_syntax = None
    response = await runtime.chat("hi", tools=[TAP])
    assert_is_error(response, 400, "tools_not_supported", retry_safe=False)
    error = response.json()["error"]
    assert (error["param"], "service.tool_parser" in error["message"]) == ("tools", True)
    runtime.engine.will("No.")
    response = await runtime.chat("hi", tools=[TAP], tool_choice="none")
    assert response.status_code == 200


async def test_calls_of_a_conversation_reach_the_template(runtime):
    """
    What clients add to them does not; a template of GLM-4 gets observations.
    """
    call = {"id": "c", "type": "function", "index": 0}
    call["function"] = {"name": "tap", "arguments": "{}", "parsed_arguments": None}
    answer = {"role": "assistant", "content": None, "tool_calls": [call], "parsed": None}
    messages = ["hi", answer, {"role": "tool", "tool_call_id": "c", "content": "21"}]
    seen = []
    template = runtime.serving.generator.prompts._template
    render = template.render

    def spy(messages, **kwargs):
        seen.append((json.loads(json.dumps(messages)), kwargs["tools"]))
        return render(messages, **kwargs)

    template.render = spy
    runtime.engine.will("a")
    assert (await runtime.chat(*messages, tools=[TAP, LOOK])).status_code == 200
    (_, sent, _), tools = seen[0]
    assert sent["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "tap", "arguments": "{}"}}
    ]
    assert "parsed" not in sent
    assert list(tools) == [TAP, LOOK]

    runtime.serving.generator.tool_syntax = ToolSyntax("glm", has_observations=True)
    runtime.engine.will("a")
    assert (await runtime.chat(*messages, tools=[TAP])).status_code == 200
    assert [message["role"] for message in seen[1][0]] == ["user", "assistant", "observation"]
    assert seen[1][0][1]["metadata"] == "tap"
