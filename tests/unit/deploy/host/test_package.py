"""
The package as a whole: what hosts can run.
"""

import ast
from pathlib import Path

import pytest

import deploy.host

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
