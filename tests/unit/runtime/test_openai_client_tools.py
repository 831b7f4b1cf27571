"""
OpenAI's own client calls tools: published chat templates, and an engine that plays what the models
write.
"""

import json

import httpx2
import openai
import pydantic
import pytest

from runtime.chat import load_chat_template
from runtime.server.answers import syntax_of
from runtime.server.generation import Generator
from tests.unit.runtime.chat.models import TEMPLATES, make_model
from tests.unit.runtime.fakes import CharCodec
from tests.unit.runtime.serving import VOCABULARY, Runtime

pytestmark = pytest.mark.anyio

ASKED = [{"role": "user", "content": "How high is the tide in Bremen and Kiel?"}]


class get_tide(pydantic.BaseModel):  # noqa: N801 - the client takes its name for the tool's
    """
    Height of the tide.
    """

    port: str
    days: int = 1


TOOL = openai.pydantic_function_tool(get_tide)
# What each model writes for one call, and between two.
WRITTEN = {
    "qwen2.5-instruct": (
        '<tool_call>\n{{"name": "get_tide", "arguments": {}}}\n</tool_call>',
        "\n",
    ),
    "qwen3": ('<tool_call>\n{{"name": "get_tide", "arguments": {}}}\n</tool_call>', "\n"),
    "glm-4-0414": ("get_tide\n{}", "<|assistant|>"),
    "glm-4.5": (
        "<tool_call>get_tide\n<arg_key>port</arg_key>\n<arg_value>{port}</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>{days}</arg_value>\n</tool_call>",
        "\n",
    ),
}


def written(model, *arguments):
    call, glue = WRITTEN[model]
    texts = [
        call.format(**each) if "{port}" in call else call.format(json.dumps(each))
        for each in arguments
    ]
    return glue.join(texts)


BREMEN, KIEL = {"port": "Bremen", "days": 2}, {"port": 'Ki"el', "days": 1}


class Asked:
    """
    A client of a runtime whose model is *model*.
    """

    def __init__(self, model, folder):
        source = (TEMPLATES / f"{model}.jinja").read_text(encoding="utf-8")
        self.model = model
        self.template = load_chat_template(make_model(folder / "m", template=source))
        self.runtime = Runtime()
        self.engine = self.runtime.engine
        self.runtime.serving.generator = Generator(
            self.engine,
            CharCodec(),
            self.runtime.settings.config.limits(8192, VOCABULARY),
            self.runtime.metrics.first_token,
            self.template,
            syntax_of("auto", self.template),
        )
        self.client = openai.AsyncOpenAI(
            base_url="http://runtime/v1",
            api_key="any",
            max_retries=0,
            http_client=httpx2.AsyncClient(
                transport=httpx2.ASGITransport(app=self.runtime.app), base_url="http://runtime"
            ),
        )

    async def create(self, messages=ASKED, **more):
        return await self.client.chat.completions.create(
            **{"model": "lab", "messages": messages, "tools": [TOOL]} | more
        )


@pytest.fixture(params=WRITTEN)
async def asked(request, tmp_path):
    asked = Asked(request.param, tmp_path)
    yield asked
    asked.template.close()
    asked.engine.done()


def arguments_of(calls):
    return [json.loads(call.function.arguments) for call in calls]


async def test_parallel_calls_and_their_results(asked):
    """
    The message goes back as the client has it, with a result for each call, and reaches the model.
    """
    asked.engine.will(written(asked.model, BREMEN, KIEL))
    answer = await asked.create()
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    calls = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["get_tide"] * 2
    assert arguments_of(calls) == [BREMEN, KIEL]
    assert "Height of the tide" in asked.engine.asked[0]["prompt"]

    results = [
        {"role": "tool", "tool_call_id": call.id, "content": text}
        for call, text in zip(calls, ("3 m", "0 m"), strict=True)
    ]
    for form in (choice.message, choice.message.model_dump()):
        asked.engine.will("3 m and 0 m.")
        last = await asked.create([*ASKED, form, *results])
        assert last.choices[0].message.content == "3 m and 0 m."
        assert last.choices[0].finish_reason == "stop"
        prompt = asked.engine.asked[-1]["prompt"]
        assert all(text in prompt for text in ("Bremen", "Ki", "3 m", "0 m", "get_tide"))


