"""
The generated data of `compatibility.json`, typed: torch releases, CUDA, drivers, GPUs, systems.
"""

from functools import cache
from importlib import resources
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Version = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$")]
Date = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]
Month = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}$")]
Modules = Literal["open", "proprietary"]

FILE = "compatibility.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Sourced(_Frozen):
    """
    Attributes:
        source: Where the row was read.
        date: Day on which it was read, ISO 8601.
    """

    source: str
    date: Date


class TorchBuild(_Frozen):
    """
    One build of a torch release.

    Attributes:
        build: Local version: "cpu", "cu118".
        cuda: CUDA version that it carries; None on the CPU.
        capabilities: Compute capabilities with machine code; None: not known.  Empty on the CPU.
        ptx: Capability of the PTX in it, which the driver compiles for newer GPUs; None: no PTX.
        index: "pypi" where the default index has it, else the folder of the PyTorch wheel index.
        is_seen: False for a build that was announced and not seen.
    """

    build: str
    cuda: Version | None
    capabilities: tuple[Version, ...] | None
    ptx: Version | None
    index: str
    is_seen: bool


class TorchRelease(_Sourced):
    """
    The newest patch release of one torch minor, for Linux on x86_64.

    Attributes:
        minor: "2.3".
        version: "2.3.1".
        patches: All patch releases, oldest first.
        pythons: Pythons with a wheel, oldest first.
        official: Those of `pythons` that PyTorch supports officially.
        triton: Those of `pythons` for which the wheel asks for Triton: torch.compile needs it.
        glibc: Oldest glibc that the wheels load with.
        machines: Machines with a Linux wheel on the default index.
        default: Build that the default index has.
    """

    minor: Version
    version: Version
    patches: tuple[Version, ...]
    pythons: tuple[Version, ...]
    official: tuple[Version, ...]
    triton: tuple[Version, ...]
    glibc: Version
    machines: tuple[str, ...]
    default: str
    builds: tuple[TorchBuild, ...]


class CudaVersion(_Sourced):
    """
    Drivers of one CUDA minor.

    Attributes:
        native: Driver of its first toolkit, on which all of it runs; None: not known.
        floor: Oldest driver under minor-version compatibility.
        compat_branches: Driver branches on which cuda-compat is supported.
    """

    cuda: Version
    native: Version | None
    floor: Version
    compat_branches: tuple[int, ...]


class DriverBranch(_Sourced):
    """
    Attributes:
        end_of_life: Last month of support; None: not known.
        has_ended: The support is over, also where the month is not known.
        newest: Newest release that was seen; None: none.
    """

    branch: int
    kind: Literal["LTS", "production", "new feature"] | None
    end_of_life: Month | None
    has_ended: bool
    newest: Version | None
    modules: tuple[Modules, ...]


class GpuGeneration(_Sourced):
    """
    Attributes:
        last_branch: Newest driver branch with support for it; None: support goes on.
        modules: Kernel modules that it runs with.
    """

    generation: str
    first_branch: int
    last_branch: int | None
    modules: tuple[Modules, ...]


class GpuModel(_Sourced):
    """
    Attributes:
        is_data_center: cuda-compat works on it.
        has_nvswitch_boards: HGX boards with it have NVSwitch, which needs a fabric manager.
    """

    gpu: str
    generation: str
    capability: Version
    is_data_center: bool
    has_nvswitch_boards: bool


class Distribution(_Sourced):
    """
    Attributes:
        python: Version of its package python3.
        glibc: None: not known.
        driver_branch: Newest driver branch in its own archive.
    """

    name: str
    title: str
    codename: str
    python: Version
    glibc: Version | None
    driver_branch: int


class PythonVersion(_Sourced):
    python: Version
    end_of_life: Month


class Catalog(_Frozen):
    """
    Attributes:
        renew: Command that generates the file.
        date: Day on which the package index was read.
        torch, cuda, branches, pythons: Oldest first.
    """

    renew: str
    date: Date
    torch: tuple[TorchRelease, ...]
    cuda: tuple[CudaVersion, ...]
    branches: tuple[DriverBranch, ...]
    generations: tuple[GpuGeneration, ...]
    gpus: tuple[GpuModel, ...]
    distributions: tuple[Distribution, ...]
    pythons: tuple[PythonVersion, ...]

    def cuda_version(self, cuda: str) -> CudaVersion:
        return next(row for row in self.cuda if row.cuda == cuda)

    def generation_of(self, gpu: GpuModel) -> GpuGeneration:
        return next(row for row in self.generations if row.generation == gpu.generation)

    def branch_of(self, driver: str) -> DriverBranch | None:
        """
        Return the branch of the driver version *driver*; None if the catalog lacks it.
        """
        return next((row for row in self.branches if row.branch == numbers(driver)[0]), None)


def numbers(version: str) -> tuple[int, ...]:
    """
    Return *version* as numbers, in which versions are ordered.
    """
    return tuple(int(part) for part in version.split("."))


@cache
def load_catalog() -> Catalog:
    """
    Return the catalog that ships with this package.
    """
    return Catalog.model_validate_json(
        (resources.files("deploy.versions") / FILE).read_text(encoding="utf-8")
    )
