"""
Which rows of the catalog fit a wish and a host, or what stands in the way.  Pure.

A pin is one part of the question: of the wish (torch, cuda, python) or of the host (driver, gpu,
os, modules, fabric_manager).  What is not pinned is open: a row fits if some value of it would do,
and its notes say which.  More pins therefore never make more rows fit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import combinations

from deploy.versions.catalog import Catalog, numbers
from deploy.versions.policy import PolicyRow
from deploy.versions.resolution import (
    PINS,
    Conflict,
    DriverVerdict,
    Fit,
    HostFacts,
    NearestRow,
    Resolution,
    Wish,
)
from deploy.versions.rules import Candidate, Obstacle, Rules

_IDENTITY = frozenset(("torch", "cuda", "python"))
_HARDWARE = frozenset(("gpu", "os"))  # changed last: a host has them
_REASONS = 4  # of one conflict
_STALE_DAYS = 30

_Obstacles = Sequence[tuple[Candidate, tuple[Obstacle, ...]]]


def resolve(
    catalog: Catalog,
    policy: Sequence[PolicyRow],
    wish: Wish,
    facts: HostFacts,
    *,
    today: date,
) -> Resolution:
    """
    Return the rows of *catalog* that fit, or the conflicts and the nearest rows.

    Args:
        today: For the end of life of drivers and Pythons.
    """
    return _Resolver(Rules(catalog, policy, wish, facts), today).resolution()


@dataclass(frozen=True, slots=True)
class _Resolver:
    rules: Rules
    today: date

    @property
    def wish(self) -> Wish:
        return self.rules.wish

    @property
    def facts(self) -> HostFacts:
        return self.rules.facts

    @property
    def catalog(self) -> Catalog:
        return self.rules.catalog

    def resolution(self) -> Resolution:
        obstacles = tuple(self.rules.rows())
        pins = frozenset(self._pins())
        warnings = tuple(self._warnings())
        fitting = _fitting(obstacles, pins)
        if fitting:
            return Resolution(self._fits(fitting), (), (), warnings)
        kinds = {frozenset(obstacle.pins for obstacle in found) for _, found in obstacles}

        def can_fit(pins: frozenset[str]) -> bool:
            return any(not any(own <= pins for own in kind) for kind in kinds)

        conflicts = tuple(
            Conflict(_ordered(some), *self._why(obstacles, some))
            for some in _smallest(pins, lambda some: not can_fit(some))
        )
        changes = list(_smallest(pins, lambda some: can_fit(pins - some)))
        nearest = tuple(self._nearest(obstacles, pins, changes))
        return Resolution((), conflicts, nearest, warnings)

    def _pins(self) -> Iterator[str]:
        wish, facts = self.wish, self.facts
        values = {
            "torch": wish.torch,
            "cuda": wish.cuda,
            "python": wish.python,
            "driver": facts.driver,
            "gpu": facts.gpus,
            "os": facts.distribution,
            "modules": facts.modules,
            "fabric_manager": facts.fabric_manager if facts.has_nvswitch else None,
        }
        yield from (pin for pin, value in values.items() if value)

    def _fits(self, rows: Sequence[Candidate]) -> tuple[Fit, ...]:
        """
        Return the best row of each torch and build, best first.
        """
        best: dict[tuple[str, str], Candidate] = {}
        for row in rows:
            key = (row.release.minor, row.build.build)
            if key not in best or self._python_rank(row) < self._python_rank(best[key]):
                best[key] = row
        fits = [self._fit(row) for row in best.values()]
        return tuple(sorted(fits, key=_rank))

    def _python_rank(self, row: Candidate) -> tuple[bool, bool, bool, tuple[int, ...]]:
        system = self.facts.distribution
        return (
            row.python not in row.release.official,
            bool(row.release.triton) and row.python not in row.release.triton,
            system is not None and row.python != system.python,
            tuple(-number for number in numbers(row.python)),
        )

    def _fit(self, row: Candidate) -> Fit:
        facts, build = self.facts, row.build
        system = facts.distribution
        is_system = None if system is None else row.python == system.python
        if build.cuda is None:
            notes = tuple(self._python_notes(row))
            return Fit(row.release, build, row.python, is_system, None, None, None, None, (), notes)
        verdict = self.rules.verdict(build, facts.driver) if facts.driver else None
        return Fit(
            row.release,
            build,
            row.python,
            is_system,
            verdict,
            self.rules.driver_min(row, facts.gpus),
            self.catalog.cuda_version(build.cuda).native,
            self.rules.last_branch(),
            self.rules.modules(),
            (*self._notes(row, verdict), *self._python_notes(row)),
        )

    def _notes(self, row: Candidate, verdict: DriverVerdict | None) -> Iterator[str]:
        build = row.build
        assert build.cuda is not None
        cuda = self.catalog.cuda_version(build.cuda)
        if verdict is DriverVerdict.OK_MINOR:
            yield (
                f"machine code runs; torch.compile and PTX of CUDA {cuda.cuda} need driver "
                f"{cuda.native}"
            )
        if verdict is DriverVerdict.OK_COMPAT:
            package = "cuda-compat-" + build.cuda.replace(".", "-")
            yield f"on data-center GPUs alone, with {package} first in the loader's path"
        if not build.is_seen:
            yield "this build was announced; no index was seen to have it"

    def _python_notes(self, row: Candidate) -> Iterator[str]:
        release, python = row.release, row.python
        if python not in release.official:
            yield f"wheels for Python {python} exist; PyTorch's table has {_span(release.official)}"
        if release.triton and python not in release.triton:
            yield f"no Triton for Python {python}: torch.compile does not work"
        known = next((row for row in self.catalog.pythons if row.python == python), None)
        if known and _is_past(known.end_of_life, self.today):
            yield f"Python {python} has no security fixes since {known.end_of_life}"
        system = self.facts.distribution
        if system and system.python != python:
            yield f"Python {python} is not that of {system.title} ({system.python}): standalone"

    def _warnings(self) -> Iterator[str]:
        driver = self.facts.driver
        if driver:
            branch = self.catalog.branch_of(driver)
            if branch is None:
                yield f"driver {driver}: its branch is not in the data of {self.catalog.date}"
            elif branch.end_of_life and _is_past(branch.end_of_life, self.today):
                yield f"driver branch {branch.branch}: end of life was {branch.end_of_life}"
            elif branch.has_ended:
                yield f"driver branch {branch.branch} is past its end of life"
        if self.facts.has_nvswitch or any(
            model.has_nvswitch_boards for gpu in self.facts.gpus for model in gpu.models
        ):
            version = f" {driver}" if driver else " of the driver's version"
            yield f"on boards with NVSwitch (HGX, DGX): fabric manager{version}, exactly"
        age = (self.today - date.fromisoformat(self.catalog.date)).days
        if age > _STALE_DAYS:
            yield f"the data is {age} days old; renew it with {self.catalog.renew}"

    def _why(self, obstacles: _Obstacles, pins: frozenset[str]) -> tuple[tuple[str, ...], str]:
        """
        Return why no row meets *pins* together, and how many reasons are not named.
        """
        own = pins & _IDENTITY
        named = [found for _, found in obstacles if not any(o.pins <= own for o in found)]
        if not named:
            return self._identity_why(own)
        reasons: list[str] = []
        for found in reversed(named):
            # One that concerns more of the pins says more about their conflict.
            for obstacle in sorted(found, key=lambda obstacle: -len(obstacle.pins)):
                if obstacle.pins <= pins:
                    if obstacle.why not in reasons:
                        reasons.append(obstacle.why)
                    break
        more = len(reasons) - _REASONS
        return tuple(reasons[:_REASONS]), f"and {more} more builds" if more > 0 else ""

    def _identity_why(self, pins: frozenset[str]) -> tuple[tuple[str, ...], str]:
        wish, torch = self.wish, self.catalog.torch
        rows = [release for release in torch if "torch" not in pins or wish.torch == release.minor]
        if "cuda" in pins and "torch" in pins and "python" not in pins:
            builds = ", ".join(b.build for b in rows[0].builds) if rows else ""
            return (f"torch {wish.torch} has the builds {builds}",), ""
        if "cuda" in pins:
            having = [r for r in rows if any((b.cuda or "cpu") == wish.cuda for b in r.builds)]
            if not having:
                every = {b.cuda for release in torch for b in release.builds if b.cuda}
                return (f"torch has builds for CUDA {', '.join(sorted(every, key=numbers))}",), ""
            rows = having
        wheels = [f"torch {row.minor} has wheels for Python {_span(row.pythons)}" for row in rows]
        more = len(wheels) - _REASONS
        return tuple(wheels[::-1][:_REASONS]), f"and {more} more" if more > 0 else ""

    def _nearest(
        self, obstacles: _Obstacles, pins: frozenset[str], changes: Sequence[frozenset[str]]
    ) -> Iterator[NearestRow]:
        soft = [some for some in changes if not some & _HARDWARE]
        for changed in sorted(soft or changes, key=lambda some: (len(some), _ordered(some))):
            fits = self._without(changed)._fits(_fitting(obstacles, pins - changed))
            yield NearestRow(_ordered(changed), min(fits, key=self._distance))

    def _distance(self, fit: Fit) -> tuple[int, int]:
        """
        Return how far *fit* is from the wish, in torch minors and in CUDA versions.
        """
        minors = [release.minor for release in self.catalog.torch]
        cudas = [row.cuda for row in self.catalog.cuda]
        torch = cuda = 0
        if self.wish.torch in minors:
            torch = abs(minors.index(self.wish.torch) - minors.index(fit.release.minor))
        if self.wish.cuda in cudas and fit.build.cuda:
            cuda = abs(cudas.index(self.wish.cuda) - cudas.index(fit.build.cuda))
        return torch, cuda

    def _without(self, pins: frozenset[str]) -> "_Resolver":
        """
        Return the resolver of the same question without *pins*.
        """
        wish, facts = self.wish, self.facts
        open_wish = Wish(
            None if "torch" in pins else wish.torch,
            None if "cuda" in pins else wish.cuda,
            None if "python" in pins else wish.python,
        )
        open_facts = HostFacts(
            None if "driver" in pins else facts.driver,
            () if "gpu" in pins else facts.gpus,
            None if "os" in pins else facts.distribution,
            None if "modules" in pins else facts.modules,
            facts.has_nvswitch,
            None if "fabric_manager" in pins else facts.fabric_manager,
        )
        return replace(self, rules=replace(self.rules, wish=open_wish, facts=open_facts))


def _fitting(obstacles: _Obstacles, pins: frozenset[str]) -> list[Candidate]:
    return [row for row, found in obstacles if not any(o.pins <= pins for o in found)]


def _smallest(
    pins: frozenset[str], is_wanted: Callable[[frozenset[str]], bool]
) -> Iterator[frozenset[str]]:
    """
    Yield each set of *pins* that *is_wanted* and has no smaller one in it, smallest first.
    """
    found: list[frozenset[str]] = []
    for size in range(1, len(pins) + 1):
        for some in map(frozenset, combinations(_ordered(pins), size)):
            if not any(smaller <= some for smaller in found) and is_wanted(some):
                found.append(some)
                yield some


def _ordered(pins: frozenset[str]) -> tuple[str, ...]:
    return tuple(pin for pin in PINS if pin in pins)


def _rank(fit: Fit) -> tuple[bool, int, tuple[int, ...], bool, tuple[int, ...]]:
    """
    Return the place of *fit*: a build that was seen, then a better verdict, a newer torch, its
    default build, newer CUDA.
    """
    return (
        not fit.build.is_seen,
        int(fit.verdict or 0),
        tuple(-number for number in numbers(fit.release.minor)),
        fit.build.build != fit.release.default,
        tuple(-number for number in numbers(fit.build.cuda or "0")),
    )


def _span(pythons: Sequence[str]) -> str:
    return f"{pythons[0]} to {pythons[-1]}"


def _is_past(month: str, today: date) -> bool:
    return (today.year, today.month) > tuple(map(int, month.split("-")))