async def test_a_stream_has_the_arguments_as_they_come(asked):
    """
    The name with the id first, then parts of the arguments for each call.
    """
    asked.engine.will(written(asked.model, BREMEN, KIEL))
    calls, parts = {}, 0
    async for chunk in await asked.create(stream=True):
        (choice,) = chunk.choices
        for delta in choice.delta.tool_calls or ():
            if delta.id is not None:
                assert delta.index not in calls
                calls[delta.index] = [delta.function.name, ""]
            calls[delta.index][1] += delta.function.arguments
            parts += 1
    assert choice.finish_reason == "tool_calls"
    assert [name for name, _ in calls.values()] == ["get_tide"] * 2
    assert [json.loads(text) for _, text in calls.values()] == [BREMEN, KIEL]
    assert parts > len(calls)


async def test_the_streaming_helper_parses_arguments(asked):
    """
    It adds the deltas up, checks them and makes objects of the arguments; its message goes back.
    """
    asked.engine.will(written(asked.model, BREMEN, KIEL))
    async with asked.client.chat.completions.stream(
        model="lab", messages=ASKED, tools=[TOOL]
    ) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    message = final.choices[0].message
    assert [call.function.parsed_arguments for call in message.tool_calls] == [
        get_tide(**BREMEN),
        get_tide(**KIEL),
    ]
    for form in (message, message.model_dump()):
        asked.engine.will("So.")
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "3 m"}
        last = await asked.create([*ASKED, form, result])
        assert last.choices[0].message.content == "So."


async def test_a_text_is_a_text(asked):
    """
    Whole and as a stream.
    """
    asked.engine.will("I don't know.")
    answer = await asked.create(tool_choice="auto")
    assert answer.choices[0].message.content == "I don't know."
    assert answer.choices[0].message.tool_calls is None
    asked.engine.will("I don't know.")
    chunks = [chunk async for chunk in await asked.create(stream=True)]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert (text, chunks[-1].choices[0].finish_reason) == ("I don't know.", "stop")


async def test_reasoning_and_a_call(asked):
    """
    The client keeps reasoning_content, which it does not know.
    """
    asked.engine.will("<think>\nI look.\n</think>\n\n" + written(asked.model, BREMEN))
    answer = await asked.create(extra_body={"separate_reasoning": True})
    message = answer.choices[0].message
    assert (message.reasoning_content, message.content) == ("I look.", None)
    assert arguments_of(message.tool_calls) == [BREMEN]


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_request",
         "tools[0].function.name"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "invalid_request",
         "tool_choice"),
        ({"functions": [{"name": "f"}]}, "invalid_request", "functions"),
    ],
)  # fmt: skip
async def test_a_request_at_fault_is_a_bad_request(tmp_path, change, code, param):
    """
    With the field as the client's exception has it.
    """
    asked = Asked("qwen3", tmp_path)
    try:
        with pytest.raises(openai.BadRequestError) as caught:
            await asked.create(**change)
    finally:
        asked.template.close()
    assert (caught.value.code, caught.value.param) == (code, param)


async def test_a_model_whose_template_reads_no_tools_refuses_them(tmp_path):
    """
    As that of SmolLM2, or of GLM-4.1V.
    """
    for number, model in enumerate(("smollm2-instruct", "glm-4.1v-thinking")):
        asked = Asked(model, tmp_path / str(number))
        try:
            with pytest.raises(openai.BadRequestError) as caught:
                await asked.create()
        finally:
            asked.template.close()
        assert (caught.value.code, caught.value.param) == ("tools_not_supported", "tools")
