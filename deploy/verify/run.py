"""
`inv verify`: pytest over all hosts, side by side, with one login to each.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from deploy.inventory.host_document import host_document
from deploy.inventory.schema import Fleet
from deploy.private_files import create_output
from deploy.verify.assertions import SUITE, Suite
from deploy.verify.child import EXPECTED, HOSTS, run_pytest
from deploy.verify.completeness import unmade
from deploy.verify.junit import make_visible
from deploy.verify.report import (
    CONNECTION,
    REACHABLE,
    Finding,
    Outcome,
    VerifyReport,
    drop_lost_cases,
    read_junit,
)
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import interpreter_of, lock_digest

DEADLINE_S = 300.0

Progress = Callable[[str], None]


def verify(
    fleet: Fleet,
    *,
    junit: Path,
    progress: Progress,
    deadline_s: float = DEADLINE_S,
    suite: Suite = SUITE,
) -> VerifyReport:
    """
    Assert that every host of *fleet* is as provisioning leaves it; `report.error` says what isn't.

    Args:
        junit: Where the XML for CI is written.
        deadline_s: Longest time that the assertions take, in seconds.
        suite: The assertions.
    """
    started_s = time.monotonic()
    names = [host.name for host in fleet.hosts]
    expected = expectations(fleet)
    with tempfile.TemporaryDirectory(prefix="slipway-verify-") as name:
        folder = Path(name)
        hosts = [host_document(host) for host in fleet.hosts]
        (folder / HOSTS).write_text(json.dumps(hosts), encoding="utf-8")
        (folder / EXPECTED).write_text(json.dumps(expected), encoding="utf-8")
        xml, why = run_pytest(suite.folder, names, folder, progress, deadline_s)
        everything = read_junit(xml.read_text(encoding="utf-8")) if xml.exists() else ()
        lost = {outcome.host: outcome for outcome in everything if outcome.lost is not None}
        outcomes = tuple(outcome for outcome in everything if outcome.lost is None)
        failed = _unreachable(names, lost)
        failed += [
            Finding(outcome.host, outcome.test, outcome.why)
            for outcome in outcomes
            if outcome.result == "failed" and outcome.host in names
        ]
        implied = {name: suite.implied(expected[name]) for name in names if name not in lost}
        failed += unmade(implied, outcomes, why or _broken(names, outcomes))
        _write(junit, xml, failed, outcomes)
    return VerifyReport(
        hosts=tuple(names),
        passed=sum(outcome.result == "passed" for outcome in outcomes),
        skipped=sum(outcome.result == "skipped" for outcome in outcomes),
        failed=tuple(failed),
        junit=junit,
        took_s=time.monotonic() - started_s,
    )


def _unreachable(names: Sequence[str], lost: dict[str, Outcome]) -> list[Finding]:
    return [
        Finding(name, REACHABLE, lost[name].lost or "", fix=lost[name].fix)
        for name in names
        if name in lost
    ]


def _broken(names: Sequence[str], outcomes: Sequence[Outcome]) -> str | None:
    """
    Return the failure of a case of no host, such as a test file that cannot be read.
    """
    broken = [o for o in outcomes if o.result == "failed" and o.host not in names]
    return f"{broken[0].test}: {broken[0].why}" if broken else None


def expectations(fleet: Fleet) -> dict[str, dict[str, object]]:
    """
    Return what the tests compare each host with.
    """
    matrix = load_matrix()
    found: dict[str, dict[str, object]] = {}
    for host in fleet.hosts:
        row = matrix.row(host.row)
        pin = interpreter_of(fleet.mirrors.python, row)
        found[host.name] = {
            "sudo": host.ssh.user != "root",
            "port": fleet.service.port,
            "tls": fleet.service.tls.is_on,
            "row": row.name,
            "torch": row.version,
            "lock": lock_digest(row, interpreter=pin.line if pin else None),
            "gpu": fleet.service.options.device == "cuda",
            "needs_driver": row.needs_gpu,
            "driver_version": fleet.driver.version if row.needs_gpu else None,
            "storage_root": fleet.storage.root,
            "memory_max": fleet.service.memory_max,
            "tasks_max": fleet.service.tasks_max,
        }
    return found


def _write(junit: Path, xml: Path, failed: list[Finding], outcomes: tuple[Outcome, ...]) -> None:
    """
    Write *xml* to *junit*, with one case for each lost host and for what pytest does not know.
    """
    root = ElementTree.parse(xml).getroot() if xml.exists() else ElementTree.Element("testsuites")  # noqa: S314
    drop_lost_cases(root)
    known = {(outcome.host, outcome.test) for outcome in outcomes}
    extra = [finding for finding in failed if (finding.host, finding.test) not in known]
    if extra:
        count = str(len(extra))
        suite = ElementTree.SubElement(
            root, "testsuite", name="hosts", tests=count, failures=count, errors="0"
        )
        for finding in extra:
            name = f"{finding.test}[{CONNECTION}://{finding.host}]"
            case = ElementTree.SubElement(suite, "testcase", classname="hosts", name=name)
            ElementTree.SubElement(case, "failure", message=finding.why)
    make_visible(root)
    junit.parent.mkdir(parents=True, exist_ok=True)
    with create_output(junit) as file:
        ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)
