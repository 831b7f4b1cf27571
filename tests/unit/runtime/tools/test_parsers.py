"""
The forms in which models write calls.
"""

import pytest

from runtime.tools import Tool
from runtime.tools.call_object import MAX_HELD
from tests.unit.runtime.tools.forms import call, joined, parse, raw_of, said

BERN = '{"city": "Bern"}'
NASTY = r'{"city": "a}\"]</tool_call>{\u00e9\\", "more": {"x": [1, {"y": "}{"}]}}'

CASES = {
    "hermes": [
        ("Hello.", said("Hello.")),
        (
            f'<tool_call>\n{{"name": "get_weather", "arguments": {BERN}}}\n</tool_call>',
            call(0, "get_weather", BERN),
        ),
        (
            f'<tool_call>{{"name": "get_weather", "arguments": {NASTY}}}</tool_call>',
            call(0, "get_weather", NASTY),
        ),
        (
            f'Let me look.\n\n<tool_call>\n{{"name": "get_weather", "arguments": {BERN}}}\n'
            '</tool_call>\n<tool_call>\n{"name": "tap", "arguments": {"x": 1}}\n</tool_call>\n',
            said("Let me look.") + call(0, "get_weather", BERN) + call(1, "tap", '{"x": 1}'),
        ),
        (
            f'<tool_call>{{"arguments": {BERN}, "id": 7, "name": "get_weather"}}</tool_call>',
            call(0, "get_weather", BERN),
        ),
        (
            '<tool_call>{"name": "tap", "arguments": "{\\"x\\": \\"\\\\n\\"}"}</tool_call>',
            call(0, "tap", '{"x": "\\n"}'),
        ),
        ('<tool_call>{"name": "tap", "arguments": null}</tool_call>', call(0, "tap", "{}")),
        ('<tool_call>{"name": "tap"}</tool_call>', call(0, "tap", "{}")),
        ('<tool_call>{"name": "tap", "arguments": {}}', call(0, "tap", "{}")),
        (
            '<tool_call>{"name": "tap", "arguments": {}}</tool_call> Done.',
            call(0, "tap", "{}") + said(" Done."),
        ),
        (
            '<tool_call>\n<tool_call>{"name": "tap", "arguments": {}}</tool_call>',
            said("<tool_call>") + call(0, "tap", "{}"),
        ),
    ],
    "llama3_json": [
        ("Hello {", said("Hello {")),
        (f'{{"name": "get_weather", "parameters": {BERN}}}', call(0, "get_weather", BERN)),
        (f'\n{{"name": "get_weather", "parameters": {BERN}}}\n', call(0, "get_weather", BERN)),
        (
            f'<|python_tag|>{{"name": "get_weather", "parameters": {NASTY}}}',
            call(0, "get_weather", NASTY),
        ),
        (
            f'{{"name": "get_weather", "parameters": {BERN}}}; {{"name": "tap"}}',
            call(0, "get_weather", BERN) + call(1, "tap", "{}"),
        ),
        (
            'I will tap.<|python_tag|>{"name": "tap", "arguments": {}}',
            said("I will tap.") + call(0, "tap", "{}"),
        ),
        ("<|python_tag|>print(1)", said("<|python_tag|>print(1)")),
        ('{"answer": 42}', said('{"answer": 42}')),
    ],
    "json": [
        (f'{{"name": "get_weather", "arguments": {BERN}}}', call(0, "get_weather", BERN)),
        (
            f'[{{"name": "get_weather", "arguments": {NASTY}}}, {{"name": "tap"}}]',
            call(0, "get_weather", NASTY) + call(1, "tap", "{}"),
        ),
        ("[1, 2]", said("[1, 2]")),
        ("[]", said("[]")),
        ('Say {"name": "tap"}', said('Say {"name": "tap"}')),
        ('<|python_tag|>{"name": "tap"}', said('<|python_tag|>{"name": "tap"}')),
    ],
    "glm": [
        ("Hello.", said("Hello.")),
        (f"get_weather\n{BERN}", call(0, "get_weather", BERN)),
        (f"\nget_weather \n {NASTY}", call(0, "get_weather", NASTY)),
        (
            f"get_weather\n{BERN}<|assistant|>tap\n{{}}",
            call(0, "get_weather", BERN) + call(1, "tap", "{}"),
        ),
        ("get_weather\nis a tool.", said("get_weather\nis a tool.")),
        ("tap_all\n{}", said("tap_all\n{}")),
        (
            "Sure.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n"
            "<tool_call>tap</tool_call>",
            said("Sure.")
            + call(0, "get_weather", '{"city": "Bern", "days": 3}')
            + call(1, "tap", "{}"),
        ),
        (
            "<tool_call>get_weather<arg_key>city</arg_key><arg_value>42</arg_value>"
            "<arg_key>more</arg_key><arg_value> [1, {}] </arg_value></tool_call>",
            call(0, "get_weather", '{"city": "42", "more": [1, {}]}'),
        ),
        (
            '<tool_call>get_weather<arg_key>city</arg_key><arg_value>a"\n\\<tool_call>\x07</arg_value>'
            "<arg_key>more</arg_key><arg_value>plain text</arg_value></tool_call>",
            call(
                0,
                "get_weather",
                r'{"city": "a\"\n\\<tool_call>\u0007", "more": "plain text"}',
            ),
        ),
        (
            "<tool_call>get_weather<arg_key>unit</arg_key><arg_value>null</arg_value></tool_call>",
            call(0, "get_weather", '{"unit": null}'),
        ),
        (
            "<tool_call>get_weather<arg_key>unit</arg_key><arg_value>7</arg_value></tool_call>",
            call(0, "get_weather", '{"unit": "7"}'),
        ),
        (
            "<tool_call>tap<arg_key>x</arg_key><arg_value>1</arg_value>",
            call(0, "tap", '{"x": 1}'),
        ),
    ],
}  # fmt: skip
ALL = [(name, *case) for name, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("name", "text", "expected"), ALL, ids=range(len(ALL)))
def test_calls_of_each_form(name, text, expected):
    """
    Whole, character by character and in threes; no character is lost.
    """
    for size in (None, 1, 3):
        events = parse(name, text, size=size)
        assert joined(events) == expected
        assert raw_of(events) == text


