"""
Questions to the version matrix and their answers, as values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from deploy.versions.catalog import Distribution, GpuModel, Modules, TorchBuild, TorchRelease

PINS = ("torch", "cuda", "python", "driver", "gpu", "os", "modules", "fabric_manager")


class DriverVerdict(IntEnum):
    """
    What a driver does with a build; lower is better.

    Attributes:
        OK: All of the build runs.
        OK_MINOR: Machine code runs; PTX of the newer toolkit fails, as torch.compile may need.
        OK_COMPAT: Runs with the package cuda-compat on a data-center GPU.
        FAIL: Nothing runs.
    """

    OK = 0
    OK_MINOR = 1
    OK_COMPAT = 2
    FAIL = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Gpu:
    """
    A GPU of a host.

    Attributes:
        name: As it was asked for.
        capability: Compute capability.
        models: Models that it may be; several where only the capability is known.
    """

    name: str
    capability: str
    models: tuple[GpuModel, ...]

    @property
    def may_be_data_center(self) -> bool:
        return not self.models or any(model.is_data_center for model in self.models)


@dataclass(frozen=True, slots=True)
class Wish:
    """
    Attributes:
        torch: Minor, such as "2.3"; None: any.
        cuda: CUDA minor, such as "12.1", or "cpu"; None: any CUDA.
        python: "3.11"; None: any.
    """

    torch: str | None = None
    cuda: str | None = None
    python: str | None = None


@dataclass(frozen=True, slots=True)
class HostFacts:
    """
    What is known of a host; None or empty: not known.

    Attributes:
        driver: Full version of the NVIDIA driver.
        gpus: One of each kind.
        modules: Flavour of the NVIDIA kernel modules.
        fabric_manager: Version of the fabric manager; only looked at on a host with NVSwitch.
        unknown: What the host says and the catalog lacks, by the flag that can be given for it.
    """

    driver: str | None = None
    gpus: tuple[Gpu, ...] = ()
    distribution: Distribution | None = None
    modules: Modules | None = None
    has_nvswitch: bool = False
    fabric_manager: str | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fit:
    """
    A row that does.

    Attributes:
        python: Python of the environment.
        is_system_python: It is that of the host's distribution; None: distribution not known.
        verdict: None where the driver is not known.
        driver_min: Oldest driver for this row and GPU, policy included; None on the CPU.
        driver_native: Driver from which on the verdict is OK; None on the CPU.
        last_branch: Newest driver branch with support for the host's GPUs; None: no end is known.
        modules: Flavours of kernel modules that driver and GPU take; empty on the CPU.
        notes: What the operator should know before choosing it.
    """

    release: TorchRelease
    build: TorchBuild
    python: str
    is_system_python: bool | None
    verdict: DriverVerdict | None
    driver_min: str | None
    driver_native: str | None
    last_branch: int | None
    modules: tuple[Modules, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """
        Name of the row, as a fleet file would name it.
        """
        return f"torch-{self.release.minor}-{self.build.build}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """
    Pins that no row meets together; without any one of them a row would.

    Attributes:
        reasons: Why, each a clause of its own; other conflicts may share some.
        more: How many reasons are not named, in words; "": none.
    """

    pins: tuple[str, ...]
    reasons: tuple[str, ...]
    more: str = ""

    @property
    def why(self) -> str:
        return "; ".join((*self.reasons, *([self.more] if self.more else [])))


@dataclass(frozen=True, slots=True)
class NearestRow:
    """
    The nearest row that would do if some pins were others.

    Attributes:
        changed: Those pins; as few as possible.
    """

    changed: tuple[str, ...]
    fit: Fit


@dataclass(frozen=True, slots=True)
class Resolution:
    """
    Attributes:
        fits: Rows that do, best first; the first is the answer.
        conflicts: Every smallest set of pins that contradict each other; empty if a row fits.
        nearest: Rows that would do, fewest changes first; empty if a row fits.
        warnings: About the host and the data.
    """

    fits: tuple[Fit, ...]
    conflicts: tuple[Conflict, ...]
    nearest: tuple[NearestRow, ...]
    warnings: tuple[str, ...]
