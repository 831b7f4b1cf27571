"""
`inv verify`: one login to each host, then pytest over all of them, side by side.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

from deploy.inventory.schema import Fleet, Host
from deploy.private_files import create_output
from deploy.verify.junit import is_whole, make_visible
from deploy.verify.report import Finding, Outcome, VerifyReport, read_junit
from deploy.verify.ssh_config import ssh_config
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import lock_digest

ENV_EXPECTED = "SLIPWAY_EXPECTED"  # the JSON file that tests/testinfra compares hosts with
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
    # Sockets live in it, and their paths may have some hundred characters.
    with tempfile.TemporaryDirectory(prefix="slw-", dir="/tmp") as name:
        folder = Path(name)
        config = folder / "ssh_config"
        config.write_text(ssh_config(fleet, folder), encoding="utf-8")
        expected = folder / "expected.json"
        expected.write_text(json.dumps(expectations(fleet)), encoding="utf-8")
        with _logins(fleet, config) as unreachable:
            absent = {finding.host for finding in unreachable}
            reached = [host for host in fleet.hosts if host.name not in absent]
            xml = folder / "junit.xml"
            why = _pytest(reached, config, expected, xml, progress, deadline_s) if reached else None
        outcomes = read_junit(xml.read_text(encoding="utf-8")) if xml.exists() else ()
        failed = [*unreachable, *(Finding(o.host, o.test, o.why) for o in _failed(outcomes))]
        failed += unasserted([host.name for host in reached], outcomes, why)
        _write(junit, xml, failed, outcomes)
    return VerifyReport(
        hosts=tuple(host.name for host in fleet.hosts),
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
            "row": row.name,
            "torch": row.version,
            "lock": lock_digest(row),
            "gpu": fleet.service.options.device == "cuda",
            "memory_max": fleet.service.memory_max,
            "tasks_max": fleet.service.tasks_max,
        }
    return found


@contextlib.contextmanager
def _logins(fleet: Fleet, config: Path) -> Iterator[list[Finding]]:
    """
    Log in to every host at once; yield those that can't be reached, log out at the end.
    """

    def log_in(host: Host) -> Finding | None:
        limit_s = 3 * host.ssh.connect_timeout
        try:
            done = _ssh(config, [host.name, "true"], limit_s)
        except subprocess.TimeoutExpired:
            return Finding(host.name, "reachable", f"no answer for {limit_s:.0f} s")
        if done.returncode == 0:
            return None
        said = done.stderr.strip().splitlines()
        return Finding(host.name, "reachable", said[-1] if said else "ssh said no")

    with ThreadPoolExecutor(max_workers=16) as pool:
        yield [finding for finding in pool.map(log_in, fleet.hosts) if finding is not None]
        for host in fleet.hosts:
            pool.submit(_log_out, config, host.name)


def _log_out(config: Path, host: str) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        _ssh(config, ["-O", "exit", host], 5.0)


def _ssh(config: Path, argv: list[str], limit_s: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["ssh", "-F", str(config), *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=limit_s,
        check=False,
    )


def _pytest(
    hosts: list[Host],
    config: Path,
    expected: Path,
    xml: Path,
    progress: Progress,
    deadline_s: float,
) -> str | None:
    """
    Run the tests; return why they could not be run to their end, if they could not.
    """
    argv = [
        *(sys.executable, "-m", "pytest", str(_TESTS)),
        *("--hosts", ",".join(f"ssh://{host.name}" for host in hosts)),
        *("--ssh-config", str(config), "--junitxml", str(xml)),
        *("--rootdir", str(_ROOT), "-c", str(_ROOT / "pyproject.toml"), "--color=no"),
        *("--override-ini", "addopts=", "--import-mode=importlib", "--verbose", "--tb=short"),
        *("-p", "no:cacheprovider", "-p", "testinfra.plugin", "-p", "xdist.plugin"),
        *("--override-ini", "timeout=0", "--override-ini", "filterwarnings="),
        *("--numprocesses", str(min(_workers(), len(hosts))), "--dist", "loadgroup"),
    ]
    env = pytest_environment(os.environ, expected)
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


def pytest_environment(env: Mapping[str, str], expected: Path) -> dict[str, str]:
    """
    Return the environment of our pytest: that of the caller without what changes a pytest run.

    PYTEST_ADDOPTS, PYTEST_PLUGINS, COV_CORE_* and their like could skip assertions in silence.
    """
    kept = {name: value for name, value in env.items() if not name.startswith(_OF_PYTEST)}
    # Every worker would import every plugin that is installed: a second of processor time each.
    ours = {ENV_EXPECTED: str(expected), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return kept | ours | {"PYTHONPATH": str(_ROOT)}


def _workers() -> int:
    # They wait for answers more than they compute.
    return min(8, 2 * (os.cpu_count() or 1))


def _failed(outcomes: tuple[Outcome, ...]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.result == "failed"]


def _write(junit: Path, xml: Path, failed: list[Finding], outcomes: tuple[Outcome, ...]) -> None:
    """
    Write *xml* to *junit*, with the failures that pytest does not know of.
    """
    root = ElementTree.parse(xml).getroot() if xml.exists() else ElementTree.Element("testsuites")  # noqa: S314
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
    make_visible(root)
    junit.parent.mkdir(parents=True, exist_ok=True)
    with create_output(junit) as file:
        ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)
