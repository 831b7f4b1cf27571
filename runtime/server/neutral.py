"""
Fields of a request that this runtime does not support, with the values that ask for nothing.
"""

import json
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Neutral:
    """
    Annotation of a field that accepts null and *values*; any other value is refused.
    """

    def __init__(self, *values: Any) -> None:
        self._values = values

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": [None, *self._values]}

    def _check(self, value: object) -> None:
        if value is None or any(_is_same(value, each) for each in self._values):
            return
        neutral = " or ".join(json.dumps(each) for each in (*self._values, None))
        words = "not supported by this runtime; leave it out, or send {neutral}"
        raise PydanticCustomError("unsupported", words, {"neutral": neutral})


def _is_same(value: object, neutral: object) -> bool:
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral
