"""
Why a row of the catalog does not do for a wish and a host.  Pure.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from deploy.versions.catalog import Catalog, Modules, TorchBuild, TorchRelease, numbers
from deploy.versions.policy import PolicyRow
from deploy.versions.resolution import DriverVerdict, Gpu, HostFacts, Wish

_BOTH: tuple[Modules, ...] = ("open", "proprietary")


@dataclass(frozen=True, slots=True)
class Candidate:
    """
    A torch build with the Python of its environment.
    """

    release: TorchRelease
    build: TorchBuild
    python: str

    @property
    def title(self) -> str:
        return f"torch {self.release.minor}+{self.build.build}"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """
    Why a candidate does not do for every question that has *pins*.
    """

    pins: frozenset[str]
    why: str


@dataclass(frozen=True, slots=True)
class Rules:
    """
    The rules for one question.
    """

    catalog: Catalog
    policy: Sequence[PolicyRow]
    wish: Wish
    facts: HostFacts

    def rows(self) -> Iterator[tuple[Candidate, tuple[Obstacle, ...]]]:
        """
        Yield every candidate with what is against it.

        A build without CUDA is an answer to those alone who ask for it.
        """
        for release in self.catalog.torch:
            for build in release.builds:
                if build.cuda is None and self.wish.cuda != "cpu":
                    continue
                shared = None
                for python in release.pythons:
                    row = Candidate(release, build, python)
                    if shared is None:  # no rule about builds looks at the Python
                        shared = (*self._wish_obstacles(row), *self._host_obstacles(row))
                    if self.wish.python and python != self.wish.python:
                        yield row, (*shared, _obstacle(f"it is Python {python}", "python"))
                    else:
                        yield row, shared

    def _wish_obstacles(self, row: Candidate) -> Iterator[Obstacle]:
        wish = self.wish
        if wish.torch and row.release.minor != wish.torch:
            yield _obstacle(f"it is torch {row.release.minor}", "torch")
        if wish.cuda and (row.build.cuda or "cpu") != wish.cuda:
            yield _obstacle(f"it is {row.build.build}", "cuda")

    def _host_obstacles(self, row: Candidate) -> Iterator[Obstacle]:
        system = self.facts.distribution
        if system and system.glibc and numbers(system.glibc) < numbers(row.release.glibc):
            yield _obstacle(
                f"torch {row.release.minor} needs glibc {row.release.glibc}, "
                f"{system.title} has {system.glibc}",
                "os",
            )
        if row.build.cuda:
            yield from self._gpu_obstacles(row)
            yield from self._driver_obstacles(row)
            yield from self._module_obstacles()
            yield from self._fabric_obstacles()

    def _gpu_obstacles(self, row: Candidate) -> Iterator[Obstacle]:
        name = row.title
        for gpu in self.facts.gpus:
            if row.build.capabilities is None:
                yield _obstacle(f"the compute capabilities of {name} are not known", "gpu")
            elif not runs(row.build, gpu.capability):
                has = ", ".join(row.build.capabilities)
                yield _obstacle(f"{name} has no code for {_title(gpu)}; it has {has}", "gpu")

    def _driver_obstacles(self, row: Candidate) -> Iterator[Obstacle]:
        driver, gpus = self.facts.driver, self.facts.gpus
        for gpu in gpus:
            newest = self._last_branch(gpu)
            needed = self.driver_min(row, ())
            if newest is not None and numbers(needed)[0] > newest:
                yield _obstacle(
                    f"{row.title} needs driver {needed}, and the last branch for "
                    f"{_title(gpu)} is {newest}",
                    "gpu",
                )
        if driver is None:
            return
        for gpu in gpus:
            branch = numbers(driver)[0]
            first, last = self._first_branch(gpu), self._last_branch(gpu)
            if branch < first:
                why = f"{_title(gpu)} needs driver branch {first} or later"
                yield _obstacle(f"{why}; the driver is {driver}", "driver", "gpu")
            if last is not None and branch > last:
                why = f"branch {last} is the last for {_title(gpu)}"
                yield _obstacle(f"{why}; the driver is {driver}", "driver", "gpu")
        policy = self._policy_min(row)
        if policy and numbers(driver) < numbers(policy):
            yield _obstacle(
                f"policy asks for driver {policy} or later with {row.title}; "
                f"the driver is {driver}",
                "driver",
            )
        yield from self._verdict_obstacles(row, driver)

    def _verdict_obstacles(self, row: Candidate, driver: str) -> Iterator[Obstacle]:
        if row.build.cuda is None:
            return
        cuda = self.catalog.cuda_version(row.build.cuda)
        verdict = self.verdict(row.build, driver)
        if verdict is DriverVerdict.FAIL:
            yield _obstacle(
                f"CUDA {cuda.cuda} of {row.title} needs driver {cuda.floor} or later; "
                f"the driver is {driver}",
                "driver",
            )
        for gpu in self.facts.gpus:
            if verdict is DriverVerdict.OK_COMPAT and not gpu.may_be_data_center:
                yield _obstacle(
                    f"driver {driver} runs CUDA {cuda.cuda} with cuda-compat on data-center GPUs "
                    f"alone; {gpu.name} is none",
                    "driver",
                    "gpu",
                )
            if verdict is DriverVerdict.OK_MINOR and _needs_ptx(row.build, gpu.capability):
                yield _obstacle(
                    f"{row.title} has PTX alone for {_title(gpu)}, which needs driver "
                    f"{cuda.native}; the driver is {driver}",
                    "driver",
                    "gpu",
                )

    def _module_obstacles(self) -> Iterator[Obstacle]:
        modules, driver = self.facts.modules, self.facts.driver
        if modules is None:
            return
        for gpu in self.facts.gpus:
            offered = self.modules_of(gpu)
            if modules not in offered:
                yield _obstacle(
                    f"{_title(gpu)} runs with {' or '.join(offered)} modules; "
                    f"the modules are {modules}",
                    "gpu",
                    "modules",
                )
        branch = self.catalog.branch_of(driver) if driver else None
        if branch is not None and modules not in branch.modules:
            yield _obstacle(
                f"driver branch {branch.branch} has {' or '.join(branch.modules)} modules alone; "
                f"the modules are {modules}",
                "driver",
                "modules",
            )

    def _fabric_obstacles(self) -> Iterator[Obstacle]:
        driver, fabric = self.facts.driver, self.facts.fabric_manager
        if self.facts.has_nvswitch and fabric and driver and fabric != driver:
            yield _obstacle(
                f"the fabric manager is {fabric} and the driver {driver}: on a host with NVSwitch "
                "both need the same version",
                "driver",
                "fabric_manager",
            )

    def verdict(self, build: TorchBuild, driver: str) -> DriverVerdict:
        if build.cuda is None:
            return DriverVerdict.OK
        cuda = self.catalog.cuda_version(build.cuda)
        if cuda.native and numbers(driver) >= numbers(cuda.native):
            return DriverVerdict.OK
        if numbers(driver) >= numbers(cuda.floor):
            return DriverVerdict.OK_MINOR
        if numbers(driver)[0] in cuda.compat_branches:
            return DriverVerdict.OK_COMPAT
        return DriverVerdict.FAIL

    def _policy_min(self, row: Candidate) -> str | None:
        for rule in self.policy:
            if (rule.torch, rule.build) == (row.release.minor, row.build.build):
                return rule.driver_min
        return None

    def driver_min(self, row: Candidate, gpus: Iterable[Gpu]) -> str:
        assert row.build.cuda is not None
        floor = self.catalog.cuda_version(row.build.cuda).floor
        policy = self._policy_min(row)
        known = [floor, *([policy] if policy else [])]
        known += [str(self._first_branch(gpu)) for gpu in gpus]
        return max(known, key=numbers)

    def _first_branch(self, gpu: Gpu) -> int:
        rows = [self.catalog.generation_of(model).first_branch for model in gpu.models]
        return min(rows, default=0)

    def _last_branch(self, gpu: Gpu) -> int | None:
        rows = [self.catalog.generation_of(model).last_branch for model in gpu.models]
        ends = [last for last in rows if last is not None]
        return max(ends) if ends and len(ends) == len(rows) else None

    def modules_of(self, gpu: Gpu) -> tuple[Modules, ...]:
        rows = [self.catalog.generation_of(model).modules for model in gpu.models]
        return tuple(m for m in _BOTH if not rows or any(m in offered for offered in rows))

    def last_branch(self) -> int | None:
        """
        Return the newest driver branch with support for all GPUs of the host; None: no end.
        """
        ends = [last for last in map(self._last_branch, self.facts.gpus) if last is not None]
        return min(ends, default=None)

    def modules(self) -> tuple[Modules, ...]:
        """
        Return the flavours of kernel modules that the driver and all GPUs of the host take.
        """
        driver = self.facts.driver
        branch = self.catalog.branch_of(driver) if driver else None
        offered = branch.modules if branch else _BOTH
        return tuple(
            m
            for m in _BOTH
            if m in offered and all(m in self.modules_of(gpu) for gpu in self.facts.gpus)
        )


def runs(build: TorchBuild, capability: str) -> bool:
    """
    Return True if *build* has code for a GPU of compute capability *capability*.

    Machine code for X.Y runs on X.Z with Z >= Y; PTX is compiled for its capability and newer ones.
    Source: NVIDIA CUDA programming guide, binary and PTX compatibility.
    """
    return _has_machine_code(build, capability) or (
        build.ptx is not None and numbers(build.ptx) <= numbers(capability)
    )


def _has_machine_code(build: TorchBuild, capability: str) -> bool:
    major, minor = numbers(capability)
    return any(
        numbers(own)[0] == major and numbers(own)[1] <= minor for own in build.capabilities or ()
    )


def _needs_ptx(build: TorchBuild, capability: str) -> bool:
    return not _has_machine_code(build, capability) and runs(build, capability)


def _title(gpu: Gpu) -> str:
    return gpu.name if gpu.name == gpu.capability else f"{gpu.name} ({gpu.capability})"


def _obstacle(why: str, *pins: str) -> Obstacle:
    return Obstacle(frozenset(pins), why)
