"""
The base of all models of the fleet file, and types that several sections share.  Pure.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from deploy.units import Seconds

Port = Annotated[int, Field(ge=1, le=65535)]

Deadline = Annotated[Seconds, Field(gt=0)]  # a deadline of 0 could never be met


class Strict(BaseModel):
    """
    Base of all models here: frozen, and unknown keys are errors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)
