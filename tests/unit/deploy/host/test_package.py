"""
The package can run on hosts.
"""

import ast
from pathlib import Path

import pytest

import deploy.host

PACKAGE = Path(deploy.host.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
WITH_MESSAGES = ["bundle/manifest.py", "protocol.py", "records.py", "rpc.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_python_3_9_can_read_it(path):
    """
    Hosts have Python 3.9 or newer.
    """
    ast.parse(path.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("source", ["match x:\n    case 1: pass", "def f[T](x: T): pass"])
def test_the_check_for_3_9_would_notice(source):
    """
    Negative control: newer syntax is refused.
    """
    with pytest.raises(SyntaxError):
        ast.parse(source, feature_version=(3, 9))


def evaluated_unions(source):
    """
    Return the annotations of classes in *source* that Python 3.9 cannot evaluate: `X | None`.
    """
    return [
        ast.unparse(field.annotation)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and any(isinstance(part, ast.BitOr) for part in ast.walk(field.annotation))
    ]


@pytest.mark.parametrize("name", WITH_MESSAGES)
def test_python_3_9_can_evaluate_the_annotations_of_messages(name):
    """
    The codec evaluates them, so `from __future__ import annotations` does not help.
    """
    source = (PACKAGE / name).read_text()

    assert "@dataclass" in source
    assert evaluated_unions(source) == []


def test_a_union_in_a_message_would_be_noticed():
    """
    Negative control: also inside another type.
    """
    source = (
        "class A:\n    x: int | None = None\n    y: tuple[int | None, ...]\n    z: Optional[int]\n"
    )

    assert evaluated_unions(source) == ["int | None", "tuple[int | None, ...]"]


def decoded_modules():
    """
    Yield the modules of the package that pass a dataclass to the codec.
    """
    for path in SOURCES:
        source = path.read_text()
        if "@dataclass" in source:
            yield path.relative_to(PACKAGE).as_posix()


def test_the_list_of_modules_with_messages_is_complete():
    """
    A new module with messages must be added to it.
    """
    assert sorted(decoded_modules()) == WITH_MESSAGES
