"""
The results of verification, and the parser of pytest's JUnit XML.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from deploy.errors import VerifyFailed
from deploy.foreign_text import visible

_TEXT_LIMIT = 1 << 16  # characters of one text in the XML
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
    Return the cases of a JUnit file that pytest wrote; none of a file that is not whole.
    """
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - written by our own child
    except ElementTree.ParseError:  # the child was killed while it wrote
        return ()
    return tuple(_outcome(case) for case in root.iter("testcase"))


def write_junit(
    path: Path, text: str, failed: Iterable[Finding], outcomes: Iterable[Outcome]
) -> None:
    """
    Write JUnit XML for CI: what pytest wrote, and the failures that it does not know of.

    Every text in it is made visible: what a host said may hold characters that XML does not have,
    or that a CI system would act on.

    Args:
        text: The file of pytest; empty: it wrote none.
        outcomes: The cases of that file.
    """
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - written by our own child
    except ElementTree.ParseError:
        root = ElementTree.Element("testsuites")
    known = {(outcome.host, outcome.test) for outcome in outcomes}
    extra = [finding for finding in failed if (finding.host, finding.test) not in known]
    if extra:
        count = str(len(extra))
        suite = ElementTree.SubElement(
            root, "testsuite", name="hosts", tests=count, failures=count, errors="0"
        )
        for finding in extra:
            case = ElementTree.SubElement(
                suite, "testcase", classname="hosts", name=f"{finding.test}[ssh://{finding.host}]"
            )
            ElementTree.SubElement(case, "failure", message=finding.why)
    for element in root.iter():
        element.text = _visible_lines(element.text)
        element.tail = _visible_lines(element.tail)
        for name, value in element.attrib.items():
            has_lines = name == "message"
            element.set(name, visible(value, limit=_TEXT_LIMIT, keep_lines=has_lines))
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _visible_lines(text: str | None) -> str | None:
    return text and visible(text, limit=_TEXT_LIMIT, keep_lines=True)


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
