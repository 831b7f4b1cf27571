"""
An entry of `secrets`.  Pure.
"""

from typing import Self

from pydantic import model_validator

from deploy.inventory.names import FilePath, SecretVariable
from deploy.inventory.schema.strict import Strict


class Secret(Strict):
    """
    Source of a secret's value: an environment variable or a file, exactly one of the two.
    """

    env: SecretVariable | None = None
    file: FilePath | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("should have exactly one of the keys env and file")
        return self