NONE = {
    "hermes": [
        "Use <tool_call> for it.",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": ["tap"], "arguments": {}}</tool_call>',
        '<tool_call>{"name": "tap", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "tap", "arguments": "[1]"}</tool_call>',
        '<tool_call>{"name": "tap", "arguments": "\\u007b"}</tool_call>',
        '<tool_call>{"name": "tap", "arguments": "{\\"x\\": \\"\\ud800\\"}"}</tool_call>',
        '<tool_call>{"name": "tap", "other": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "tap", "name": "tap", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": tap}</tool_call>',
        '<tool_call>{"name": "tap"',
        "<tool_call>",
        "<tool_ca",
        "\n \n",
        "",
    ],
    "llama3_json": [
        '{"name": "Ann", "parameters": {}}',
        '{"name": "tap", "age": 5}',
        '{"name": "tap", "parameters": 5}',
        '{"name": "ta',
        "<|python_tag|>",
        "<|python",
        "; {}",
    ],
    "json": ['{"name": "Ann"}', "[[]]", "{", "["],
    "glm": [
        "<tool_call>unknown<arg_key>x</arg_key><arg_value>1</arg_value></tool_call>",
        "<tool_call>tap me</tool_call>",
        "<tool_call>tap",
        "<tool_call>tap<arg_k",
        "<tool_call>tap<other>",
        "tap\n",
        "tap",
        "tap {}",
        "tap\n[1]",
        "ta",
    ],
}
NO_CALLS = [(name, text) for name, texts in NONE.items() for text in texts]


