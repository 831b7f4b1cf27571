"""
Verification of hosts that do not answer, and the pytest that asserts.
"""

import ast
import os
from pathlib import Path
from xml.etree import ElementTree

from deploy.verify import run, verify
from deploy.verify.report import Outcome, read_junit
from tests.unit.deploy.inventory.builders import make_fleet

ROOT = Path(__file__).parents[4]


def closed_fleet(tmp_path):
    ports = {"n1": 1, "n2": 2}
    hosts = {n: {"address": "127.0.0.1", "ssh": {"port": p}} for n, p in ports.items()}
    return make_fleet(tmp_path, {"hosts": hosts, "row": "torch-2.13-cpu"})


def test_a_host_that_is_down_is_a_failure_and_in_the_xml(tmp_path):
    """
    No assertion runs for it, and it is not skipped either.
    """
    report = verify(closed_fleet(tmp_path), junit=tmp_path / "out" / "v.xml", progress=print)
    assert [(f.host, f.test) for f in report.failed] == [("n1", "reachable"), ("n2", "reachable")]
    assert "refused" in report.failed[0].why
    cases = ElementTree.parse(report.junit).getroot().iter("testcase")
    assert [case.get("name") for case in cases] == [
        "reachable[slipway://n1]",
        "reachable[slipway://n2]",
    ]


def test_hosts_are_compared_with_the_fleet(tmp_path):
    """
    The expected values come from the fleet file and the matrix.
    """
    expected = run.expectations(closed_fleet(tmp_path))["n1"]
    assert (expected["row"], expected["torch"]) == ("torch-2.13-cpu", "2.13.0+cpu")
    assert expected["port"] == 8000
    assert len(expected["lock"]) == 64


def test_the_assertions_read_the_file_that_verify_writes():
    """
    It has the expected values.
    """
    tree = ast.parse((ROOT / "tests/testinfra/conftest.py").read_text())
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert run.ENV_EXPECTED in names


def test_a_host_without_any_assertion_has_failed():
    """
    Also if pytest exits with 0.
    """
    heard = [Outcome("n1", "test_a", "passed")]
    assert run.unasserted(["n1"], heard, None) == []
    assert [f.host for f in run.unasserted(["n1", "n2"], heard, None)] == ["n2"]
    assert [f.host for f in run.unasserted(["n1", "n2"], (), None)] == ["n1", "n2"]


def test_a_run_that_ends_early_fails_every_host():
    """
    Assertions before a crash or a timeout are incomplete.
    """
    heard = [Outcome("n1", "test_a", "passed")]
    [finding] = run.unasserted(["n1"], heard, "the assertions did not end within 300 s")
    assert (finding.host, finding.test) == ("n1", "the run")


def test_a_pytest_that_cannot_run_fails_its_hosts(tmp_path, monkeypatch):
    """
    Missing tests, or an internal error of pytest.
    """
    monkeypatch.setattr(run, "_TESTS", tmp_path / "nowhere")
    fleet = closed_fleet(tmp_path)
    why = run._pytest(fleet.hosts, tmp_path, tmp_path / "junit.xml", lambda _: None, 60.0)
    assert why is not None
    assert "pytest ended with status" in why


TWO_TESTS = """
import pytest

pytestmark = pytest.mark.parametrize("host", ["slipway://n1"])

def test_a(host):
    pass

def test_b(host):
    pass
"""
SETTINGS = {
    "PYTEST_ADDOPTS": "-k test_a --cov=src",
    "PYTEST_PLUGINS": "no_such_plugin",
    "PYTHONWARNINGS": "error",
    "FORCE_COLOR": "1",
    "PY_COLORS": "1",
}


def run_two_tests(tmp_path, monkeypatch):
    """
    Run two tests as `inv verify` does, with the caller's pytest settings in effect.
    """
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_two.py").write_text(TWO_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -k test_a\n")
    monkeypatch.setattr(run, "_TESTS", folder)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    host = closed_fleet(tmp_path).hosts[0]
    xml, lines = tmp_path / "junit.xml", []
    why = run._pytest([host], tmp_path, xml, lines.append, 60.0)
    return why, read_junit(xml.read_text()) if xml.exists() else (), lines


def test_the_callers_pytest_settings_do_not_reach_it(tmp_path, monkeypatch):
    """
    Neither from the environment nor from a pytest.ini above the tests; progress has no colour.
    """
    why, outcomes, lines = run_two_tests(tmp_path, monkeypatch)
    assert why is None
    assert sorted(outcome.test for outcome in outcomes) == ["test_a", "test_b"]
    assert len(lines) == 2
    assert not any("\x1b" in line for line in lines)


def test_the_callers_pytest_settings_would_be_noticed(tmp_path, monkeypatch):
    """
    Negative control: if passed on, they change the run.
    """
    monkeypatch.setattr(run, "pytest_environment", lambda env, folder: dict(os.environ))
    why, _, _ = run_two_tests(tmp_path, monkeypatch)
    assert why is not None


def test_no_variable_of_pytest_is_passed_on(tmp_path):
    """
    Other variables are, such as the SSH agent's.
    """
    agent = {"SSH_AUTH_SOCK": "/run/agent"}
    env = run.pytest_environment(SETTINGS | agent | {"COV_CORE_SOURCE": "x"}, tmp_path)
    assert set(env) == {
        *agent, run.ENV_EXPECTED, run.ENV_HOSTS, "PYTEST_DISABLE_PLUGIN_AUTOLOAD", "PYTHONPATH"
    }  # fmt: skip
