"""
The rows of `policy.yml`, typed: drivers that this project asks for beyond what NVIDIA does.
"""

from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from deploy.versions.catalog import Date, Version


class PolicyRow(BaseModel):
    """
    Attributes:
        torch: Minor, such as "2.3".
        driver_min: Oldest driver that policy allows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    torch: Version
    build: str
    driver_min: Version
    source: str
    date: Date


@cache
def load_policy() -> tuple[PolicyRow, ...]:
    """
    Return the policy that ships with this package.
    """
    text = (resources.files("deploy.versions") / "policy.yml").read_text(encoding="utf-8")
    return TypeAdapter(tuple[PolicyRow, ...]).validate_python(yaml.safe_load(text))
