"""
What is known of package sources and of device ids: `supplies.yml` and `pci.yml`, typed.
"""

from functools import cache
from importlib import resources
from typing import Literal

import yaml
from pydantic import TypeAdapter

from deploy.provision.requirements import Frozen

Source = Literal["distribution", "nvidia"]
Modules = Literal["open", "proprietary"]


class DriverSupply(Frozen):
    """
    The package sources of one distribution; `supplies.yml` documents each key.
    """

    title: str
    folder: str
    key: str | None
    family: Literal["debian", "ubuntu"]
    branches: tuple[int, ...]
    moved: dict[int, int]
    open: tuple[str, ...] | None
    source: str
    date: str


@cache
def load_supplies() -> dict[str, DriverSupply]:
    """
    Return the package sources by codename.
    """
    return TypeAdapter(dict[str, DriverSupply]).validate_python(_read("supplies.yml"))


def generation_of(device: str) -> str | None:
    """
    Return the generation of a GPU with the PCI id *device*; None: it is not known.
    """
    number = int(device, 16)
    for generation, ranges in _ranges().items():
        if any(int(first, 16) <= number <= int(last, 16) for first, last in ranges):
            return generation
    return None


@cache
def _ranges() -> dict[str, tuple[tuple[str, str], ...]]:
    return TypeAdapter(dict[str, tuple[tuple[str, str], ...]]).validate_python(_read("pci.yml"))


def _read(name: str) -> object:
    text = (resources.files("deploy.provision.driver") / name).read_text(encoding="utf-8")
    document: object = yaml.safe_load(text)
    return document
