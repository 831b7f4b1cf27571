"""
OpenAI's own client against `python -m runtime` with a model of the lab.
"""

import json
import os
import signal
from pathlib import Path

import httpx2
import openai
import pytest

from runtime.engines.base.protocol import FinishReason
from runtime.server.errors import error_response
from runtime.server.failures import failure
from tests.unit.runtime.started import DEADLINE_S, Started, closing, until

ASKED = [{"role": "user", "content": "The slipway is"}]
SAID = " where ships meet the sea."
GREEDY = {"model": "lab", "temperature": 0, "max_tokens": 16}
TOKEN = "one"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory, lab_model):
    """
    A ready runtime that wants a token.
    """
    folder = tmp_path_factory.mktemp("openai")
    release = (
        "version: v1.0.0\nmodel_name: lab\npooling: mean\nrequest_log: true\nlog_level: error\n"
    )
    (folder / "blue").mkdir()
    # The warm-up is a chat.
    golden = {"messages": ASKED, "max_tokens": 8, "expected": SAID}
    (folder / "blue" / "golden.jsonl").write_text(json.dumps(golden) + "\n")
    with closing(
        Started(
            folder / "blue",
            model=lab_model,
            release=release,
            name="runtime.sock",
            env={"SLIPWAY_API_TOKENS": TOKEN},
        )
    ) as runtime:
        runtime.messages_until("READY=1")
        runtime.drain()
        yield runtime


def make_client(runtime, key=TOKEN, timeout=DEADLINE_S):
    transport = httpx2.HTTPTransport(uds=str(runtime.socket))
    return openai.OpenAI(
        base_url="http://runtime/v1",
        api_key=key,
        max_retries=0,
        timeout=timeout,
        http_client=httpx2.Client(transport=transport),
    )


@pytest.fixture
def client(runtime):
    with make_client(runtime) as client:
        yield client


def test_only_the_api_process_has_the_tokens(runtime, client):
    """
    Neither the engine nor a process that reads what clients and models write.
    """
    client.chat.completions.create(messages=ASKED, **GREEDY)
    pid = runtime.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    environments = {one: Path(f"/proc/{one}/environ").read_bytes() for one in (str(pid), *children)}
    assert len(children) >= 2
    assert [one for one, its in environments.items() if b"SLIPWAY_API_TOKENS=" in its] == [str(pid)]


def test_the_request_log_has_each_request_at_any_log_level(runtime, client):
    """
    It is asked for by a key of its own; other lines below the level are not written.
    """
    client.models.list()
    until(lambda: "route=/v1/models code=200" in runtime.logged(), "the request's line")
    assert "runtime.ready" not in runtime.logged()


# Answers


def test_chat(client):
    """
    The facts of the model, with the usage.
    """
    answer = client.chat.completions.create(messages=ASKED, **GREEDY)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", SAID)
    assert (choice.finish_reason, choice.index) == ("stop", 0)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert (answer.object, answer.model) == ("chat.completion", "lab")


def test_chat_in_parts_without_a_bound(client):
    """
    Content as a list; max_tokens absent: the model ends by itself.
    """
    parts = [{"type": "text", "text": text} for text in ("The slipway", " is")]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "The keel is"},
        {"role": "assistant", "content": "the spine of a ship."},
        {"role": "user", "content": parts},
    ]
    answer = client.chat.completions.create(model="lab", messages=messages, temperature=0)
    assert answer.choices[0].message.content == SAID


def test_an_answer_can_be_sent_back(client):
    """
    As applications do: the message of the client's answer is the next request's message.
    """
    message = client.chat.completions.create(messages=ASKED, **GREEDY).choices[0].message
    for form in (message, message.model_dump()):
        messages = [*ASKED, form, *ASKED]
        answer = client.chat.completions.create(messages=messages, **GREEDY)
        assert answer.choices[0].message.content == SAID


def test_chat_stream_with_usage(client):
    """
    Deltas, a finish reason, and the usage last.
    """
    options = {"include_usage": True}
    *chunks, last = client.chat.completions.create(
        messages=ASKED, stream=True, stream_options=options, **GREEDY
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAID
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (last.choices, last.usage.completion_tokens > 3) == ([], True)


def test_the_streaming_helper_of_the_client(client):
    """
    It adds up the chunks and checks them.
    """
    with client.chat.completions.stream(messages=ASKED, **GREEDY) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == SAID


def test_several_sampled_answers(client):
    """
    The same seed gives the same answers, whole and streamed.
    """
    asked = {"model": "lab", "messages": ASKED, "n": 3, "seed": 7, "max_tokens": 8}
    first, second = (
        [c.message.content for c in client.chat.completions.create(**asked).choices]
        for _ in range(2)
    )
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(stream=True, **asked):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
    assert first == second == texts


def test_completions(client):
    """
    Text and token ids, one and many, with echo.
    """
    answer = client.completions.create(prompt="The slipway is", echo=True, **GREEDY)
    assert answer.choices[0].text == "The slipway is" + SAID
    tokens = client.post(
        "http://runtime/tokenize", body={"prompt": "The slipway is"}, cast_to=object
    )
    prompts = [tokens["tokens"], "The keel is"]
    answer = client.completions.create(prompt=[tokens["tokens"]] * 2, **GREEDY)
    assert [choice.text for choice in answer.choices] == [SAID, SAID]
    stream = client.completions.create(prompt=tokens["tokens"], stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in stream) == SAID
    assert len(prompts) == 2


def test_log_probabilities(client):
    """
    Whole, streamed and of a completion: the texts of the tokens are the answer.
    """
    asked = {"messages": ASKED, "logprobs": True, "top_logprobs": 2} | GREEDY
    answer = client.chat.completions.create(**asked).choices[0]
    content = answer.logprobs.content
    assert "".join(each.token for each in content) == answer.message.content == SAID
    assert bytes(byte for each in content for byte in each.bytes).decode() == SAID
    for each in content:
        assert each.top_logprobs[0].token == each.token
        assert each.logprob == each.top_logprobs[0].logprob <= 0
        assert len(each.top_logprobs) == 2

    streamed = []
    for chunk in client.chat.completions.create(stream=True, **asked):
        logprobs = chunk.choices[0].logprobs
        streamed += logprobs.content if logprobs else []
    assert streamed == content

    asked = {"prompt": "The slipway is", "logprobs": 2} | GREEDY
    choice = client.completions.create(**asked).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text == SAID
    pairs = zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True)
    assert all(choice.text[at:].startswith(token) for at, token in pairs)
    assert [len(top) for top in choice.logprobs.top_logprobs] == [2] * len(choice.logprobs.tokens)


def test_sampling_fields(client):
    """
    A bias against the first token gives another answer; min_tokens goes past its end.
    """
    answer = client.completions.create(prompt="The slipway is", logprobs=0, **GREEDY)
    body = {"prompt": SAID}
    (first, *_) = client.post("http://runtime/tokenize", body=body, cast_to=object)["tokens"]
    bias = {"logit_bias": {str(first): -100}}
    other = client.completions.create(prompt="The slipway is", **bias, **GREEDY)
    assert other.choices[0].text != answer.choices[0].text == SAID
    more = {"extra_body": {"min_tokens": 16, "top_k": 3, "repetition_penalty": 1.05}}
    longer = client.completions.create(prompt="The slipway is", **more, **GREEDY)
    assert longer.usage.completion_tokens == 16 > answer.usage.completion_tokens


def test_several_answers_of_one_prompt_compute_it_once(client):
    """
    The usage counts the prompt once, and what of it was in the cache.
    """
    prompt = "The slipway is where ships meet the sea. " * 15
    answer = client.completions.create(model="lab", prompt=prompt, n=4, max_tokens=2, seed=1)
    usage = answer.usage
    assert usage.prompt_tokens_details.cached_tokens == 0
    again = client.completions.create(model="lab", prompt=prompt, n=4, max_tokens=2, seed=1)
    assert 0 < again.usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    assert again.usage.prompt_tokens == usage.prompt_tokens
    assert [c.text for c in again.choices] == [c.text for c in answer.choices]


def test_models(client):
    """
    The list, one by its name, and the context.
    """
    (model,) = client.models.list()
    assert (model.id, model.max_model_len) == ("lab", 256)
    assert client.models.retrieve("lab").id == "lab"


