"""
The fields of a body that ask for structured output.

Source: OpenAI's API reference (`response_format`) and vLLM 0.32 (`structured_outputs`), read
2026-11-26.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from runtime.server.grammars import AskedGrammar
from runtime.server.schemas import Strict
from runtime.structured import GrammarKind
from runtime.structured.grammar import MAX_CHARACTERS, MAX_CHOICES

ANY_OBJECT = '{"type": "object"}'
RESPONSE_FORMAT, STRUCTURED_OUTPUTS = "response_format", "structured_outputs"
# Fields that may end an answer where it does not match, or keep it from ending.
EXCLUDED = ("min_tokens", "ignore_eos", "stop_token_ids")

Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]


def _schema_text(value: object) -> object:
    """
    Return the JSON of a schema; what is none is left to pydantic.
    """
    if not isinstance(value, dict):
        return value
    try:
        text = json.dumps(value)
    except RecursionError:
        raise PydanticCustomError("nested", "is nested too deeply") from None
    if len(text) > MAX_CHARACTERS:
        words = "should have at most {most} characters"
        raise PydanticCustomError("long_schema", words, {"most": MAX_CHARACTERS})
    return text


def _is_schema(value: object) -> object:
    if not isinstance(value, dict):
        raise PydanticCustomError("schema", "should be an object, a JSON Schema")
    return value


SchemaOrText = Annotated[
    Text, BeforeValidator(_schema_text, json_schema_input_type=dict[str, Any] | Text)
]
Schema = Annotated[SchemaOrText, BeforeValidator(_is_schema, json_schema_input_type=dict[str, Any])]


class JsonSchema(Strict):
    """
    Attributes:
        text: JSON of the schema.
        strict: Accepted, without an effect: every answer matches its schema.
    """

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=MAX_CHARACTERS)] | None = None
    text: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class OneFormat(Strict):
    """
    OpenAI's form.
    """

    # As `_has_schema` checks it.
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "properties": {
                        "type": {"enum": ["text", "json_object"]},
                        "json_schema": {"type": "null"},
                    }
                },
                {
                    "required": ["json_schema"],
                    "properties": {
                        "type": {"const": "json_schema"},
                        "json_schema": {"type": "object"},
                    },
                },
            ]
        }
    )

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def asked(self) -> AskedGrammar | None:
        if self.type == "text":
            return None
        text = ANY_OBJECT if self.json_schema is None else self.json_schema.text
        return AskedGrammar(RESPONSE_FORMAT, GrammarKind.JSON, text)


class StructuredOutputs(Strict):
    """
    vLLM's form; one of the four.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
                for name in ("json", "regex", "choice", "grammar")
            ]
        }
    )

    text: Annotated[SchemaOrText | None, Field(alias="json")] = None
    regex: Text | None = None
    choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1)]],
            Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True),
        ]
        | None
    ) = None
    grammar: Text | None = None

    @property
    def texts(self) -> dict[GrammarKind, str]:
        """
        Those that are there.
        """
        texts = {
            GrammarKind.JSON: self.text,
            GrammarKind.REGEX: self.regex,
            GrammarKind.CHOICE: None if self.choice is None else json.dumps(self.choice),
            GrammarKind.GRAMMAR: self.grammar,
        }
        return {kind: text for kind, text in texts.items() if text is not None}

    @property
    def asked(self) -> AskedGrammar | None:
        [(kind, text)] = self.texts.items()
        return AskedGrammar(STRUCTURED_OUTPUTS, kind, text)


def _has_schema(format: OneFormat) -> OneFormat:
    if (format.json_schema is not None) != (format.type == "json_schema"):
        raise PydanticCustomError("json_schema", "should have json_schema with its type alone")
    return format


def _has_one(outputs: StructuredOutputs) -> StructuredOutputs:
    if len(outputs.texts) != 1:
        raise PydanticCustomError("one_grammar", "should have one of json, regex, choice, grammar")
    return outputs


def _alone(value: Any, info: ValidationInfo) -> Any:
    if value is None or value.asked is None:
        return value
    for name in EXCLUDED:
        if info.data.get(name):
            raise PydanticCustomError("excluded", "not with {field}", {"field": name})
    other = info.data.get(RESPONSE_FORMAT)
    if other is not None and other is not value and other.asked is not None:
        raise PydanticCustomError("two_grammars", "not with response_format: send one of them")
    return value


ResponseFormat = Annotated[
    Annotated[OneFormat, AfterValidator(_has_schema)] | None, AfterValidator(_alone)
]
OneGrammar = Annotated[
    Annotated[StructuredOutputs, AfterValidator(_has_one)] | None, AfterValidator(_alone)
]


class Replaced:
    """
    Annotation of a field that accepts null alone, because *other* replaces it.
    """

    def __init__(self, other: str) -> None:
        self._other = other

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "null", "deprecated": True}

    def _check(self, value: object) -> None:
        if value is not None:
            raise PydanticCustomError("replaced", "use {other}", {"other": self._other})
