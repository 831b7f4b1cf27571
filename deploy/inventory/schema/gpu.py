"""
The keys `driver` and `gpu` of a fleet file: the driver to install, and the state of GPUs.  Pure.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from deploy.inventory.names import ArchiveUrl, FilePath
from deploy.inventory.schema.strict import Strict


def _matching(regex: str, meaning: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(regex, value, re.ASCII):
            raise ValueError(f"should be {meaning}")
        return value

    return AfterValidator(check)


DriverVersion = Annotated[
    str,
    _matching(
        r"[1-9][0-9]{2}(?:\.[0-9]{1,4}){1,2}",
        'the whole version of a driver, such as "580.178.04", in quotes',
    ),
]
CudaVersion = Annotated[
    str, _matching(r"[1-9][0-9]\.[0-9]{1,2}", 'a version of CUDA, such as "12.4", in quotes')
]
Fingerprint = Annotated[
    str, _matching(r"[0-9A-F]{40}", "the fingerprint of a key: 40 hexadecimal digits, in capitals")
]


class DriverSection(Strict):
    """
    The NVIDIA driver of every host whose row needs GPUs.

    Attributes:
        version: Exact version; None: the driver is not installed, only checked.
        source: The archive of the distribution, or NVIDIA's repository or a mirror of it.
        modules: Kernel modules; auto: open where the GPUs and the branch have them.
        build: auto: Ubuntu's signed modules where its archive is the source, else DKMS.
        repository: URL of NVIDIA's repository or its mirror, above the folder of a distribution.
        keyring: OpenPGP keys that sign it; the file is sent to hosts.
        fingerprint: Key that signs a mirror of your own; None: NVIDIA's.
        fabric_manager: None: where the PCI bus has NVSwitches.
        cuda_toolkit: Version to install for compiling on hosts; None: none.
        cuda_compat: Version of the forward compatibility package; None: none.
    """

    version: DriverVersion | None = None
    source: Literal["distribution", "nvidia"] = "distribution"
    modules: Literal["auto", "open", "proprietary"] = "auto"
    build: Literal["auto", "prebuilt", "dkms"] = "auto"
    repository: ArchiveUrl | None = None
    keyring: FilePath | None = None
    fingerprint: Fingerprint | None = None
    fabric_manager: bool | None = None
    cuda_toolkit: CudaVersion | None = None
    cuda_compat: CudaVersion | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.version is None and self != DriverSection.model_construct():
            raise ValueError("needs version: without it the other keys do nothing")
        if self.source == "nvidia":
            if self.repository is None or self.keyring is None:
                raise ValueError("source: nvidia needs repository and keyring")
            if self.build == "prebuilt":
                raise ValueError("build: prebuilt needs source: distribution")
            return self
        for key in ("repository", "keyring", "fingerprint", "cuda_toolkit", "cuda_compat"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} needs source: nvidia")
        return self


class GpuClocks(Strict):
    """
    Limits of the graphics clock, in MHz; both or none.
    """

    min_mhz: int | None = Field(default=None, ge=100, le=5000)
    max_mhz: int | None = Field(default=None, ge=100, le=5000)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if (self.min_mhz is None) != (self.max_mhz is None):
            raise ValueError("min_mhz and max_mhz belong together")
        if self.min_mhz is not None and self.max_mhz is not None and self.max_mhz < self.min_mhz:
            raise ValueError("max_mhz should not be below min_mhz")
        return self


class GpuSection(Strict):
    """
    State of the GPUs of every host whose row needs them; None of a key leaves it as it is.

    Attributes:
        count: GPUs of a host; another number is an error.
        persistence: The driver stays loaded without a process that uses it.
        power_limit_w: Power limit of each GPU.
        clocks: Limits of the graphics clock; applied at boot, and not readable afterwards.
        ecc: Error correction of the memory; a change is in force after a reboot.
        mig: Multi-instance GPUs; false turns them off, after a reboot.
    """

    count: int | None = Field(default=None, ge=1, le=64)
    persistence: bool | None = None
    power_limit_w: int | None = Field(default=None, ge=10, le=3000)
    clocks: GpuClocks = GpuClocks()
    ecc: bool | None = None
    mig: Literal[False] | None = None
