"""
Verification of hosts that do not answer, and what the assertions compare with.
"""

import ast
from pathlib import Path
from xml.etree import ElementTree

from deploy.verify import child, run, verify
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
    assert "inv provision --limit" not in report.error.fix
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
    assert child.ENV_EXPECTED in names
