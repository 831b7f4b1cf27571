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

CONNECTION = "slipway"  # of our testinfra backend, in the names of test cases
HOST = "slipway_host"  # property of a case: the name of its host
LOST = "slipway_lost"  # property of a case whose host did not answer; its value is the reason
LOST_FIX = "slipway_lost_fix"  # likewise; its value is the remedy
REACHABLE, RUN = "reachable", "the run"  # findings beside the assertions
_REMEDIES_MAX = 3
_BACKEND = re.compile(r"\[(?:\w+://)?([^\]]+)\]$")


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One assertion that failed on one host.

    Attributes:
        fix: None: provision the host.
    """

    host: str
    test: str
    why: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """
    Attributes:
        passed: Number of assertions that hold, over all hosts.
        skipped: Number of assertions that do not apply: no TLS, no GPU.
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
            fix=f"{'; '.join(self._remedies())}; see {self.junit}",
        )

    def _remedies(self) -> list[str]:
        """
        Return what to do: provision the hosts that differ, reach the others.
        """
        hosts = sorted({finding.host for finding in self.failed if finding.fix is None})
        others = list(dict.fromkeys(f.fix for f in self.failed if f.fix is not None))
        remedies = [f"inv provision --limit {','.join(hosts)}, then inv verify"] if hosts else []
        remedies += others[:_REMEDIES_MAX]
        if more := len(others) - _REMEDIES_MAX:
            remedies += [f"and {more} remedies more, with the hosts above"] if more > 0 else []
        return remedies

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

    Attributes:
        result: passed, skipped or failed.
        case: Its whole name, with the parameters.
        lost: Why the host does not answer; None: it does.
        fix: What to do where it does not answer.
    """

    host: str
    test: str
    result: str
    why: str = ""
    case: str = ""
    lost: str | None = None
    fix: str | None = None

    @property
    def was_made(self) -> bool:
        return self.result in ("passed", "failed")


def read_junit(text: str) -> tuple[Outcome, ...]:
    """
    Return the cases of a JUnit file that pytest wrote.
    """
    root = ElementTree.fromstring(text)  # noqa: S314 - written by our own child
    return tuple(_outcome(case) for case in root.iter("testcase"))


def drop_lost_cases(root: ElementTree.Element) -> None:
    """
    Remove the cases of hosts that did not answer, and correct the counts of their suites.
    """
    for suite in root.iter("testsuite"):
        for case in suite.findall("testcase"):
            if _property(case, LOST) is not None:
                suite.remove(case)
        cases = suite.findall("testcase")
        for count, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(count, str(sum(case.find(kind) is not None for case in cases)))
        suite.set("tests", str(len(cases)))


def _outcome(case: ElementTree.Element) -> Outcome:
    name = case.get("name", "")
    match = _BACKEND.search(name)
    host, test = (match[1], name[: match.start()]) if match else ("", name)
    # A case with further parameters has them in the brackets too: `test_a[slipway://n1-blue]`.
    host = _property(case, HOST) or host
    lost, fix = _property(case, LOST), _property(case, LOST_FIX)
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            return Outcome(host, test, "failed", _reason(found), name, lost, fix)
    result = "passed" if case.find("skipped") is None else "skipped"
    return Outcome(host, test, result, case=name, lost=lost, fix=fix)


def _property(case: ElementTree.Element, name: str) -> str | None:
    values = [
        found.get("value", "") for found in case.iter("property") if found.get("name") == name
    ]
    return values[-1] if values else None


def _reason(found: ElementTree.Element) -> str:
    # The first line of the assertion's message.
    said = (found.get("message") or found.text or "").strip().splitlines()
    return (said[0] if said else "failed").removeprefix("AssertionError: ").removeprefix("Failed: ")
