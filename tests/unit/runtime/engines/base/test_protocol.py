import pytest

from runtime.contract.engine_options import EngineOptions
from runtime.engines.base.protocol import (
    Cancel,
    Embed,
    EngineReport,
    FinishReason,
    Load,
    Loaded,
    LoadFailed,
    Submit,
    Swap,
    decode_from_engine,
    decode_to_engine,
    encode,
)
from runtime.engines.base.sampling import SamplingParams
from tests.unit.runtime.requests import make_request

LOAD = Load("/m", 1.0, EngineOptions(max_batch_requests=8, vllm_args=("--x", "1")), [7])
FULL_REPORT = EngineReport(
    [[1, 42]], [], 1, 0, 2, 7, cached=[[1, 16]], logprobs=[[1, -0.5, [[42, -0.5]]]]
)
REPORT = EngineReport(
    [[1, 42]],
    [[2, FinishReason.STOP, ""]],
    running=1,
    waiting=0,
    batch=2,
    steps=7,
    vectors=[[3, "AACAPw=="]],
)


@pytest.mark.parametrize(
    "message",
    [
        LOAD,
        make_request(3, [1, 2], 8, 30.0, 0.7, 0.9, 5),
        Cancel(3),
        Embed(4, [5], 1.0),
        Swap("/m2"),
        Submit(4, [1], SamplingParams(2), 3.0, prefix_of=0),
    ],
)
def test_messages_to_the_engine_round_trip(message):
    """
    One line per message, and the same value at the other end.
    """
    line = encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_to_engine(line) == message


@pytest.mark.parametrize(
    "message",
    [
        Loaded(256, 700, 10, 0.5, 3, [2], False),
        LoadFailed("what\n", "why", "fix", True),
        REPORT,
        FULL_REPORT,
    ],
)
def test_messages_from_the_engine_round_trip(message):
    """
    One line per message, for any text in it.
    """
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode_from_engine(line) == message


def test_a_message_in_the_wrong_direction_raises():
    """
    It is a bug of ours.
    """
    with pytest.raises(AssertionError):
        decode_to_engine(encode(REPORT))
    with pytest.raises(AssertionError):
        decode_from_engine(encode(LOAD))


def test_an_empty_report_is_a_heartbeat():
    """
    A step, a token or an end is news; otherwise the report only shows that the loop runs.
    """
    assert EngineReport([], [], 0, 3, 0, 7).is_beat
    assert not REPORT.is_beat
