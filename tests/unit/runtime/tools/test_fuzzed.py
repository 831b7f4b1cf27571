"""
Whatever a model writes: the same events however it is split, and nothing lost.
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.tools import ReasoningSplitter, put_together
from tests.unit.runtime.tools.forms import TOOLS, joined, parse, raw_of, split

NAMES = ("hermes", "llama3_json", "json", "glm")
# Pieces that texts of calls are made of, and what breaks them.
PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<|python_tag|>", "<|assistant|>", "<arg_key>", "</arg_key>",
     "<arg_value>", "</arg_value>", '{"name": "tap", "arguments": ', '{"name": "get_weather"',
     ', "parameters": {', '"arguments"', "tap", "tap\n", "get_weather\n", "city", "days", "{", "}",
     "[", "]", ",", ";", ":", '"', "\\", "\\u00e9", "\\ud83d", "1", "-", "true", "null", " ", "\n",
     "<", "<t", "</", "é", "\x07", "{}", '{"x": [1, {"y": "}"}]}', '"}', "<think>", "</think>"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=40).map("".join)
SIZES = st.lists(st.integers(1, 12), max_size=60)
ARGUMENTS = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ),
    max_size=4,
)
CALLS = st.lists(
    st.tuples(st.sampled_from([tool.name for tool in TOOLS]), ARGUMENTS), min_size=1, max_size=3
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, sizes=SIZES, is_cut=st.booleans())
def test_a_split_changes_nothing_and_nothing_is_lost(name, text, sizes, is_cut):
    """
    The events of the parts are those of the whole; arguments of an ended call are an object.
    """
    whole = parse(name, text, is_cut=is_cut)
    parts = parse(name, text, size=sizes, is_cut=is_cut)
    assert joined(parts) == joined(whole)
    assert raw_of(whole) == raw_of(parts) == text
    answer = put_together(parts)
    assert answer == put_together(whole)
    for call in answer.calls:
        assert isinstance(json.loads(call.arguments.encode()), dict)
    if not answer.calls and "<|assistant|>" not in text:  # which is dropped, as without tools
        assert answer.content == text


def _hermes(calls, ascii):
    texts = [json.dumps({"name": n, "arguments": a}, ensure_ascii=ascii) for n, a in calls]
    return "".join(f"<tool_call>\n{text}\n</tool_call>\n" for text in texts)


def _bare(calls, ascii, key="arguments", glue="; "):
    return glue.join(json.dumps({"name": n, key: a}, ensure_ascii=ascii) for n, a in calls)


WRITERS = {
    "hermes": _hermes,
    "llama3_json": lambda calls, ascii: _bare(calls, ascii, "parameters"),
    "json": lambda calls, ascii: f"[{_bare(calls, ascii, glue=', ')}]",
    "glm": lambda calls, ascii: "<|assistant|>".join(
        f"{name}\n{json.dumps(arguments, ensure_ascii=ascii)}" for name, arguments in calls
    ),
}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(calls=CALLS, ascii=st.booleans(), sizes=SIZES)
def test_calls_are_read_as_they_were_written(name, calls, ascii, sizes):
    """
    With any arguments: braces and marks in strings, escapes, nesting.
    """
    answer = put_together(parse(name, WRITERS[name](calls, ascii), size=sizes))
    assert [(call.name, json.loads(call.arguments)) for call in answer.calls] == calls
    assert answer.content == ""


def _glm_text(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@settings(max_examples=30, deadline=None)
@given(
    city=st.text().filter(lambda text: "</arg_value>" not in text),
    days=st.integers(),
    more=st.none() | st.booleans() | st.lists(st.integers(), max_size=3),
    sizes=SIZES,
)
def test_calls_of_glm_are_read_as_its_template_writes_them(city, days, more, sizes):
    """
    Strings as they are, other values as JSON.
    """
    arguments = {"city": city, "days": days, "more": more}
    parts = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{_glm_text(value)}</arg_value>\n"
        for key, value in arguments.items()
    )
    text = f"<tool_call>get_weather\n{parts}</tool_call>"
    (call,) = put_together(parse("glm", text, size=sizes)).calls
    assert json.loads(call.arguments) == arguments


@settings(max_examples=60, deadline=None)
@given(
    text=st.lists(st.sampled_from(["<think>", "</think>", "<", "</th", " ", "\n", "a", "ink>"]))
    .map("".join),
    sizes=SIZES,
    is_inside=st.booleans(),
)  # fmt: skip
def test_reasoning_is_split_the_same_way_however_the_text_is(text, sizes, is_inside):
    """
    Nothing is lost either.
    """

    def run(parts):
        splitter, events = ReasoningSplitter(is_inside=is_inside), []
        for part in parts:
            events += splitter.feed(part)
        return events + splitter.close()

    assert joined(run(split(text, sizes))) == joined(run([text]))
    assert raw_of(run(split(text, sizes))) == text


@pytest.mark.parametrize("name", NAMES)
def test_the_work_grows_with_the_text(name):
    """
    Characters that a parser copies, counted: texts of marks alone, whole and in parts.
    """
    pieces = ["<tool_call>", "<tool_call>{", '<tool_call>{"', " ", "<|python_tag|>{", '{"a":"',
              "<|assistant|>", "tap\n", "<tool_call>tap<arg_key>", "<"]  # fmt: skip

    class Counted(str):
        read = 0

        def __getitem__(self, key):
            part = Counted(super().__getitem__(key))
            Counted.read += len(part)
            return part

        def __add__(self, other):
            return Counted(super().__add__(other))

        def __radd__(self, other):
            return Counted(other + str(self))

    for piece in pieces:
        costs = []
        for length in (20_000, 40_000):
            Counted.read = 0
            parse(name, Counted(piece * (length // len(piece))), size=None)
            costs.append(Counted.read)
        assert costs[1] < 2.5 * costs[0], piece
