"""
A plan for the driver of one host: its steps, each of which knows whether it is done, and a digest.
"""

import hashlib
import json
import re
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from deploy.host.protocol import DriverPackage, Facts, GpuHost, Kernel
from deploy.inventory.schema.gpu import DriverSection
from deploy.provision.apt_sources import AptSources
from deploy.provision.requirements import Frozen

KEYRING = "/usr/share/keyrings/slipway-nvidia.gpg"
SOURCES = "/etc/apt/sources.list.d/slipway-nvidia.sources"
# First by name: of several stanzas for a package apt takes the first.
PREFERENCES = "/etc/apt/preferences.d/00slipway-nvidia"
UPGRADES = "/etc/apt/apt.conf.d/52slipway-nvidia"
NOUVEAU = "/etc/modprobe.d/slipway-nouveau.conf"
MODULES = "/etc/modules-load.d/slipway-nvidia.conf"
PERSISTENCE = "/etc/systemd/system/nvidia-persistenced.service.d/slipway.conf"
OWN_FILES = (KEYRING, SOURCES, PREFERENCES, UPGRADES, NOUVEAU, MODULES, PERSISTENCE)

FABRIC_UNIT = "nvidia-fabricmanager.service"
PERSISTENCE_UNIT = "nvidia-persistenced.service"

# Source packages of a driver; nvidia-container-toolkit and DCGM are none of it.
_DRIVER_SOURCE = re.compile(
    r"(?:nvidia-graphics-drivers|nvidia-open-gpu-kernel-modules|linux-restricted-modules"
    r"|linux-restricted-signatures|fabric-manager)\S*"
    r"|nvidia-(?:persistenced|modprobe|fabricmanager|settings|xconfig)\S*"
)
_METAPACKAGE = re.compile(
    r"linux-(?:image|headers)-[a-z][a-z0-9.+-]*"
    r"|linux-(?:generic|virtual|lowlatency|aws|gcp|azure|oracle)[a-z0-9.+-]*"
)


