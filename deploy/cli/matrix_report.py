"""
What `inv matrix` prints: the rows of fleet files, and the answer to a question.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from deploy.cli.grid import Cell, Grid, Style
from deploy.cli.progress import waiting
from deploy.errors import NoRowFits
from deploy.foreign_text import visible
from deploy.versions.catalog import load_catalog
from deploy.versions.matrix import Matrix, Row, load_matrix
from deploy.versions.policy import load_policy
from deploy.versions.question import parse_facts, parse_wish
from deploy.versions.resolution import DriverVerdict, Fit, HostFacts, NearestRow, Resolution
from deploy.versions.resolver import resolve

_SHOWN = 12  # rows of an answer; --all has the others
_COLOURS: Mapping[DriverVerdict, Style] = {
    DriverVerdict.OK: "green",
    DriverVerdict.OK_MINOR: "yellow",
    DriverVerdict.OK_COMPAT: "yellow",
}


def matrix_table(matrix: Matrix) -> Grid:
    """
    Return the table of `inv matrix`: the rows that a fleet file may name.
    """
    table = Grid(("row", "torch", "CUDA", "driver ≥", "Python", "capabilities", "lock"))
    for row in matrix.rows:
        if row.name != row.family:
            continue
        pythons = [other.python for other in matrix.rows if other.family == row.family]
        table.add_row(
            row.name,
            row.torch,
            row.cuda or "-",
            row.driver_min or "-",
            pythons[0] if len(pythons) == 1 else f"{pythons[0]}-{pythons[-1]}",
            " ".join(row.capabilities) or "-",
            "yes" if row.lock else "-",
        )
    catalog = load_catalog()
    table.notes += [
        "A row is for its first Python; for another: torch-2.13-cpu-py313, and so on.",
        "A row without a lock can be planned with, not provisioned.",
        f"torch {catalog.torch[0].minor} to {catalog.torch[-1].minor}, as of {catalog.date}: "
        "inv matrix --all",
        "What fits a host: inv matrix --gpu h100 --driver 580.95.05 --os debian12",
    ]
    return table


def answer(
    asked: Mapping[str, str], known: Mapping[str, str], *, host: str = "", fleet: str = ""
) -> "Answer":
    """
    Return the answer to a question.

    Args:
        asked: Flags of the wish: torch, cuda, python.
        known: Flags of the host: driver, gpu, os; each goes before what *host* says.
        host: Host of *fleet* to read; empty: none.

    Raises:
        UsageError: A flag has a value that the matrix does not know.
        DeployError: The host is unknown or could not be read.
    """
    catalog = load_catalog()
    wish = parse_wish(catalog, **asked)
    facts = parse_facts(catalog, **known)
    if host:
        from deploy.wiring.host_facts import read_host

        with waiting(f"the facts of {visible(host)}"):
            own = read_host(catalog, fleet, host)
        facts = HostFacts(
            facts.driver or own.driver,
            facts.gpus or own.gpus,
            facts.distribution or own.distribution,
            own.modules,
            own.has_nvswitch,
            unknown={flag: text for flag, text in own.unknown.items() if not known[flag]},
        )
    question = {**asked, **known, "host": host}
    resolution = resolve(catalog, load_policy(), wish, facts, today=datetime.now(UTC).date())
    resolution = replace(resolution, warnings=(*_unknown(facts), *resolution.warnings))
    return Answer({k: v for k, v in question.items() if v}, facts, resolution, load_matrix())


def _unknown(facts: HostFacts) -> Iterator[str]:
    """
    Say what of a host the answer leaves open, because the matrix does not have it.
    """
    fixes = {
        "gpu": "--gpu takes its compute capability (nvidia-smi --query-gpu=compute_cap)",
        "os": "no row was tried on it",
    }
    for flag, text in facts.unknown.items():
        yield f"not in the matrix, and not looked at: {visible(text, limit=200)}; {fixes[flag]}"


@dataclass(frozen=True, slots=True)
class Answer:
    """
    Attributes:
        question: The flags that were given.
        facts: What is known of the host.
    """

    question: Mapping[str, str]
    facts: HostFacts
    resolution: Resolution
    matrix: Matrix

    def table(self, *, is_whole: bool = False) -> Grid:
        """
        Return the rows that fit, best first; where none does, the nearest with their changes.

        Args:
            is_whole: Show all of them.
        """
        resolution = self.resolution
        if not resolution.fits:
            return _near_table(resolution, self.facts)
        columns = ("row", "verdict", "driver from", "all of it from", "Python", "index", "lock")
        table = Grid(columns)
        shown = resolution.fits if is_whole else resolution.fits[:_SHOWN]
        for fit in shown:
            table.add_row(*_cells(fit, self.matrix))
        if len(shown) < len(resolution.fits):
            table.notes.append(f"{len(resolution.fits) - len(shown)} more rows: --all shows them")
        best = resolution.fits[0]
        table.notes += [f"{best.name}: {note}" for note in (*_modules(best), *best.notes)]
        table.notes += resolution.warnings
        return table

    def as_json(self) -> dict[str, Any]:
        """
        Return the document of a question with --json.
        """
        facts, resolution = self.facts, self.resolution
        fits = [_fit_json(fit, self.matrix) for fit in resolution.fits]
        return {
            "question": dict(self.question),
            "host": {
                "driver": facts.driver,
                "gpus": [gpu.name for gpu in facts.gpus],
                "os": facts.distribution.name if facts.distribution else None,
                "modules": facts.modules,
                "nvswitch": facts.has_nvswitch,
            },
            "row": fits[0]["row"] if fits else None,
            "rows": fits,
            "conflicts": [{"pins": list(c.pins), "why": c.why} for c in resolution.conflicts],
            "nearest": [
                {
                    "pins": list(near.changed),
                    "change": _changes(near, facts),
                    "row": _fit_json(near.fit, self.matrix),
                }
                for near in resolution.nearest
            ],
            "warnings": list(resolution.warnings),
            "data_date": load_catalog().date,
        }

    @property
    def error(self) -> NoRowFits | None:
        """
        The error of a question that no row fits; None if one does.
        """
        resolution = self.resolution
        if resolution.fits:
            return None
        asked = ", ".join(f"{key} {visible(value)}" for key, value in self.question.items())
        fixes = [
            f"{_changes(near, self.facts)} gives {near.fit.name}" for near in resolution.nearest
        ]
        return NoRowFits(
            f"no row of the version matrix fits {asked}",
            why="\n".join(f"{' and '.join(c.pins)}: {c.why}" for c in resolution.conflicts),
            fix="\nor ".join(fixes) or "leave one of the flags out",
        )


def _near_table(resolution: Resolution, facts: HostFacts) -> Grid:
    table = Grid(("nearest row", "Python", "if instead"))
    for near in resolution.nearest:
        table.add_row(near.fit.name, near.fit.python, _changes(near, facts))
    table.notes += resolution.warnings
    return table


def _cells(fit: Fit, matrix: Matrix) -> tuple[str | Cell, ...]:
    row = _fleet_row(fit, matrix)
    verdict = Cell("-", "dim")
    if fit.verdict is not None:
        verdict = Cell(str(fit.verdict), _COLOURS[fit.verdict])
    return (
        fit.name,
        verdict,
        fit.driver_min or "-",
        fit.driver_native or "-",
        fit.python,
        fit.build.index,
        "yes" if row and row.lock else "-",
    )


def _fleet_row(fit: Fit, matrix: Matrix) -> Row | None:
    """
    Return the row by which a fleet file names *fit*, if there is one.
    """
    rows = [row for row in matrix.rows if row.family == fit.name]
    return next((row for row in rows if row.python == fit.python), rows[0] if rows else None)


def _fit_json(fit: Fit, matrix: Matrix) -> dict[str, Any]:
    row = _fleet_row(fit, matrix)
    return {
        "row": fit.name,
        "torch": fit.release.version,
        "build": fit.build.build,
        "cuda": fit.build.cuda,
        "python": fit.python,
        "is_system_python": fit.is_system_python,
        "verdict": None if fit.verdict is None else str(fit.verdict),
        "driver_min": fit.driver_min,
        "driver_native": fit.driver_native,
        "driver_last_branch": fit.last_branch,
        "modules": list(fit.modules),
        "glibc": fit.release.glibc,
        "index": fit.build.index,
        "in_fleet_files": row is not None,
        "lock": row.lock if row else None,
        "notes": list(fit.notes),
        "source": fit.release.source,
        "date": fit.release.date,
    }


def _modules(fit: Fit) -> tuple[str, ...]:
    if len(fit.modules) == 1:
        return (f"{fit.modules[0]} kernel modules alone",)
    return ()


def _changes(near: NearestRow, facts: HostFacts) -> str:
    """
    Return the values to take in place of the pins that *near* changes.
    """
    fit = near.fit
    driver = f"driver {fit.driver_min} or later"
    if fit.last_branch:
        driver += f", up to branch {fit.last_branch}"
    words = {
        "torch": f"--torch {fit.release.minor}",
        "cuda": f"--cuda {fit.build.cuda or 'cpu'}",
        "python": f"--python {fit.python}",
        "driver": driver,
        "gpu": "another GPU",
        "os": "another distribution",
        "modules": f"{' or '.join(fit.modules)} kernel modules",
        "fabric_manager": f"fabric manager {facts.driver}",
    }
    return " and ".join(words[pin] for pin in near.changed)
