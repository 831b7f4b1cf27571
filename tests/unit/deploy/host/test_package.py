"""
The package as a whole: what hosts can run.
"""

import ast
from pathlib import Path

import pytest

import deploy.host
from deploy import errors
from deploy.errors import DeployError

PACKAGE = Path(deploy.host.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_python_3_9_can_read_it(path):
    """
    Hosts have Python 3.9 or newer.
    """
    ast.parse(path.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("source", ["match x:\n    case 1: pass", "def f[T](x: T): pass"])
def test_the_check_for_3_9_would_notice(source):
    """
    Negative control: what came later than 3.9 is refused.
    """
    with pytest.raises(SyntaxError):
        ast.parse(source, feature_version=(3, 9))


def test_every_kind_of_error_is_one_that_the_controller_raises():
    """
    What a host calls an error is a class of deploy/errors.py.
    """
    kinds = {
        node.args[0].value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "HostError"
        and isinstance(node.args[0], ast.Constant)
    }

    assert len(kinds) > 5
    assert all(issubclass(getattr(errors, kind), DeployError) for kind in kinds)