class DriverWish(Frozen):
    """
    What the fleet file and the row ask for.

    Attributes:
        version: The exact one.
        row, minimum: Name of the row, and the oldest driver that it allows.
        keyring: Keys of the repository, binary; empty: the archive of the distribution is used.
        turns_mig_off: The fleet file turns MIG off; else MIG must be off already.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64"
    )

    section: DriverSection
    version: str
    row: str
    minimum: str
    keyring: bytes = Field(default=b"", repr=False)
    turns_mig_off: bool = False

    @property
    def branch(self) -> int:
        return int(self.version.split(".")[0])


class Conflict(Frozen):
    """
    One reason for which the wish cannot be had on a host, and the remedy.
    """

    why: str
    fix: str


class Step(Frozen):
    """
    Attributes:
        RUNS: The step is about what runs, not about what is on the disk.
    """

    RUNS: ClassVar[bool] = False

    @property
    def text(self) -> str:
        """
        What the step does, for operators.
        """
        raise NotImplementedError

    def is_done(self, facts: Facts) -> bool:
        raise NotImplementedError


class PlaceFile(Step):
    kind: Literal["place"] = "place"
    path: str
    sha256: str
    content: bytes = Field(repr=False, exclude=True)

    @property
    def text(self) -> str:
        return f"place {self.path}"

    def is_done(self, facts: Facts) -> bool:
        found = facts.paths[self.path]
        return found is not None and (found.type, found.mode, found.owner, found.sha256) == (
            "file",
            "0644",
            "root",
            self.sha256,
        )


class PlaceSource(Step):
    """
    NVIDIA's repository as a package source, which apt has read before it is placed.
    """

    kind: Literal["place_source"] = "place_source"
    sources: AptSources

    @property
    def text(self) -> str:
        return f"place {self.sources.path}, once apt has read it"

    def is_done(self, facts: Facts) -> bool:
        return self.sources.difference(facts) is None


class RemoveFile(Step):
    kind: Literal["remove"] = "remove"
    path: str

    @property
    def text(self) -> str:
        return f"remove {self.path}"

    def is_done(self, facts: Facts) -> bool:
        return facts.paths[self.path] is None


class ReadLists(Step):
    """
    apt reads the lists of packages, where something is to be installed.
    """

    kind: Literal["read_lists"] = "read_lists"
    install: "Install"

    @property
    def text(self) -> str:
        return "let apt read the lists of packages"

    def is_done(self, facts: Facts) -> bool:
        return self.install.is_done(facts) or not gpu_of(facts).old_lists


class Install(Step):
    """
    One transaction of apt; its result is simulated before.

    Attributes:
        versioned: Packages that must have *version*, after their Debian epoch and before their
            Debian revision.
        others: Packages of any version.
    """

    kind: Literal["install"] = "install"
    version: str
    versioned: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def packages(self) -> tuple[str, ...]:
        return (*self.versioned, *self.others)

    @property
    def text(self) -> str:
        others = f", with {', '.join(self.others)}" if self.others else ""
        return f"install {', '.join(self.versioned)} {self.version}{others}"

    def is_done(self, facts: Facts) -> bool:
        packages = {one.package: one for one in gpu_of(facts).packages}
        wanted = [packages.get(name) for name in self.packages]
        if any(one is None or not one.complete for one in wanted):
            return False
        # An interrupted dpkg leaves packages of the driver that were unpacked alone.
        if any(not one.complete for one in packages.values() if is_driver(one)):
            return False
        return all(upstream(packages[name].version) == self.version for name in self.versioned)


class RebuildInitramfs(Step):
    kind: Literal["rebuild_initramfs"] = "rebuild_initramfs"

    @property
    def text(self) -> str:
        return "rebuild the initramfs of each kernel without nouveau"

    def is_done(self, facts: Facts) -> bool:
        return not any(kernel.old_initramfs for kernel in gpu_of(facts).kernels)


class BuildModules(Step):
    """
    The kernel modules are there for the running kernel and for the next.

    Attributes:
        prebuilt: Start of the name of the package that has them for a kernel; None: DKMS builds
            them.
    """

    kind: Literal["build_modules"] = "build_modules"
    version: str
    is_open: bool
    prebuilt: str | None

    @property
    def text(self) -> str:
        return f"have modules {self.version} for the running and the next kernel"

    def is_done(self, facts: Facts) -> bool:
        return not self.missing(gpu_of(facts))

    def missing(self, gpu: GpuHost) -> tuple[str, ...]:
        """
        Return the releases of the kernels that lack the modules.
        """
        return tuple(k.release for k in needed_kernels(gpu) if not self._has_module(k))

    def _has_module(self, kernel: Kernel) -> bool:
        return any(
            module.version == self.version and is_open_license(module.license) == self.is_open
            for module in kernel.modules
        )


class Hold(Step):
    """
    Every package of the driver is on hold, and the metapackages of the kernel with them.
    """

    kind: Literal["hold"] = "hold"

    @property
    def text(self) -> str:
        return "hold the packages of the driver and the metapackages of the kernel"

    def is_done(self, facts: Facts) -> bool:
        return not self.left(gpu_of(facts))

    def left(self, gpu: GpuHost) -> tuple[str, ...]:
        return tuple(one.package for one in gpu.packages if is_ours(one) and not one.held)


class LoadModules(Step):
    """
    The loaded module is the wanted one, and nvidia-uvm is loaded too.
    """

    RUNS: ClassVar[bool] = True
    kind: Literal["load_modules"] = "load_modules"
    version: str
    is_open: bool

    @property
    def text(self) -> str:
        return f"load the modules {self.version}"

    def is_done(self, facts: Facts) -> bool:
        return self.is_loaded(facts) and "nvidia_uvm" in gpu_of(facts).loaded

    def is_loaded(self, facts: Facts) -> bool:
        """
        Return whether the loaded module has the version and the flavour, whatever uses it.
        """
        flavour = "open" if self.is_open else "proprietary"
        return facts.driver == self.version and facts.gpu_modules == flavour


class StartUnits(Step):
    RUNS: ClassVar[bool] = True
    kind: Literal["start_units"] = "start_units"
    units: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"enable and start {', '.join(self.units)}"

    def is_done(self, facts: Facts) -> bool:
        return all(facts.units[unit].active == "active" for unit in self.units)


class Prove(Step):
    """
    The driver that runs is the wanted one, and shows every GPU.
    """

    RUNS: ClassVar[bool] = True
    kind: Literal["prove"] = "prove"
    version: str
    gpus: int
    has_fabric: bool

    @property
    def text(self) -> str:
        fabric = ", their fabric is complete" if self.has_fabric else ""
        return f"nvidia-smi shows all GPUs ({self.gpus}) with {self.version}{fabric}"

    def is_done(self, facts: Facts) -> bool:
        return self.problem(facts) is None

    def problem(self, facts: Facts) -> str | None:
        """
        Return what contradicts the proof.
        """
        gpu = gpu_of(facts)
        if facts.driver != self.version:
            return f"the loaded module is {facts.driver or 'missing'}, not {self.version}"
        if gpu.library != self.version:
            return f"libnvidia-ml is {gpu.library or 'missing'}, and the module is {self.version}"
        if gpu.smi_problem is not None:
            return gpu.smi_problem
        if len(gpu.gpus) != self.gpus:
            return f"nvidia-smi shows {len(gpu.gpus)} GPUs, and the PCI bus has {self.gpus}"
        states = {state for state in gpu.fabric if state != "Completed"}
        if self.has_fabric and (states or not gpu.fabric):
            return f"the state of the NVLink fabric is {', '.join(sorted(states)) or 'not shown'}"
        return None


AnyStep = Annotated[
    PlaceFile
    | PlaceSource
    | RemoveFile
    | ReadLists
    | Install
    | RebuildInitramfs
    | BuildModules
    | Hold
    | LoadModules
    | StartUnits
    | Prove,
    Field(discriminator="kind"),
]


class DriverPlan(Frozen):
    """
    Attributes:
        pins: Text of the preferences, for the simulation.
    """

    steps: tuple[AnyStep, ...]
    pins: str

    @property
    def digest(self) -> str:
        """
        SHA-256 over all steps.
        """
        text = json.dumps([step.model_dump(mode="json") for step in self.steps], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def install(self) -> Install:
        return next(step for step in self.steps if isinstance(step, Install))

    def left(self, facts: Facts, *, runs: bool) -> tuple[AnyStep, ...]:
        """
        Return the steps that are not done, on the disk or for what runs.
        """
        return tuple(s for s in self.steps if s.RUNS is runs and not s.is_done(facts))


def gpu_of(facts: Facts) -> GpuHost:
    """
    Return what was asked for: every query of a driver asks for it.
    """
    assert facts.gpu is not None
    return facts.gpu


def is_driver(package: DriverPackage) -> bool:
    """
    True for a package of an NVIDIA driver, of whatever source and version.
    """
    return _DRIVER_SOURCE.fullmatch(package.origin) is not None


def is_ours(package: DriverPackage) -> bool:
    """
    True for a package that provisioning holds: of the driver, or a metapackage of the kernel.
    """
    return is_driver(package) or _METAPACKAGE.fullmatch(package.package) is not None


def kernel_suffixes(gpu: GpuHost) -> tuple[str, ...]:
    """
    Return the suffix of each metapackage of a kernel image, such as amd64 or generic-hwe-24.04.
    """
    names = (one.package for one in gpu.packages if one.package.startswith("linux-image-"))
    return tuple(
        name.removeprefix("linux-image-")
        for name in names
        if _METAPACKAGE.fullmatch(name) and not name.startswith("linux-image-unsigned")
    )


def needed_kernels(gpu: GpuHost) -> tuple[Kernel, ...]:
    """
    Return the running kernel, and the one that boots next: the newest with an image in /boot.
    """
    bootable = [kernel for kernel in gpu.kernels if kernel.bootable]
    following = max(bootable, key=lambda kernel: _sort_key(kernel.release), default=None)
    running = [kernel for kernel in gpu.kernels if kernel.running]
    return tuple(running) + tuple([following] if following and following not in running else [])


def upstream(version: str) -> str:
    """
    Return the part of a Debian version that is NVIDIA's.
    """
    return version.partition(":")[2].partition("-")[0] or version.partition("-")[0]


def is_open_license(text: str) -> bool:
    # modinfo: "Dual MIT/GPL" for the open modules, "NVIDIA" for the others.
    return "GPL" in text


def _sort_key(release: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d+|\D+", release)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


ReadLists.model_rebuild()
