"""
A standalone Python is compared with its archive: program, record and every file.
"""

from dataclasses import replace

import pytest

from deploy.host.protocol import FactQuery, VenvFacts
from deploy.provision.interpreter_resource import StandalonePython
from deploy.provision.resource_set import ResourceSet
from tests.unit.deploy.provision.builders import make_facts, path_like

PYTHON = StandalonePython(
    python="3.11", release="3.11.16", sha256="a" * 64, source="/x.tar.gz", size=30 << 20
)
AS_PLACED = VenvFacts(is_recorded=True, altered=(), altered_count=0, problem=None)


def difference(tree, python=PYTHON, **program):
    resources = ResourceSet(requirements=(), placed=(), running=())
    program = path_like(python, **{"mode": "0755", "sha256": None} | program)
    facts = make_facts(
        resources, paths={python.program: program}, venvs={python.path: tree}, room={}
    )
    found = python.difference(facts)
    return found.change if found else None


def test_one_whose_files_are_as_recorded_is_as_pinned():
    """
    With the same one look as everything else.
    """
    assert difference(AS_PLACED) is None
    assert PYTHON.query == FactQuery(
        paths={PYTHON.program: ""}, venvs=(PYTHON.path,), room=(PYTHON.disk,)
    )


@pytest.mark.parametrize(
    ("tree", "change"),
    [
        (None, "send 30.0MiB and unpack it"),
        (
            replace(AS_PLACED, is_recorded=False),
            "its files were not recorded: send 30.0MiB and unpack it",
        ),
        (
            replace(AS_PLACED, altered=("lib/a.py", "lib/b.py"), altered_count=2),
            "2 of its files are not as recorded (lib/a.py, lib/b.py): send 30.0MiB and unpack it",
        ),
    ],
)
def test_one_with_another_file_is_placed_again_and_says_which(tree, change):
    assert difference(tree) == change


def test_one_whose_program_was_changed_says_so():
    assert difference(AS_PLACED, mode="0777").startswith("its program: mode 0777")
    away = PYTHON.model_copy(update={"source": None, "size": 0})
    assert "fetch it from mirrors.python" in difference(AS_PLACED, away, mode="0777")
