"""
Verification of hosts that nobody answers for, with the real ssh.
"""

import ast
from pathlib import Path
from xml.etree import ElementTree

from deploy.verify import run, verify
from tests.unit.deploy.inventory.builders import make_fleet

ROOT = Path(__file__).parents[4]


def closed_fleet(tmp_path):
    ports = {"n1": 1, "n2": 2}
    hosts = {n: {"address": "127.0.0.1", "ssh": {"port": p}} for n, p in ports.items()}
    return make_fleet(tmp_path, {"hosts": hosts, "row": "torch-2.13-cpu"})


def test_a_host_that_is_down_is_a_failure_and_in_the_xml(tmp_path):
    """
    Nothing is asserted of a host that can't be reached, and it is not passed over either.
    """
    report = verify(closed_fleet(tmp_path), junit=tmp_path / "out" / "v.xml", progress=print)
    assert [(f.host, f.test) for f in report.failed] == [("n1", "reachable"), ("n2", "reachable")]
    assert "refused" in report.failed[0].why
    cases = ElementTree.parse(report.junit).getroot().iter("testcase")
    assert [case.get("name") for case in cases] == ["reachable[ssh://n1]", "reachable[ssh://n2]"]


def test_hosts_are_compared_with_the_fleet(tmp_path):
    """
    What a host is compared with comes from the fleet file and the matrix.
    """
    found = run.expectations(closed_fleet(tmp_path))["n1"]
    assert found["torch"] == "2.13.0+cpu"
    assert found["port"] == 8000
    assert len(found["lock"]) == 64


def test_the_tests_read_what_is_written_for_them():
    """
    The tests of hosts look for their expectations where `verify` puts them.
    """
    tree = ast.parse((ROOT / "tests/testinfra/conftest.py").read_text())
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert run.ENV_EXPECTED in names
