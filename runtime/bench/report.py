"""
Prints the results: a table row as each arrives, or one JSON document at the end.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from runtime.bench import table
from runtime.bench.machine import BenchMachine
from runtime.bench.recorded import VLLM, RecordedRun
from runtime.bench.sample import Ceilings, RunSample, Spread, spreads
from runtime.bench.work import Line

OURS = "slipway"


@dataclass(frozen=True, slots=True)
class Result:
    """
    The runs of one line on one system.

    Attributes:
        note: The part of the work that was left out.
        error: Why the line failed, and has no samples; None if it did not.
    """

    line: Line
    samples: Sequence[RunSample]
    note: str = ""
    error: str | None = None

    @property
    def values(self) -> Mapping[str, Spread | None]:
        return spreads(self.samples)

    @property
    def rate(self) -> float | None:
        spread = self.values["tokens_per_s"]
        return spread.median if spread else None


class BenchReport:
    """
    Writes the results of a session.

    Attributes:
        failed: Systems that did not open, and lines that failed.
    """

    def __init__(self, out: TextIO, *, as_json: bool) -> None:
        self.failed: list[str] = []
        self._out, self._as_json = out, as_json
        self._document: dict[str, Any] = {"systems": {}}
        self._ours: dict[str, Result] = {}
        self._record: RecordedRun | None = None

    def begin(
        self, machine: BenchMachine, ceilings: Ceilings, shape: str, device: str, **settings: object
    ) -> None:
        """
        Start the report with the machine and the settings of the session.

        Args:
            settings: Everything else that a reader needs to repeat the run.
        """
        if shape == VLLM.shape and device == "cuda":
            self._record = VLLM
        self._document = {
            "machine": asdict(machine),
            "shape": shape,
            "device": device,
            **settings,
            "ceilings": asdict(ceilings),
            "recorded": _plain(self._record) if self._record else None,
            "systems": {},
        }
        self._say(table.header(machine, ceilings, shape, settings))
        if self._record:
            self._say(table.recorded(self._record))

    def absent(self, system: str) -> None:
        self._document["systems"][system] = None
        self._say(f"\n{system}: not installed here")

    def broken(self, system: str, error: str) -> None:
        self._document["systems"][system] = {"error": error, "lines": {}}
        self.failed.append(system)
        self._say(f"\n{system}: FAILED: {error}")

    def opened(self, system: str, version: str) -> None:
        self._document["systems"][system] = {"version": version, "error": None, "lines": {}}
        titles = table.OUR_TITLES if system == OURS else table.PEER_TITLES
        recorded = f"  {self._record.system} {self._record.version}" if self._record else ""
        self._say(f"\n{system}, {version}\n{titles}{recorded if system == OURS else ''}")

    def line(self, system: str, result: Result) -> None:
        name = result.line.name
        if result.error is not None:
            self.failed.append(f"{system} {name}")
        if system == OURS:
            self._ours[name] = result
        other = self._record.rate(result.line) if self._record and system == OURS else None
        ratio = self._ratio(system, result, other)
        self._document["systems"][system]["lines"][name] = {
            "asks": result.line.workload,
            "runs": len(result.samples),
            "note": result.note,
            "error": result.error,
            **{key: spread and asdict(spread) for key, spread in result.values.items()},
            "recorded": other,
            "ours_over_recorded" if system == OURS else "ours_over_peer": ratio,
        }
        if result.error is not None:
            self._say(table.failure(result.line, result.error))
        elif system == OURS:
            self._say(table.our_row(result.line, result.values, other, ratio))
        else:
            self._say(table.peer_row(result.line, result.values, ratio, result.note))

    def end(self) -> None:
        if self._as_json:
            document = {**self._document, "failed": self.failed}
            self._out.write(json.dumps(document, indent=2) + "\n")
        elif self.failed:
            self._say(f"\nfailed: {', '.join(self.failed)}")
        self._out.flush()

    def _ratio(self, system: str, result: Result, recorded: float | None) -> float | None:
        ours = self._ours.get(result.line.name)
        theirs = recorded if system == OURS else result.rate
        return ours.rate / theirs if ours and ours.rate and theirs else None

    def _say(self, text: str) -> None:
        if not self._as_json:
            self._out.write(text + "\n")
            self._out.flush()


def _plain(record: RecordedRun) -> dict[str, Any]:
    return {
        "system": record.system,
        "version": record.version,
        "machine": record.machine,
        "how": record.how,
        "read_on": record.read_on,
        "ceilings": {"copy_gb_s": record.copy_gb_s, "matmul_tflop_s": record.matmul_tflop_s},
    }
