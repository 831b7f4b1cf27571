"""
`response_format` and `structured_outputs`: what the engine gets, and what is refused by name.
"""

import json

import pytest

from runtime.engines.base.protocol import FinishReason
from runtime.structured import Grammar, GrammarKind
from runtime.structured.grammar import MAX_CHARACTERS, MAX_CHOICES
from tests.unit.runtime.serving import assert_is_error

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"enum": [1]}}}
TEXT = json.dumps(SCHEMA)
ROUTES = pytest.mark.parametrize("route", ["chat", "complete"])


def schema_format(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema} | more}


ASKED = [
    ({"response_format": {"type": "json_object"}}, GrammarKind.JSON, '{"type": "object"}'),
    ({"response_format": schema_format(SCHEMA)}, GrammarKind.JSON, TEXT),
    (
        {"response_format": schema_format(SCHEMA, strict=False, description="an a")},
        GrammarKind.JSON,
        TEXT,
    ),
    ({"structured_outputs": {"json": SCHEMA}}, GrammarKind.JSON, TEXT),
    ({"structured_outputs": {"json": '{"type":"null"}'}}, GrammarKind.JSON, '{"type":"null"}'),
    ({"structured_outputs": {"regex": "a+", "json": None}}, GrammarKind.REGEX, "a+"),
    ({"structured_outputs": {"choice": ["a", "b"]}}, GrammarKind.CHOICE, '["a", "b"]'),
    ({"structured_outputs": {"grammar": "start: x"}}, GrammarKind.GRAMMAR, "start: x"),
    (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}},
        GrammarKind.REGEX,
        "a",
    ),
]
NEUTRAL = [
    {"response_format": None, "structured_outputs": None, "guided_json": None},
    {"response_format": {"type": "text"}, "min_tokens": 3},
]
REGEX = {"structured_outputs": {"regex": "a"}}
WRONG = [
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}},
     "response_format"),
    ({"response_format": {"type": "json_object", "more": 1}}, "response_format.more"),
    ({"response_format": schema_format(True)}, "response_format.json_schema.schema"),
    ({"response_format": schema_format("{}")}, "response_format.json_schema.schema"),
    ({"response_format": schema_format(SCHEMA, name="a b")}, "response_format.json_schema.name"),
    ({"response_format": schema_format(SCHEMA, more=1)}, "response_format.json_schema.more"),
    ({"response_format": schema_format({"const": "x" * MAX_CHARACTERS})},
     "response_format.json_schema.schema"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "grammar": "b"}}, "structured_outputs"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a" * (MAX_CHARACTERS + 1)}}, "structured_outputs.regex"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a"] * (MAX_CHOICES + 1)}}, "structured_outputs.choice"),
    ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"),
    ({"structured_outputs": {"json": [1]}}, "structured_outputs.json"),
    ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag"),
    (REGEX | {"response_format": {"type": "json_object"}}, "structured_outputs"),
    (REGEX | {"min_tokens": 2}, "structured_outputs"),
    (REGEX | {"ignore_eos": True}, "structured_outputs"),
    ({"response_format": {"type": "json_object"}, "stop_token_ids": [5]}, "response_format"),
    *(
        ({f"guided_{name}": "a"}, f"guided_{name}")
        for name in ("json", "regex", "choice", "grammar")
    ),
]  # fmt: skip


@ROUTES
@pytest.mark.parametrize(("body", "kind", "text"), ASKED)
async def test_the_engine_gets_the_checked_grammar(runtime, route, body, kind, text):
    for _ in range(2):
        runtime.engine.will("a")
    answer = await getattr(runtime, route)("hi", n=2, max_tokens=9, **body)
    assert answer.status_code == 200, answer.text
    expected = Grammar(kind, text, f"compiled {text}")
    assert [asked["grammar"] for asked in runtime.engine.asked] == [expected] * 2


@ROUTES
@pytest.mark.parametrize("body", NEUTRAL)
async def test_neutral_values_ask_for_nothing(runtime, route, body):
    runtime.engine.will("a")
    answer = await getattr(runtime, route)("hi", max_tokens=9, **body)
    assert answer.status_code == 200, answer.text
    assert runtime.engine.asked[0]["grammar"] is None


@ROUTES
@pytest.mark.parametrize(("body", "field"), WRONG)
async def test_a_wrong_value_is_refused_and_its_field_named(runtime, route, body, field):
    answer = await getattr(runtime, route)("hi", max_tokens=9, **body)
    assert_is_error(answer, 400, "invalid_request", retry_safe=False)
    assert answer.json()["error"]["param"] == field
    assert runtime.engine.asked == []


async def test_what_both_exclude_is_named(runtime):
    answer = await runtime.chat("hi", min_tokens=3, **REGEX)
    assert answer.json()["error"]["message"] == "structured_outputs: not with min_tokens"
    answer = await runtime.chat("hi", guided_json={})
    assert answer.json()["error"]["message"] == "guided_json: use structured_outputs.json"


@ROUTES
@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("<refuse>", "grammar_refused", r"too complex, said the\ncompiler"),
        ("<unavailable>", "no_structured_output", "this model has no structured output"),
    ],
)
async def test_what_the_compiler_refuses_is_the_clients_fault(runtime, route, text, code, words):
    answer = await getattr(runtime, route)("hi", max_tokens=9, structured_outputs={"regex": text})
    assert_is_error(answer, 400, code, retry_safe=False)
    error = answer.json()["error"]
    assert error["param"] == "structured_outputs"
    assert error["message"].startswith("structured_outputs: ")
    assert words in error["message"]
    assert runtime.serving.generator.promised == 0


async def test_a_deep_schema_is_one_error(runtime):
    """
    Of 900 levels, which JSON's parser still reads.
    """
    deep = "{}"
    for _ in range(900):
        deep = f'{{"items":{deep}}}'
    body = (
        '{"messages":[{"role":"user","content":"hi"}],"response_format":{"type":"json_schema",'
        f'"json_schema":{{"name":"a","schema":{deep}}}}}}}'
    )
    headers = {"content-type": "application/json"}
    runtime.engine.will("a")
    answer = await runtime.http.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code in (200, 400), (
        answer.text
    )  # the checker refuses it, the fake does not


async def test_a_grammar_that_fails_in_the_engine_is_the_clients_fault(runtime):
    runtime.engine.will("a", FinishReason.GRAMMAR, "too complex")
    answer = await runtime.chat("hi", **REGEX)
    assert_is_error(answer, 400, "grammar_refused", retry_safe=False)
    assert "too complex" in answer.json()["error"]["message"]
