"""
Schemas of clients, which say more than llguidance reads.
"""

import json

import pytest

from runtime.structured import Grammar, GrammarError, GrammarKind
from runtime.structured.compiler import GrammarCompiler, translate
from runtime.structured.schema import FORMATS, readable
from tests.unit.runtime.builders import make_tokenizer

TOKENIZER = make_tokenizer()

NEUTRAL = [
    {"type": "array", "uniqueItems": False},
    {"type": "object", "propertyNames": {"type": "string"}},
    {"type": "object", "propertyNames": {}},
    {"type": "object", "propertyNames": True},
    {"type": "object", "unevaluatedProperties": True},
    {"type": "array", "unevaluatedItems": {}},
    {"type": "object", "dependentRequired": {}},
    {"type": "object", "dependentSchemas": {}, "dependencies": {}},
    *({"type": "string", "format": name} for name in ("binary", "password", "path", "nanoid")),
]
REFUSED = [
    {"type": "array", "uniqueItems": True},
    {"type": "object", "propertyNames": {"pattern": "^a"}},
    {"type": "object", "propertyNames": {"type": "string", "maxLength": 2}},
    {"type": "object", "unevaluatedProperties": False},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"type": "string", "format": "uri-reference"},
    {"type": "string", "format": ["date"]},
]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    TOKENIZER.save(str(path))
    return GrammarCompiler(path, None)


def compile_json(compiler, schema):
    return compiler.compile(translate(GrammarKind.JSON, json.dumps(schema)))


@pytest.mark.parametrize("schema", NEUTRAL, ids=json.dumps)
def test_what_has_no_effect_is_left_out(compiler, schema):
    """
    On any level: zod writes propertyNames for each record, and pydantic a format for bytes.
    """
    compile_json(compiler, schema)
    compile_json(compiler, {"anyOf": [schema, {"type": "null"}]})
    compile_json(compiler, {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": schema}})


@pytest.mark.parametrize("schema", REFUSED, ids=json.dumps)
def test_what_has_an_effect_is_refused(compiler, schema):
    """
    An answer would not be held to it.
    """
    with pytest.raises(GrammarError):
        compile_json(compiler, schema)


def test_names_and_values_of_a_client_stay():
    """
    A property may be called format, and a constant may look like a schema.
    """
    schema = {
        "properties": {"format": {"type": "string"}, "uniqueItems": False},
        "const": {"uniqueItems": False},
        "required": ["format"],
    }
    assert json.loads(readable(json.dumps(schema))) == schema


def test_the_formats_of_json_schema_stay(compiler):
    """
    Those that the compiler knows hold the answer to them.
    """
    assert all(name in readable(json.dumps({"format": name})) for name in FORMATS)
    state = compile_json(compiler, {"type": "string", "format": "date"})
    with pytest.raises(GrammarError):
        state.accept(TOKENIZER.encode('"a').ids)


def test_vllm_gets_what_was_checked():
    """
    Its own compiler refuses the same keywords.
    """
    text = '{"type": "array", "uniqueItems": false}'
    grammar = Grammar(GrammarKind.JSON, text, translate(GrammarKind.JSON, text))
    assert grammar.as_vllm() == {"json": {"type": "array"}}


def test_a_deep_schema_is_named():
    """
    Not an error of Python's stack.
    """
    schema = {}
    for _ in range(210):
        schema = {"items": schema}
    with pytest.raises(GrammarError, match="nested too deeply"):
        readable(json.dumps(schema))
