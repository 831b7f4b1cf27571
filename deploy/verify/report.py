"""
The results of verification, and the parser of pytest's JUnit XML.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from deploy.errors import VerifyFailed
from deploy.foreign_text import visible

_BACKEND = re.compile(r"\[(?:ssh://)?([^\]]+)\]$")


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One assertion that failed on one host.
    """

    host: str
    test: str
    why: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """
    Attributes:
        passed: Number of assertions that hold, over all hosts.
        skipped: Number of assertions that do not apply: no release in the slot, no GPU.
        junit: Path of the JUnit XML.
        took_s: Duration of the run in seconds.
    """

    hosts: tuple[str, ...]
    passed: int
    skipped: int
    failed: tuple[Finding, ...]
    junit: Path
    took_s: float

    @property
    def error(self) -> VerifyFailed | None:
        """
        The error to exit with; None if all assertions hold.
        """
        if not self.failed:
            return None
        hosts = sorted({finding.host for finding in self.failed})
        lines = [visible(f"{f.host}: {f.test}: {f.why}") for f in self.failed]
        return VerifyFailed(
            f"{len(self.failed)} assertions do not hold on {', '.join(hosts)}",
            why="\n       ".join(lines),
            fix=f"inv provision --limit {','.join(hosts)}, then inv verify; see {self.junit}",
        )

    def as_json(self) -> dict[str, Any]:
        """
        Return the document of `inv verify --json`.
        """
        return {
            "ok": not self.failed,
            "hosts": list(self.hosts),
            "passed": self.passed,
            "skipped": self.skipped,
            "failed": [{"host": f.host, "test": f.test, "why": f.why} for f in self.failed],
            "junit": str(self.junit),
            "took_s": round(self.took_s, 3),
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    One test case of a JUnit file.
    """

    host: str
    test: str
    result: str  # passed, skipped or failed
    why: str = ""


def read_junit(text: str) -> tuple[Outcome, ...]:
    """
    Return the cases of a JUnit file that pytest wrote.
    """
    root = ElementTree.fromstring(text)  # noqa: S314 - written by our own child
    return tuple(_outcome(case) for case in root.iter("testcase"))


def _outcome(case: ElementTree.Element) -> Outcome:
    name = case.get("name", "")
    match = _BACKEND.search(name)
    host, test = (match[1], name[: match.start()]) if match else ("", name)
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            return Outcome(host, test, "failed", _reason(found))
    skipped = case.find("skipped")
    return Outcome(host, test, "passed" if skipped is None else "skipped")


def _reason(found: ElementTree.Element) -> str:
    # The first line of the assertion's message.
    said = (found.get("message") or found.text or "").strip().splitlines()
    return (said[0] if said else "failed").removeprefix("AssertionError: ").removeprefix("Failed: ")
