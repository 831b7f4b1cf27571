import json
from pathlib import Path

import pytest

from runtime.engines.base.sampling import SamplingParams
from runtime.engines.vllm.protocol import (
    Gauges,
    StreamEvent,
    completion,
    read_context_tokens,
    read_event,
    read_gauges,
    refusal,
)

RECORDED = Path(__file__).parent / "recorded"
METRICS = (RECORDED / "vllm_metrics.txt").read_text()


def recorded_events(name):
    lines = (RECORDED / name).read_text().splitlines()
    return [
        read_event(line.removeprefix("data: ").encode()) for line in lines if line[:5] == "data:"
    ]


def event(**choice):
    found = {"token_ids": [7], "finish_reason": None} | choice
    return json.dumps({"choices": [found]}).encode()


def test_a_recorded_answer_is_its_tokens_without_the_end_token():
    """
    vLLM gives the end token along; slipway's own engine does not, and no client should see it.
    """
    assert recorded_events("vllm_stop.txt") == [
        StreamEvent([49]),
        StreamEvent([54]),
        StreamEvent([], "stop"),
        StreamEvent(),
    ]


def test_the_last_token_of_a_full_answer_stays():
    """
    Negative control of the above: at max_tokens the last token is one like the others.
    """
    assert read_event(event(token_ids=[1, 17], finish_reason="length")) == StreamEvent(
        [1, 17], "length"
    )


def test_a_recorded_error_within_a_stream_is_read():
    """
    Some errors come after a 200, as an event.
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
def test_what_is_no_event_is_a_value_error(data):
    """
    One kind of error for all that can be wrong with an event.
    """
    with pytest.raises(ValueError):
        read_event(data)


def test_recorded_metrics_are_read_and_summed_over_engine_cores():
    """
    The gauges come from a real vLLM; with several engine cores each has its own line.
    """
    assert read_gauges(METRICS) == Gauges(running=0, waiting=0, cache=0.0, steps=6013)
    two = METRICS + (
        'vllm:num_requests_running{engine="1",model_name="tiny"} 3.0\n'
        'vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.25\n'
    )
    assert read_gauges(two) == Gauges(running=3, waiting=0, cache=0.25, steps=6013)


def test_metrics_without_the_gauges_are_named():
    """
    A vLLM that does not say what it does can't be watched.
    """
    with pytest.raises(ValueError, match="num_requests_running and no vllm:num_requests_waiting"):
        read_gauges("python_info 1.0\n")


def test_the_recorded_list_of_models_says_the_context():
    """
    What a request may have is vLLM's to say.
    """
    assert read_context_tokens((RECORDED / "vllm_models.json").read_bytes()) == 2100
    with pytest.raises(ValueError, match="max_model_len"):
        read_context_tokens(b'{"data": []}')


def test_a_seed_is_sent_only_where_there_is_one():
    """
    Without a seed vLLM draws as it likes.
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
    vLLM's words where it has some, and never more than fits into a line.
    """
    found = refusal(400, body)
    assert found.startswith(words)
    assert len(found) <= 300
