"""
What every request body has: its bounds before it is parsed.  Unknown keys are errors.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from runtime.engines.base.protocol import MAX_PRIORITY
from runtime.engines.base.sampling import SamplingParams

MAX_STOPS = 8
MOST_TOKENS = 2**31 - 1  # of an answer; no context has more


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """
    Bounds of a body's JSON, checked before it is parsed: "[]," takes thirty times its size then.

    Attributes:
        strings: Strings, keys included.
        containers: Objects and lists.
        structure_bytes: Everything but the strings.
        escapes: In its strings.  Python's parser takes 20 ns for each; the largest body has fewer
            if all are as long as "\\u0061".
    """

    strings: int = 64
    containers: int = 4096
    structure_bytes: int = 4096
    escapes: int = 3 << 19


def problems_of(error: ValidationError) -> list[str]:
    """
    Return each problem behind its place; none has a value of the document.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found]


def whole(value: object) -> object:
    """
    Return a float without a fraction as an int: JSON has one kind of number, and 16.0 is 16.
    """
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(whole)  # behind the bounds: else a schema does not have them
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY), WHOLE]


class Strict(BaseModel):
    """
    A part of a body.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Body(Strict):
    """
    Attributes:
        BOUNDS: Bounds of its JSON.
        INVALID: Status of a body that is JSON, but not this one.
        model: None for the one that is served.
    """

    BOUNDS: ClassVar[BodyBounds] = BodyBounds()
    INVALID: ClassVar[int] = 400

    model: str | None = None


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_Stops = Annotated[list[_Stop], Field(max_length=MAX_STOPS, fail_fast=True)]
Stops = Annotated[_Stops, BeforeValidator(_one_or_many, json_schema_input_type=_Stop | _Stops)]


class GenerateBody(Body):
    """
    `POST /generate`.
    """

    INVALID: ClassVar[int] = 422

    prompt: str = Field(min_length=1)
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS), WHOLE] = 64
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: Annotated[int, Field(ge=0, lt=2**63), WHOLE] | None = None
    stop: Stops = []
    stream: bool = False
    timeout_s: float | None = Field(default=None, gt=0)
    priority: Priority = 0

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(self.max_tokens, self.temperature, self.top_p, self.seed)