async def _ask_async(runtime):
    transport = httpx2.AsyncHTTPTransport(uds=str(runtime.socket))
    async with openai.AsyncOpenAI(
        base_url="http://runtime/v1",
        api_key=TOKEN,
        timeout=DEADLINE_S,
        http_client=httpx2.AsyncClient(transport=transport),
    ) as client:
        answer = await client.chat.completions.create(messages=ASKED, **GREEDY)
        stream = await client.chat.completions.create(messages=ASKED, stream=True, **GREEDY)
        streamed = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return answer.choices[0].message.content, "".join(streamed)


@pytest.mark.anyio
async def test_the_async_client(runtime):
    """
    Whole and as a stream.
    """
    assert await _ask_async(runtime) == (SAID, SAID)


# Errors


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"max_tokens": 4000}, "context_length_exceeded", "messages"),
        ({"temperature": 3}, "invalid_request", "temperature"),
        ({"presence_penalty": 2.5}, "invalid_request", "presence_penalty"),
        ({"logit_bias": {"4095": 1}}, "unknown_token", "logit_bias"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            "tools_not_supported",
            "tools",
        ),
        ({"tool_choice": "required"}, "invalid_request", "tool_choice"),
        ({"extra_body": {"guided_regex": "a"}}, "invalid_request", "guided_regex"),
        ({"messages": [{"role": "system", "content": "x"}]}, "chat_template_refused", "messages"),
    ],
)
def test_a_request_at_fault_is_a_bad_request(client, change, code, param):
    """
    The client's exception has the message, the code and the field.
    """
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"messages": ASKED} | GREEDY | change)
    error = caught.value
    assert (error.status_code, error.code, error.param) == (400, code, param)
    assert error.type == "invalid_request_error"
    assert error.request_id == error.body["request_id"]
    if code == "chat_template_refused":
        assert "The last message must be of the user." in error.message


def test_a_token_that_the_model_does_not_have(client):
    """
    A request of its own error; the next one is answered.
    """
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt=[4095], **GREEDY)
    assert (caught.value.code, caught.value.param) == ("unknown_token", "prompt")
    assert client.completions.create(prompt="The slipway is", **GREEDY).choices[0].text == SAID


def test_another_model_is_not_found(client):
    """
    In a request and by its name.
    """
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(messages=ASKED, **GREEDY | {"model": "gpt-9"})
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("zai-org/GLM")


def test_embeddings_of_a_decoder(client):
    """
    Of length 1, in the order of the texts; the client asks for base64 by itself.
    """
    answer = client.embeddings.create(model="lab", input=["a sea", "a ship", "a sea"])
    first, second, third = (each.embedding for each in answer.data)
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-5)
    assert first == third != second
    assert answer.usage.total_tokens == answer.usage.prompt_tokens > 0


def test_a_wrong_key_is_an_authentication_error(runtime):
    """
    Before the body is read.
    """
    with make_client(runtime, key="two") as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(messages=ASKED, **GREEDY)


@pytest.mark.parametrize(
    ("ending", "sent"), [(FinishReason.DIED, 1), (FinishReason.EXPIRED, 1), (FinishReason.ERROR, 3)]
)
def test_what_may_have_ended_an_engine_is_not_repeated(ending, sent):
    """
    The client repeats every other 5xx twice by itself.
    """
    requests = []

    def answer(request):
        requests.append(request)
        status, headers, body = error_response(failure(ending, ""), "req-1")
        return httpx2.Response(status, headers=headers | {"retry-after-ms": "1"}, content=body)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    client = openai.OpenAI(base_url="http://runtime/v1", api_key=TOKEN, http_client=http)
    with client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="lab", messages=ASKED)
    assert len(requests) == sent


def test_a_timeout_of_the_client(runtime):
    """
    Its request is cancelled; the runtime goes on.
    """
    # The runtime cannot answer first, nor say that the time is over: it is told of a longer one.
    longer = {"x-stainless-read-timeout": "600"}
    os.kill(runtime.engine_pid, signal.SIGSTOP)
    try:
        with make_client(runtime, timeout=0.1) as client, pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(messages=ASKED, extra_headers=longer, **GREEDY)
    finally:
        os.kill(runtime.engine_pid, signal.SIGCONT)
    with make_client(runtime) as client:
        assert client.models.retrieve("lab").id == "lab"
