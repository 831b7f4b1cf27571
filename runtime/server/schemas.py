"""
Request bodies.  Unknown keys are errors.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Stop = Annotated[str, Field(min_length=1, max_length=256)]


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Sampling(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str = Field(min_length=1)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: Annotated[list[Stop], Field(max_length=8), BeforeValidator(_one_or_many)] = []
    stream: bool = False


class GenerateBody(_Sampling):
    """
    `POST /generate`.
    """

    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    timeout_s: float | None = Field(default=None, gt=0)

    @property
    def model(self) -> None:
        return None


class CompletionBody(_Sampling):
    """
    `POST /v1/completions`, with OpenAI's defaults.
    """

    model: str | None = None
    max_tokens: int = Field(default=16, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    n: Literal[1] = 1

    @property
    def timeout_s(self) -> float | None:
        return None
