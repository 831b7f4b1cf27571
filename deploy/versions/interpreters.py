"""
The standalone Pythons of `interpreters.yml`, typed.
"""

from functools import cache
from importlib import resources

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from deploy.versions.catalog import Date, Version


class Interpreter(BaseModel):
    """
    An archive with a Python that runs from any directory.

    Attributes:
        python: Minor version, such as "3.13".
        release: Such as "3.13.15".
        path: File in a mirror.
        sha256: Of the archive.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    python: Version
    release: Version
    path: str
    sha256: str
    source: str
    date: Date


@cache
def load_interpreters() -> tuple[Interpreter, ...]:
    """
    Return the pins that ship with this package.
    """
    file = resources.files("deploy.versions") / "interpreters.yml"
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    return TypeAdapter(tuple[Interpreter, ...]).validate_python(found)
