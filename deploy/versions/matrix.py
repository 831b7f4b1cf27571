"""
The rows of `matrix.yml`, typed, and the lookup by name.
"""

import difflib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from deploy.errors import InventoryError


class Row(BaseModel):
    """
    One supported combination of versions; `matrix.yml` documents each key.

    Attributes:
        driver_min: Minimum driver version by policy, such as "535" or "520.61.05".
        wheel: Version of torch's wheel, where its name has no build tag.
        capabilities: Compute capabilities such as "8.0"; empty on the CPU.
        lock: File under requirements/ that pins torch; None: the row cannot be provisioned yet.
        runtime_lock: Likewise, of what the runtime needs beside torch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    torch: str
    build: str
    wheel: str | None = None
    cuda: str | None
    driver_min: str | None
    driver_floor: str | None = None
    python: str
    capabilities: tuple[str, ...]
    lock: str | None = None
    runtime_lock: str = "runtime.lock"
    sources: tuple[str, ...]

    @property
    def family(self) -> str:
        """
        Name without the Python, such as "torch-2.13-cu130".
        """
        return f"torch-{self.minor}-{self.build}"

    @property
    def minor(self) -> str:
        """
        Minor of torch, such as "2.13".
        """
        return ".".join(self.torch.split(".")[:2])

    @property
    def version(self) -> str:
        """
        Value of `torch.__version__`, such as "2.13.0+cpu".
        """
        return f"{self.torch}+{self.build}"

    @property
    def needs_gpu(self) -> bool:
        return self.cuda is not None

    def allows_driver(self, version: str) -> bool:
        """
        Return True if a host with driver *version* may run this row.
        """
        return self.driver_min is None or _numbers(version) >= _numbers(self.driver_min)


class Matrix(BaseModel):
    model_config = ConfigDict(frozen=True)

    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """
        Return the row called *name*.

        Raises:
            InventoryError: No row has this name; the error names the nearest.
        """
        names = [row.name for row in self.rows]
        for row in self.rows:
            if row.name == name:
                return row
        near = difflib.get_close_matches(name, names, n=2, cutoff=0.3) or names
        raise InventoryError(
            f"row: the version matrix has no row {name!r}",
            why=f"it has {', '.join(names)}",
            fix=f"use {' or '.join(near)}; `inv matrix` shows their versions",
        )


@cache
def load_matrix() -> Matrix:
    """
    Return the matrix that ships with this package.
    """
    text = (resources.files("deploy.versions") / "matrix.yml").read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    rows = [row for name, keys in found.items() for row in _rows(name, keys)]
    return Matrix(rows=TypeAdapter(tuple[Row, ...]).validate_python(rows))


def _rows(name: str, keys: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """
    Yield the row *name*, and one more for each of its further Pythons.
    """
    keys = {"name": name, **keys}
    pythons = keys.pop("more_pythons", ())
    yield keys
    for python in pythons:
        tag = f"-py{python.replace('.', '')}"
        lock, runtime_lock = (
            f"{file.removesuffix('.lock')}{tag}.lock" for file in (keys["lock"], "runtime.lock")
        )
        own = {"python": python, "lock": lock, "runtime_lock": runtime_lock}
        yield keys | {"name": name + tag} | own


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
