"""
The pytest process of `inv verify`: nothing that the caller set reaches it.

Its settings are a file of ours; it reads no pytest.ini, no pyproject.toml and no conftest.py but
that of the assertions, loads no plugin but ours, and refuses to run beside another
(`deploy.verify.plugin`).
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.transport.sudo import PASSWORD_VARIABLE, kept_password
from deploy.verify.junit import is_whole
from deploy.verify.report import CONNECTION

ENV_EXPECTED = "SLIPWAY_EXPECTED"  # the JSON file that tests/testinfra compares hosts with
ENV_HOSTS = "SLIPWAY_VERIFY_HOSTS"  # the JSON file that the plugin reads the hosts from
EXPECTED, HOSTS = "expected.json", "hosts.json"
_PLUGIN = "deploy.verify.plugin"
_ROOT = Path(__file__).parents[2]
# Of pytest, its plugins and Python: PYTHONPATH may hold a sitecustomize.py.
_OF_PYTEST = ("PYTEST", "PY_COLORS", "FORCE_COLOR", "COV_", "COVERAGE_", "_PYTEST", "PYTHON")
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); import pytest; sys.exit(pytest.main())"


def run_pytest(
    tests: Path,
    hosts: Sequence[str],
    folder: Path,
    progress: Callable[[str], None],
    deadline_s: float,
) -> tuple[Path, str | None]:
    """
    Run *tests* on *hosts*; return the JUnit XML, and why they could not be run to their end.

    Args:
        folder: Has the files EXPECTED and HOSTS; the XML and the settings are written there.
    """
    xml, settings = folder / "junit.xml", folder / "pytest.ini"
    settings.write_text("[pytest]\n", encoding="utf-8")
    argv = [
        # -I: neither the environment nor the current directory is read.
        *(sys.executable, "-I", "-c", _START, str(_ROOT), str(tests)),
        *("--hosts", ",".join(f"{CONNECTION}://{host}" for host in hosts)),
        *("--junitxml", str(xml), "-c", str(settings), "--rootdir", str(_ROOT)),
        *("--confcutdir", str(tests), "--import-mode=importlib", "--verbose", "--tb=short"),
        *("--color=no", "-p", "no:cacheprovider", "-p", "testinfra.plugin", "-p", "xdist.plugin"),
        *("-p", _PLUGIN, "--numprocesses", str(min(_workers(), len(hosts)))),
        *("--dist", "loadscope"),
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
        errors="replace",
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
        return xml, None
    if child.returncode < 0:
        return xml, f"the assertions did not end within {deadline_s:.0f} s"
    ending = " / ".join(filter(None, last[-3:]))
    return xml, f"pytest ended with status {child.returncode}: {ending}"


def pytest_environment(env: Mapping[str, str], folder: Path) -> dict[str, str]:
    """
    Return the environment of our pytest: that of the caller without what changes a pytest run.

    PYTEST_ADDOPTS, PYTEST_PLUGINS, COV_CORE_*, PYTHONPATH and their like could skip assertions in
    silence.

    Args:
        folder: Has the files EXPECTED and HOSTS.
    """
    kept = {name: value for name, value in env.items() if not name.startswith(_OF_PYTEST)}
    return kept | {
        ENV_EXPECTED: str(folder / EXPECTED),
        ENV_HOSTS: str(folder / HOSTS),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        # For the workers of xdist, which are started without -I.
        "PYTHONNOUSERSITE": "1",
        "PYTHONSAFEPATH": "1",
    }


def _workers() -> int:
    # They wait for answers more than they compute.
    return min(8, 2 * (os.cpu_count() or 1))
