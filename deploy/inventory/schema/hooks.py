"""
The key `release.hooks`.  Pure.
"""

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from deploy.inventory.names import HOOK, Text
from deploy.inventory.schema.strict import Deadline, Strict


class Phase(StrEnum):
    """
    A phase of a release, or a way back, that hooks may accompany.
    """

    RELEASE = "release"  # the whole of it
    STAGE = "stage"
    START = "start"
    CANARY = "canary"
    PROMOTE = "promote"
    BAKE = "bake"
    CONFIRM = "confirm"
    RETIRE = "retire"
    REVERT = "revert"  # a release that takes itself back
    ROLLBACK = "rollback"
    ABORT = "abort"

    @property
    def is_way_back(self) -> bool:
        return self in (Phase.REVERT, Phase.ROLLBACK, Phase.ABORT)


class Hook(Strict):
    """
    A program that the operator's machine runs before or after a phase.

    Attributes:
        run: The program, in the directory `hooks` of the repository, and its arguments.
        timeout: Seconds; then the program and its children are killed, and the hook has failed.
    """

    when: Literal["before", "after"]
    phase: Phase
    run: tuple[Text, ...] = Field(min_length=1)
    timeout: Deadline = 30.0

    @field_validator("run")
    @classmethod
    def _is_of_the_repository(cls, run: tuple[str, ...]) -> tuple[str, ...]:
        # A fleet file may come from somebody else: it may choose among the hooks of the checkout,
        # and no other program.
        HOOK.parse(run[0])
        return run

    @model_validator(mode="after")
    def _leaves_ways_back_alone(self) -> Self:
        if self.when == "before" and self.phase.is_way_back:
            raise ValueError(
                f"{self.phase} is a way back, which nothing may delay: use when: after"
            )
        return self
