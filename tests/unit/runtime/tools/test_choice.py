"""
The schema of an answer that must be calls.
"""

import json

import pytest

from runtime.tools import Tool, ToolUse, put_together, schema_of
from runtime.tools.choice import MAX_SCHEMA_DEPTH
from tests.unit.runtime.tools.forms import TAP, TOOLS, parse


def test_an_answer_that_may_be_text_has_no_schema():
    """
    The model chooses.
    """
    assert schema_of(ToolUse(TOOLS)) is None


def test_a_required_call_is_one_of_the_tools():
    """
    At least one; at most one without parallel calls, and for a named tool.
    """
    schema = schema_of(ToolUse(TOOLS, "required"))
    names = [each["properties"]["name"]["const"] for each in schema["items"]["anyOf"]]
    assert names == ["get_weather", "tap"]
    assert (schema["minItems"], "maxItems" in schema) == (1, False)
    assert schema_of(ToolUse(TOOLS, "required", is_parallel=False))["maxItems"] == 1

    schema = schema_of(ToolUse(TOOLS, "named", "tap"))
    assert schema["items"]["properties"]["name"] == {"const": "tap"}
    assert (schema["maxItems"], list(schema["$defs"])) == (1, ["tap"])


def test_references_of_a_tool_lead_to_its_own_schema():
    """
    The parameters move, and a value that looks like a reference does not change.
    """
    parameters = {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/node"}, "all": {"$ref": "#"}},
        "$defs": {"node": {"enum": [{"$ref": "#"}], "items": [{"$ref": "other.json"}]}},
    }
    schema = schema_of(ToolUse((Tool("f", parameters), TAP), "required"))
    moved = schema["$defs"]["f"]
    assert moved["properties"] == {
        "tree": {"$ref": "#/$defs/f/$defs/node"},
        "all": {"$ref": "#/$defs/f"},
    }
    assert moved["$defs"] == parameters["$defs"]


def test_a_name_of_the_client_is_no_keyword():
    """
    Properties and definitions may be called default or enum: they are schemas as any other.
    """
    names = ("default", "enum", "const", "examples", "$ref")
    parameters = {
        "type": "object",
        "properties": {name: {"$ref": "#/$defs/enum"} for name in names},
        "$defs": {"enum": {"items": {"$ref": "#/$defs/enum"}}},
    }
    moved = schema_of(ToolUse((Tool("f", parameters),), "required"))["$defs"]["f"]
    assert moved["properties"] == {name: {"$ref": "#/$defs/f/$defs/enum"} for name in names}
    assert moved["$defs"] == {"enum": {"items": {"$ref": "#/$defs/f/$defs/enum"}}}


def test_a_reference_does_not_leave_its_tool():
    """
    An $id of the parameters would lead it out of the schema that they became part of; the name of
    an anchor leads to it from everywhere.
    """
    parameters = {
        "$id": "https://example.com/f.json",
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/a"}, "b": {"$ref": "#b"}},
        "$defs": {"a": {}, "b": {"$anchor": "b"}},
    }
    moved = schema_of(ToolUse((Tool("f", parameters),), "required"))["$defs"]["f"]
    assert "$id" not in moved
    assert moved["properties"] == {"a": {"$ref": "#/$defs/f/$defs/a"}, "b": {"$ref": "#b"}}


@pytest.mark.parametrize(
    "parameters", [{}, {"properties": {}}, {"type": ["object", "null"]}, {"$ref": "#/$defs/a"}]
)
def test_arguments_are_an_object(parameters):
    """
    Also where the parameters do not say so: anything else is read as no call.
    """
    schema = schema_of(ToolUse((Tool("f", parameters),), "required"))
    assert schema["$defs"]["f"]["type"] == "object"


@pytest.mark.parametrize("type", ["string", ["array", "null"], []])
def test_parameters_without_an_object_are_named(type):
    """
    No answer would be a call.
    """
    with pytest.raises(ValueError, match="parameters of f: should have the type object"):
        schema_of(ToolUse((Tool("f", {"type": type}),), "required"))


def test_what_the_schema_describes_is_read_by_the_plain_parser():
    """
    So a bound answer has its calls.
    """
    text = json.dumps([{"name": "tap", "arguments": {"x": 1}}])
    (call,) = put_together(parse("json", text)).calls
    assert (call.name, json.loads(call.arguments)) == ("tap", {"x": 1})


def test_parameters_that_are_nested_too_deeply_are_named():
    """
    Before Python's recursion ends.
    """
    parameters = {}
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        parameters = {"items": parameters}
    with pytest.raises(ValueError, match="parameters of deep"):
        schema_of(ToolUse((Tool("deep", parameters),), "required"))
