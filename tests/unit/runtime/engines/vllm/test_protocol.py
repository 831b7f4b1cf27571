import json
from pathlib import Path

import pytest

from runtime.engines.base.sampling import SamplingParams, TokenLogprobs
from runtime.engines.vllm.protocol import (
    Gauges,
    StreamEvent,
    completion,
    read_context_tokens,
    read_event,
    read_gauges,
    refusal,
)
from runtime.structured import Grammar, GrammarKind

RECORDED = Path(__file__).parent / "recorded"
METRICS = (RECORDED / "vllm_metrics.txt").read_text()


def recorded_events(name):
    lines = (RECORDED / name).read_text().splitlines()
    return [
        read_event(line.removeprefix("data: ").encode()) for line in lines if line[:5] == "data:"
    ]


def event(**choice):
    document = {"token_ids": [7], "finish_reason": None} | choice
    return json.dumps({"choices": [document]}).encode()


def test_the_stop_token_of_a_recorded_answer_is_dropped():
    """
    vLLM sends it along; slipway's own engine does not.
    """
    assert recorded_events("vllm_stop.txt") == [
        StreamEvent([49]),
        StreamEvent([54]),
        StreamEvent([], "stop"),
        StreamEvent(),
    ]


def test_the_last_token_of_a_full_answer_stays():
    """
    Negative control of the test above: at max_tokens the last token is a normal one.
    """
    assert read_event(event(token_ids=[1, 17], finish_reason="length")) == StreamEvent(
        [1, 17], "length"
    )


def test_a_recorded_error_within_a_stream_is_read():
    """
    Some errors arrive after a 200, as an event.
    """
    first, _ = recorded_events("vllm_error.txt")
    assert first == StreamEvent(error="Token id 999 is out of vocabulary")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"choices": []}',
        event(token_ids=None),
        event(token_ids=["7"]),
        event(token_ids=[True]),
        b'{"choices": [{"token_ids": [7]}]}',
        b'{"error": "words"}',
    ],
)
def test_an_invalid_event_is_a_value_error(data):
    """
    One error for every way in which an event can be wrong.
    """
    with pytest.raises(ValueError):
        read_event(data)


def test_recorded_metrics_are_read_and_summed_over_engine_cores():
    """
    The gauges are from a real vLLM; each engine core has its own line.
    """
    assert read_gauges(METRICS) == Gauges(running=0, waiting=0, cache=0.0, steps=6013)
    two = METRICS + (
        'vllm:num_requests_running{engine="1",model_name="tiny"} 3.0\n'
        'vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.25\n'
    )
    assert read_gauges(two) == Gauges(running=3, waiting=0, cache=0.25, steps=6013)


def test_missing_gauges_are_named():
    """
    Without them, progress cannot be observed.
    """
    with pytest.raises(ValueError, match="num_requests_running and no vllm:num_requests_waiting"):
        read_gauges("python_info 1.0\n")


def test_the_context_is_read_from_the_list_of_models():
    """
    vLLM decides the longest request.
    """
    assert read_context_tokens((RECORDED / "vllm_models.json").read_bytes()) == 2100
    with pytest.raises(ValueError, match="max_model_len"):
        read_context_tokens(b'{"data": []}')


def test_a_seed_is_sent_only_if_there_is_one():
    """
    Without one, vLLM samples freely.
    """
    options = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9}
    plain = completion("lab", (1, 2), SamplingParams(**options))
    assert plain == {
        "model": "lab",
        "prompt": [1, 2],
        **options,
        "stream": True,
        "return_token_ids": True,
    }
    assert completion("lab", (1, 2), SamplingParams(**options, seed=0)) == plain | {"seed": 0}


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"top_k": 5}, {"top_k": 5}),
        ({"min_p": 0.1}, {"min_p": 0.1}),
        ({"presence_penalty": 1.0}, {"presence_penalty": 1.0}),
        ({"frequency_penalty": -1.0}, {"frequency_penalty": -1.0}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"logit_bias": ((5, 1.0),)}, {"logit_bias": {"5": 1.0}}),
        ({"stop_token_ids": (7,)}, {"stop_token_ids": (7,)}),
        ({"min_tokens": 2}, {"min_tokens": 2}),
        ({"ignore_eos": True}, {"ignore_eos": True}),
        ({"logprobs": 0}, {"logprobs": 0, "return_tokens_as_token_ids": True}),
    ],
)
def test_fields_are_passed_on_in_vllms_names(fields, sent):
    """
    And none that asks for nothing.
    """
    plain = completion("lab", (1, 2), SamplingParams(3))
    assert completion("lab", (1, 2), SamplingParams(3, **fields)) == plain | sent
    assert not plain.keys() & sent.keys()


def test_log_probabilities_are_read_by_token_id():
    """
    The likeliest first; the stop token has none.
    """
    choice = {
        "token_ids": [5, 9],
        "finish_reason": "stop",
        "logprobs": {
            "tokens": ["token_id:5", "token_id:9"],
            "token_logprobs": [-1.5, -0.1],
            "top_logprobs": [{"token_id:5": -1.5, "token_id:8": -0.5}, {"token_id:9": -0.1}],
        },
    }
    event = read_event(json.dumps({"choices": [choice]}).encode())
    assert event.tokens == [5]
    assert list(event.logprobs) == [TokenLogprobs(-1.5, ((8, -0.5), (5, -1.5)))]
    for wrong in ([], {"token_logprobs": [None]}, {"token_logprobs": [1], "top_logprobs": []}):
        broken = choice | {"logprobs": wrong}
        with pytest.raises(ValueError, match=r"Error|argument"):
            read_event(json.dumps({"choices": [broken]}).encode())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "too\\nlong"}}', "vLLM answered 400: too long"),
        (b"Bad Gateway", "vLLM answered 400: Bad Gateway"),
        (b"\xff", "vLLM answered 400: \ufffd"),
        (b'{"error": {"message": "' + b"x" * 9999 + b'"}}', "vLLM answered 400: xxx"),
    ],
)
def test_a_refusal_is_one_line(body, words):
    """
    vLLM's message if it has one, shortened to fit a line.
    """
    message = refusal(400, body)
    assert message.startswith(words)
    assert len(message) <= 300


@pytest.mark.parametrize(
    ("kind", "text", "passed"),
    [
        (GrammarKind.JSON, '{"type": "null"}', {"json": {"type": "null"}}),
        (GrammarKind.REGEX, "[a]", {"regex": "[a]"}),
        (GrammarKind.CHOICE, '["a", "b"]', {"choice": ["a", "b"]}),
        (GrammarKind.GRAMMAR, 'start: "a"', {"grammar": 'start: "a"'}),
    ],
)
def test_a_grammar_is_passed_on_in_vllms_names(kind, text, passed):
    """
    As the client sent it; without one the field is absent.
    """
    params = SamplingParams(4, grammar=Grammar(kind, text, "compiled"))
    assert completion("lab", [1], params)["structured_outputs"] == passed
    assert "structured_outputs" not in completion("lab", [1], SamplingParams(4))
