"""
Tasks that are other programs: linters, pytest, the bench of the engine.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.cli.test_programs import provide_test_programs
from deploy.errors import UsageError

_ROOT = Path(__file__).parents[2]
_MOST_WORKERS = 8
_ALONE = "tests/lab/test_lab_leaves_nothing.py"
_LABS = "2"
# Not in the checkout: the tests' sshd runs where the home of root is another one.
_TEST_PROGRAMS = Path("/var/cache/slipway-tests")
_REFUSED = 2  # of argparse, which has said which flag


def run_checks(*, is_unit: bool, arguments: str, progress: Callable[[str], None]) -> int:
    """
    Run the linter, the types and the tests; return the status of the first that fails, or 0.

    As root it installs what the tests run, see `provide_test_programs`.

    Args:
        is_unit: Leave out the simulation and the tests on lab hosts.
        arguments: More arguments for pytest, separated by spaces.
    """
    folder = _ROOT / ".venv" / "bin"
    environment = os.environ | provide_test_programs(_TEST_PROGRAMS, progress)
    for argv in (
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        *_test_runs(is_unit=is_unit, arguments=arguments.split()),
    ):
        progress(f"$ {' '.join(argv)}")
        command = [str(folder / "python"), "-m", *argv] if argv[0] == "pytest" else argv
        if argv[0] != "pytest":
            command = [str(folder / argv[0]), *argv[1:]]
        # Tests make files of hosts, so they get the usual umask and not our private one.
        status = subprocess.run(
            command, cwd=_ROOT, umask=0o022, env=environment, check=False
        ).returncode
        if status:
            return status
    return 0


def run_driver_test(*, arguments: str, is_unit: bool) -> int:
    """
    Run the test that installs a driver on a lab host; return its status.

    Raises:
        UsageError: The other half of the tests was asked for too.
    """
    if is_unit:
        raise UsageError(
            "test: --unit and --driver contradict each other",
            why="--unit leaves out what needs hosts, --driver needs one",
            fix="give one of them",
        )
    python = _ROOT / ".venv" / "bin" / "python"
    argv = [str(python), "-m", "pytest", "-s", "tests/lab/test_driver.py"]
    environment = {**os.environ, "SLIPWAY_LAB_DRIVER": "1"}
    return subprocess.run(
        [*argv, *arguments.split()], cwd=_ROOT, umask=0o022, env=environment, check=False
    ).returncode


def _test_runs(*, is_unit: bool, arguments: list[str]) -> list[list[str]]:
    """
    Return the calls of pytest: one with *arguments*, else the unit tests on all cores first.

    Then the tests that compare the whole machine before and after a lab, alone; they also install
    what labs need, and build the tree of their hosts.  Two labs at a time for the others: hosts
    need the cores, and wait more than they compute.
    """
    others = [] if is_unit else ["tests/simulation", "tests/lab"]
    if arguments:
        return [["pytest", "tests/unit", *others, *arguments]]
    workers = str(min(os.cpu_count() or 1, _MOST_WORKERS))
    # Neighbours run in one process, and share the fixtures of their module.
    runs = [["pytest", "tests/unit", "-n", workers, "--dist", "worksteal"]]
    if others:
        runs.append(["pytest", _ALONE])
        runs.append(["pytest", *others, f"--ignore={_ALONE}", "-n", _LABS])
    return runs


def run_engine_bench(flags: Mapping[str, str], *, as_json: bool) -> int:
    """
    Run `python -m runtime.bench` and return its status.

    Args:
        flags: Its flags by name; an empty value is left to its default.

    Raises:
        UsageError: It refused a flag; it has said which on standard error.
    """
    argv = [sys.executable, "-m", "runtime.bench"]
    argv += [f"--{flag}={value}" for flag, value in flags.items() if value]
    argv += ["--json"] if as_json else []
    status = subprocess.run(argv, cwd=_ROOT, check=False).returncode
    if status == _REFUSED:
        raise UsageError(
            "bench.engine: a flag was refused",
            why="runtime.bench said so on standard error",
            fix="inv --help bench.engine",
        )
    return status
