import json

import pytest

from deploy.host.protocol import Golden, GoldenFailure, GoldenResult, SlotStart
from deploy.host.sockets import HttpAnswer
from tests.unit.deploy.host.fakes import BUNDLE

PROMPTS = (
    {"prompt": "sun", "max_tokens": 4, "expected": "rises"},
    {"prompt": "rain", "max_tokens": 4, "expected": "falls"},
)


@pytest.fixture
def golden(leased, runtimes):
    leased.stage(BUNDLE, golden=PROMPTS)
    leased.call(SlotStart("green", BUNDLE))
    runtimes["green"].answers = {"sun": "rises", "rain": "falls"}
    return leased


def test_every_prompt_is_sent_at_temperature_0(golden, runtimes):
    """
    The slot's answers are compared with those of the bundle.
    """
    assert golden.call(Golden("green")) == GoldenResult(total=2, passed=2, failures=())
    bodies = [body for body, _ in runtimes["green"].requests]
    assert bodies[0] == {"prompt": "sun", "max_tokens": 4, "temperature": 0}


def test_another_answer_is_a_failure(golden, runtimes):
    """
    With its line, the expected and the actual answer.
    """
    runtimes["green"].answers["rain"] = "rises"

    result = golden.call(Golden("green"))

    assert (result.total, result.passed) == (2, 1)
    assert result.failures == (GoldenFailure(line=2, expected="falls", got="rises"),)


def test_only_a_line_feed_ends_a_line(leased, runtimes):
    """
    JSON leaves NEL, U+2028 and U+2029 in a text as they are.
    """
    text = "a\u0085b\u2028c\u2029d"
    leased.stage(BUNDLE, golden=({"prompt": text, "max_tokens": 4, "expected": text},))
    path = leased.layout.release(BUNDLE) / "golden.jsonl"
    path.write_text(
        json.dumps(json.loads(path.read_text()), ensure_ascii=False) + "\r\n", newline=""
    )
    leased.call(SlotStart("green", BUNDLE))
    runtimes["green"].answers = {text: text}

    assert leased.call(Golden("green")) == GoldenResult(total=1, passed=1, failures=())


CALL = {"name": "tap", "arguments": {"x": 1, "y": [True]}}
TOOLS = [{"type": "function", "function": {"name": "tap"}}]
CHATS = (
    {
        "messages": [{"role": "user", "content": "tap it"}],
        "tools": TOOLS,
        "max_tokens": 9,
        "expected": [CALL],
    },
    {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "expected": "hello"},
)


def message_with(*calls):
    """
    Return a message of the assistant with *calls*, each a name and JSON text.
    """
    functions = [{"name": name, "arguments": text} for name, text in calls]
    whole = [{"id": "c", "type": "function", "function": function} for function in functions]
    return {"content": None, "tool_calls": whole}


@pytest.fixture
def chats(leased, runtimes):
    leased.stage(BUNDLE, golden=CHATS)
    leased.call(SlotStart("green", BUNDLE))
    good = message_with(("tap", '{"y": [true], "x": 1}'))
    runtimes["green"].answers = {"tap it": good, "hi": "hello"}
    return leased


def test_a_conversation_is_asked_as_a_chat(chats, runtimes):
    """
    With its tools, at temperature 0; calls are compared by name and arguments, not by their ids.
    """
    assert chats.call(Golden("green")) == GoldenResult(total=2, passed=2, failures=())
    body = runtimes["green"].requests[0][0]
    asked = {key: value for key, value in CHATS[0].items() if key != "expected"}
    assert body == asked | {"temperature": 0}


@pytest.mark.parametrize(
    ("message", "got"),
    [
        (message_with(("tap", '{"x": 2, "y": [true]}')), '"x": 2'),
        (message_with(("tap", '{"x": 1, "y": [1]}')), '"y": [1]'),
        (message_with(("look", '{"x": 1, "y": [true]}')), "look"),
        (message_with(*[("tap", '{"x": 1, "y": [true]}')] * 2), "}, {"),
        (message_with(("tap", "{")), "an answer of another form"),
        (message_with(("tap", "[" * 100_000)), "an answer of another form"),
        ({"content": '[{"arguments": {"x": 1, "y": [true]}, "name": "tap"}]'}, "tap"),
        ({"content": "no"}, "no"),
        ({"content": None}, "None"),
        ({}, "an answer of another form"),
        ({"content": "a", "tool_calls": 5}, "an answer of another form"),
    ],
    ids=range(11),
)
def test_another_call_is_a_failure(chats, runtimes, message, got):
    """
    Other arguments, another tool, one more, a text in its place, or garbage.
    """
    runtimes["green"].answers["tap it"] = message

    result = chats.call(Golden("green"))

    assert result.passed == 1
    (failure,) = result.failures
    assert (failure.line, got in failure.got) == (1, True)
    assert failure.expected == '[{"arguments": {"x": 1, "y": [true]}, "name": "tap"}]'


def test_a_line_that_is_no_golden_prompt_is_refused(leased):
    """
    The bundle was built by something else.
    """
    leased.stage(BUNDLE, golden=({"messages": [], "max_tokens": 1, "expected": "x"},))
    leased.call(SlotStart("green", BUNDLE))
    assert "messages should be a list" in leased.refusal(Golden("green")).why


def test_an_error_is_a_failure(golden, runtimes):
    """
    A slot that answers 500 has not passed.
    """
    runtimes["green"].fails_with = 500

    result = golden.call(Golden("green"))

    assert result.passed == 0
    assert result.failures[0].got.startswith("error 500")


def test_a_silent_slot_is_a_failure(golden, runtimes):
    """
    No socket: no answer, not passed.
    """
    runtimes["green"].close()
    golden.layout.runtime_socket("green").unlink()

    assert "without an answer" in golden.call(Golden("green")).failures[0].got


@pytest.mark.parametrize("comment", [b"secrets", "clés".encode("latin-1")])
def test_the_api_token_of_the_host_is_sent(golden, runtimes, comment):
    """
    So the check works in a fleet that requires a token; a comment may be in another encoding.
    """
    golden.layout.etc.mkdir(parents=True, exist_ok=True)
    golden.layout.environment.write_bytes(b'# %b\nSLIPWAY_API_TOKENS="t0ken,other"\n' % comment)

    golden.call(Golden("green"))

    assert runtimes["green"].requests[0][1]["Authorization"] == "Bearer t0ken"
    assert "t0ken" not in golden.layout.journal.read_text()


def test_prompts_after_the_timeout_have_not_passed(golden, runtimes):
    """
    The timeout covers all of them together.
    """
    real = golden.system.steady_s
    golden.system.steady_s = lambda: real() + 5.0 * len(runtimes["green"].requests)

    result = golden.call(Golden("green", timeout_s=4))

    assert result.passed == 1
    assert "not asked" in result.failures[0].got


def test_a_slot_without_a_release_has_no_golden_prompts(leased):
    """
    The slot was never started.
    """
    assert leased.refusal(Golden("green")).kind == "PreconditionError"


@pytest.mark.parametrize("body", ["[" * 200_000, '{"text": 1e999}', "\ud800", "null", ""])
def test_a_hostile_answer_is_a_failed_prompt(golden, body):
    """
    Nesting without end, numbers without size, lone surrogates: not passed, and no exception.
    """
    golden.system.http = lambda *_, **__: HttpAnswer(200, body)

    result = golden.call(Golden("green"))

    assert (result.passed, len(result.failures) > 0) == (0, True)
    assert all(len(failure.got) <= 300 for failure in result.failures)
