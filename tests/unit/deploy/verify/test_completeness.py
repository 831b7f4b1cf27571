"""
What ran, counted against what the fleet file implies.
"""

import importlib.util
import math
from pathlib import Path

import pytest

from deploy.verify.assertions import SUITE
from deploy.verify.completeness import unmade
from deploy.verify.report import Outcome

IMPLIED = {"n1": {"test_a": 1, "test_b": 2}}


def made(test, parameter="", host="n1", result="passed"):
    return Outcome(host, test, result, case=f"{test}[slipway://{host}{parameter}]")


ALL = [made("test_a"), made("test_b", "-x"), made("test_b", "-y")]


def test_a_host_with_all_its_assertions_has_no_finding():
    """
    A failed assertion was made; one that the fleet file does not imply is not missed.
    """
    failed = made("test_b", "-y", result="failed")
    assert unmade(IMPLIED, ALL, None) == []
    assert unmade(IMPLIED, [*ALL[:2], failed], None) == []
    assert unmade(IMPLIED, [*ALL, made("test_c", result="skipped")], None) == []


@pytest.mark.parametrize(
    "outcomes",
    [
        pytest.param(ALL[:2], id="deselected"),
        pytest.param([*ALL[:2], made("test_b", "-y", result="skipped")], id="skipped or xfail"),
        pytest.param([*ALL[:2], ALL[1]], id="ran twice on two workers"),
        pytest.param([*ALL[:2], made("test_b", "-y", host="n2")], id="ran on another host"),
        pytest.param([*ALL[:2], made("test_bb", "-y")], id="another test"),
    ],
)
def test_each_missing_case_is_noticed(outcomes):
    """
    The finding counts and names it.
    """
    [finding] = unmade(IMPLIED, outcomes, None)
    assert (finding.host, finding.test) == ("n1", "the run")
    assert finding.why == "1 of 3 assertions were not made: test_b"
    assert "restore tests/testinfra" in finding.fix


def test_a_host_without_any_assertion_has_failed():
    """
    Also if pytest exits with 0; a long list of names is cut.
    """
    implied = {"n1": {"test_a": 1}, "n2": {f"test_{number}": 1 for number in range(9)}}
    [finding] = unmade(implied, [made("test_a")], None)
    assert finding.host == "n2"
    assert finding.why.startswith("9 of 9 assertions were not made: test_0, test_1")
    assert finding.why.endswith("test_4, ...")


def test_a_run_that_ends_early_fails_every_host():
    """
    Assertions before a crash or a timeout are incomplete.
    """
    [finding] = unmade(IMPLIED, ALL, "the assertions did not end within 300 s")
    assert (finding.host, finding.test) == ("n1", "the run")
    assert finding.why == "the assertions did not end within 300 s"


def cases_in(folder):
    """
    Return the number of cases of each test in *folder*, as its files have them.
    """
    cases = {}
    for path in sorted(folder.glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(f"assertions_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, function in vars(module).items():
            if name.startswith("test_"):
                assert name not in cases, "two assertions have one name"
                marks = getattr(function, "pytestmark", [])
                values = [mark.args[1] for mark in marks if mark.name == "parametrize"]
                cases[name] = math.prod(map(len, values))
    return cases


def test_the_suite_names_every_assertion_of_its_folder():
    """
    A new one is added to deploy/verify/assertions.py.
    """
    assert {one.test: one.cases for one in SUITE.assertions} == cases_in(SUITE.folder)


def test_an_assertion_that_is_not_named_would_be_noticed(tmp_path):
    """
    Negative control: of the comparison above.
    """
    for path in SUITE.folder.glob("test_*.py"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "test_new.py").write_text("def test_new(root):\n    pass\n")
    cases = cases_in(Path(tmp_path))
    assert cases.pop("test_new") == 1
    assert cases == cases_in(SUITE.folder)


@pytest.mark.parametrize(
    ("tls", "needs_driver", "missing"),
    [
        (False, False, 10),  # four of TLS, five of the driver, the data disk
        (True, False, 7),  # that of plain HTTP, five of the driver, the data disk
        (True, True, 4),  # its version and packages are those of the fleet file
    ],
)
def test_the_fleet_file_decides_what_is_implied(tls, needs_driver, missing):
    """
    TLS of the port, and a row with a driver.
    """
    values = {"tls": tls, "needs_driver": needs_driver, "storage_root": None}
    values["driver_version"] = None
    implied = SUITE.implied(values)
    assert len(implied) == len(SUITE.assertions) - missing
    assert ("test_the_certificate_lasts" in implied) is tls
    on_disk = SUITE.implied(values | {"storage_root": "/data"})
    assert on_disk.items() - implied.items() == {("test_its_directories_lie_on_the_data_disk", 2)}