@pytest.mark.parametrize(("name", "text"), NO_CALLS, ids=range(len(NO_CALLS)))
def test_what_is_no_call_is_content(name, text):
    """
    As it was written, white space at its end included.
    """
    for size in (None, 1):
        assert joined(parse(name, text, size=size)) == (said(text) if text else [])


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("hermes", '<tool_call>{"name": "tap", "arguments": {"x": 1', '{"x": 1'),
        ("hermes", '<tool_call>{"name": "tap", "arguments": {"x": oops}}', '{"x": '),
        ("llama3_json", '{"name": "tap", "parameters": {"x"', '{"x"'),
        ("glm", 'tap\n{"x": "', '{"x": "'),
        ("glm", "<tool_call>tap<arg_key>x</arg_key><arg_value>1</arg_value>-", '{"x": 1'),
        ("glm", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Be", '{"city": "Be'),
        ("glm", "<tool_call>tap<arg_key>x</arg_key><arg_value>12", '{"x": '),
        ("glm", "<tool_call>tap<arg_key>x</arg_key>1", ""),
    ],
)  # fmt: skip
def test_a_call_that_breaks_off_is_said_to_have(name, text, arguments):
    """
    It had begun, so a stream has it already; what follows it is content.
    """
    for size in (None, 1):
        events = parse(name, text, size=size)
        seen = joined(events)
        assert seen[0] == ("call 0", "get_weather" if "get_w" in text else "tap")
        assert ("end 0", False) in seen
        assert dict(seen).get("arguments 0", "") == arguments
        assert raw_of(events) == text


UNIT = {"$ref": "#/$defs/a~1b"}
LOOP = {"anyOf": [{"$ref": "#/$defs/loop"}] * 30}


@pytest.mark.parametrize(
    ("schema", "value", "argument"),
    [
        (UNIT, "1", '"1"'),
        ({"allOf": [{"description": "Unit."}, UNIT]}, "1", '"1"'),
        ({"anyOf": [UNIT, {"type": "null"}]}, "true", '"true"'),
        ({"anyOf": [UNIT, {"type": "null"}]}, "null", "null"),
        ({"$ref": "#/$defs/count"}, "1", "1"),
        ({"$ref": "#/$defs/none"}, "1", "1"),
        ({"$ref": "other.json"}, "1", "1"),
        ({"$ref": "#/$defs/loop"}, "1", "1"),
    ],
)
def test_a_value_of_glm_has_the_type_that_a_reference_leads_to(schema, value, argument):
    """
    As pydantic writes an enum: the schema of the argument is elsewhere in the parameters.  One that
    leads nowhere, or back to itself, says nothing.
    """
    definitions = {"a/b": {"enum": ["1", "2"]}, "count": {"type": "integer"}, "loop": LOOP}
    tool = Tool("f", {"properties": {"x": schema}, "$defs": definitions})
    text = f"<tool_call>f<arg_key>x</arg_key><arg_value>{value}</arg_value></tool_call>"
    seen = joined(parse("glm", text, tools=(tool,)))
    assert seen == call(0, "f", f'{{"x": {argument}}}')


def test_a_call_of_glm_that_was_cut_is_not_taken_for_whole():
    """
    More arguments might have followed; the end of the model's own text is an end.
    """
    text = "<tool_call>tap<arg_key>path</arg_key><arg_value>/</arg_value>"
    assert joined(parse("glm", text, is_cut=True))[-1] == ("end 0", False)
    assert joined(parse("glm", text))[-1] == ("end 0", True)


@pytest.mark.parametrize("size", [None, 1000])
def test_what_is_held_before_the_name_is_known_is_bounded(size):
    """
    Beyond that it is content, wherever the parts end.
    """
    for length, is_call in ((MAX_HELD // 2, True), (2 * MAX_HELD, False)):
        text = f'<tool_call>{{"arguments": {{"x": "{"a" * length}"}}, "name": "tap"}}</tool_call>'
        events = parse("hermes", text, size=size)
        assert (joined(events)[0][0] == "call 0") == is_call
        assert raw_of(events) == text
        assert is_call or joined(events) == said(text)


def test_arguments_come_before_the_call_is_whole():
    """
    The name first, then the arguments character by character.
    """
    text = f'<tool_call>{{"name": "get_weather", "arguments": {BERN}'
    kinds = [type(event).__name__ for event in parse("hermes", text, size=1)]
    assert kinds[0] == "CallStarted"
    assert kinds.count("ArgumentsDelta") == len(BERN)

    text = "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Zürich"
    texts = [text for kind, text in joined(parse("glm", text, size=1)) if kind == "arguments 0"]
    assert texts == ['{"city": "Zürich']
