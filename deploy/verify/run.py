"""
`inv verify`: pytest over all hosts, side by side, with one login to each.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from deploy.inventory.host_document import host_document
from deploy.inventory.schema import Fleet, Host
from deploy.private_files import create_output
from deploy.transport.sudo import PASSWORD_VARIABLE, kept_password
from deploy.verify.junit import is_whole, make_visible
from deploy.verify.report import (
    CONNECTION,
    Finding,
    Outcome,
    VerifyReport,
    drop_lost_cases,
    read_junit,
)
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import lock_digest

ENV_EXPECTED = "SLIPWAY_EXPECTED"  # the JSON file that tests/testinfra compares hosts with
ENV_HOSTS = "SLIPWAY_VERIFY_HOSTS"  # the JSON file that the plugin reads the hosts from
_EXPECTED, _HOSTS = "expected.json", "hosts.json"
_PLUGIN = "deploy.verify.plugin"
DEADLINE_S = 300.0
_OF_PYTEST = ("PYTEST", "PY_COLORS", "FORCE_COLOR", "COV_", "COVERAGE_", "_PYTEST", "PYTHON")
_ROOT = Path(__file__).parents[2]
_TESTS = _ROOT / "tests" / "testinfra"

Progress = Callable[[str], None]


def verify(
    fleet: Fleet, *, junit: Path, progress: Progress, deadline_s: float = DEADLINE_S
) -> VerifyReport:
    """
    Assert that every host of *fleet* is as provisioning leaves it; `report.error` says what isn't.

    Args:
        junit: Where the XML for CI is written.
        deadline_s: Longest time that the assertions take, in seconds.
    """
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="slipway-verify-") as name:
        xml = Path(name) / "junit.xml"
        _write_documents(fleet, Path(name))
        why = _pytest(fleet.hosts, Path(name), xml, progress, deadline_s)
        everything = read_junit(xml.read_text(encoding="utf-8")) if xml.exists() else ()
        lost = {o.host: o.lost for o in everything if o.lost is not None}
        outcomes = tuple(o for o in everything if o.lost is None)
        names = [host.name for host in fleet.hosts]
        failed = [Finding(name, "reachable", lost[name]) for name in names if name in lost]
        failed += [Finding(o.host, o.test, o.why) for o in outcomes if o.result == "failed"]
        failed += unasserted([name for name in names if name not in lost], outcomes, why)
        _write(junit, xml, failed, outcomes)
    return VerifyReport(
        hosts=tuple(names),
        passed=sum(outcome.result == "passed" for outcome in outcomes),
        skipped=sum(outcome.result == "skipped" for outcome in outcomes),
        failed=tuple(failed),
        junit=junit,
        took_s=time.monotonic() - started_s,
    )


def unasserted(hosts: Sequence[str], outcomes: Sequence[Outcome], why: str | None) -> list[Finding]:
    """
    Return a finding for each host that was not asserted to the end: silence is not health.

    Args:
        why: What ended the run early; None: nothing did.
    """
    heard = {outcome.host for outcome in outcomes}
    if why is None and heard >= set(hosts):
        return []
    reason = why or "not one assertion was made"
    return [Finding(h, "the run", reason) for h in hosts if why is not None or h not in heard]


def expectations(fleet: Fleet) -> dict[str, dict[str, object]]:
    """
    Return what the tests compare each host with.
    """
    matrix = load_matrix()
    found: dict[str, dict[str, object]] = {}
    for host in fleet.hosts:
        row = matrix.row(host.row)
        found[host.name] = {
            "sudo": host.ssh.user != "root",
            "port": fleet.service.port,
            "tls": fleet.service.tls.is_on,
            "row": row.name,
            "torch": row.version,
            "lock": lock_digest(row),
            "gpu": fleet.service.options.device == "cuda",
            "memory_max": fleet.service.memory_max,
            "tasks_max": fleet.service.tasks_max,
        }
    return found


def _pytest(
    hosts: Sequence[Host], folder: Path, xml: Path, progress: Progress, deadline_s: float
) -> str | None:
    """
    Run the tests; return why they could not be run to their end, if they could not.
    """
    argv = [
        *(sys.executable, "-m", "pytest", str(_TESTS)),
        *("--hosts", ",".join(f"{CONNECTION}://{host.name}" for host in hosts)),
        *("--junitxml", str(xml), "--rootdir", str(_ROOT), "-c", str(_ROOT / "pyproject.toml")),
        *("--override-ini", "addopts=", "--import-mode=importlib", "--verbose", "--tb=short"),
        *("--color=no", "-p", "no:cacheprovider", "-p", "testinfra.plugin", "-p", "xdist.plugin"),
        *("-p", _PLUGIN, "--override-ini", "timeout=0", "--override-ini", "filterwarnings="),
        *("--numprocesses", str(min(_workers(), len(hosts))), "--dist", "loadscope"),
    ]
    env = pytest_environment(os.environ, folder)
    if (password := kept_password()) is not None:  # its workers connect, and have no other way
        env[PASSWORD_VARIABLE] = password
    child = subprocess.Popen(
        argv,
        cwd=_ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert child.stdout is not None
    timer = threading.Timer(deadline_s, child.kill)
    timer.start()
    last: list[str] = []
    try:
        for line in child.stdout:
            last = [*last[-20:], line.rstrip()]
            if " PASSED " in line:  # the report tells the others, with their reasons
                progress(line.strip())
        child.wait()
    finally:
        timer.cancel()
        child.kill()
        child.wait()
    if not is_whole(xml):
        xml.unlink(missing_ok=True)
    if child.returncode in (0, 1) and xml.exists():  # all passed; some failed
        return None
    if child.returncode < 0:
        return f"the assertions did not end within {deadline_s:.0f} s"
    return f"pytest ended with status {child.returncode}: {' / '.join(filter(None, last[-3:]))}"


def pytest_environment(env: Mapping[str, str], folder: Path) -> dict[str, str]:
    """
    Return the environment of our pytest: that of the caller without what changes a pytest run.

    PYTEST_ADDOPTS, PYTEST_PLUGINS, COV_CORE_* and their like could skip assertions in silence.

    Args:
        folder: Has the files of `_write_documents`.
    """
    kept = {name: value for name, value in env.items() if not name.startswith(_OF_PYTEST)}
    # Every worker would import every plugin that is installed: a second of processor time each.
    ours = {
        ENV_EXPECTED: str(folder / _EXPECTED),
        ENV_HOSTS: str(folder / _HOSTS),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return kept | ours | {"PYTHONPATH": str(_ROOT)}


def _workers() -> int:
    # They wait for answers more than they compute.
    return min(8, 2 * (os.cpu_count() or 1))


def _write_documents(fleet: Fleet, folder: Path) -> None:
    """
    Write what the workers read: the hosts, and the values to compare them with.
    """
    hosts = [host_document(host) for host in fleet.hosts]
    (folder / _HOSTS).write_text(json.dumps(hosts), encoding="utf-8")
    (folder / _EXPECTED).write_text(json.dumps(expectations(fleet)), encoding="utf-8")


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
