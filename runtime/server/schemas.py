"""
Request bodies and the error document.  Unknown keys are errors.
"""

from typing import Annotated, Any, Literal

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


def error_document(code: str, message: str, request_id: str, *, retry_safe: bool) -> dict[str, Any]:
    """
    Return the body of an error response.

    Args:
        retry_safe: Whether the same request may be sent again unchanged, here or elsewhere.
    """
    return {
        "error": {
            "code": code,
            "message": message,
            "request_id": request_id,
            "retry_safe": retry_safe,
        }
    }
