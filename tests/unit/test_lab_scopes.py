"""
Tests of hosts that run at the same time have labs of their own.
"""

import re
from collections import defaultdict
from pathlib import Path

from tests.lab.one_lab_a_worker import scope_of

LAB_TESTS = Path(__file__).parents[1] / "lab"
# What a module says where it uses a lab: a lab of its own by its name, a shared one by its fixture.
OWN = re.compile(r"\b(?:booted_lab|lab_config)\(\s*\"([a-z-]+)\"")
FIXTURES = {"lab_hosts": "the default lab", "spare": "spare", "lab_down": "spare", "drill": "drill"}
ARGUMENT = re.compile(r"\b(lab_hosts|spare|lab_down|drill)\b(?=[^()]*\)(?: -> [^:]+)?:$)", re.M)


def labs_by_scope(scope):
    found = defaultdict(set)
    for path in LAB_TESTS.glob("test_*.py"):
        text = path.read_text()
        labs = {*OWN.findall(text), *(FIXTURES[name] for name in ARGUMENT.findall(text))}
        found[scope(f"tests/lab/{path.name}::test")] |= labs
    return found


def shared(scope):
    """
    Return the labs that more than one scope uses.
    """
    by_lab = defaultdict(set)
    for name, labs in labs_by_scope(scope).items():
        for lab in labs:
            by_lab[lab].add(name)
    return {lab for lab, scopes in by_lab.items() if len(scopes) > 1}


def test_no_lab_is_used_by_two_workers():
    assert shared(scope_of) == set()


def test_a_lab_of_two_modules_is_seen():
    """
    Negative control: with a worker for each module, these would be shared.
    """
    assert shared(lambda nodeid: nodeid) == {"the default lab", "spare", "hostile", "drill"}


def test_each_test_of_the_simulation_is_alone():
    ids = [f"tests/simulation/test_mutants.py::test_a_broken_guard_is_noticed[{n}]" for n in "ab"]
    assert len({scope_of(nodeid) for nodeid in ids}) == 2


def test_tests_of_another_folder_go_by_their_module():
    assert scope_of("tests/unit/test_a.py::test_b[lab/c]") == "tests/unit/test_a.py"
