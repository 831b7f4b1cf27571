import inspect
import re
from pathlib import Path

import pytest

from deploy import errors
from deploy.errors import DeployError

ROOT = Path(__file__).parents[3]
CLASSES = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, DeployError)
}
LEAF = re.compile(r"^(?P<indent>[│├└─ ]*)(?P<name>\w+) +(?P<code>\d+) +\S", re.MULTILINE)


def tree(text):
    """
    Return {class: (parent, exit code)} as the tree at the top of errors.py draws it.
    """
    drawn, parents = {}, []
    for match in LEAF.finditer(text):
        depth = len(match["indent"]) // 4
        parents[depth:] = [match["name"]]
        drawn[match["name"]] = (parents[depth - 1] if depth else None, int(match["code"]))
    return drawn


def classes():
    return {
        name: (None if kind is DeployError else kind.__bases__[0].__name__, kind.exit_code)
        for name, kind in CLASSES.items()
    }


def test_the_tree_in_the_docstring_matches_the_classes():
    """
    Names, parents and exit codes.
    """
    assert tree(errors.__doc__) == classes()


def test_a_wrong_tree_does_not_match():
    """
    Negative control: a wrong code, parent or name in the tree is a difference.
    """
    for old, new in [
        ("InventoryError         2 ", "InventoryError         3 "),
        ("│   ├── PortInUse   ", "├── PortInUse   "),
        ("LeaseLost ", "LeaseGone "),
    ]:
        assert old in errors.__doc__
        assert tree(errors.__doc__.replace(old, new)) != classes()


def test_every_error_has_an_exit_code_of_its_own():
    """
    A script can distinguish all errors by the exit code; 0 is success.
    """
    codes = [kind.exit_code for kind in CLASSES.values()]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 64 for code in codes)


def test_an_error_has_what_why_and_fix():
    """
    Three lines as text, and a JSON document.
    """
    error = errors.LeaseHeld("gpu-01 is taken", why="ann holds it", fix="wait", host="gpu-01")

    assert str(error) == "gpu-01 is taken\n  why: ann holds it\n  fix: wait"
    assert error.as_json() == {
        "kind": "LeaseHeld",
        "what": "gpu-01 is taken",
        "why": "ann holds it",
        "fix": "wait",
        "exit_code": 6,
        "host": "gpu-01",
    }
    assert "host" not in errors.LeaseHeld("x", why="y", fix="z").as_json()


def test_why_and_fix_are_required():
    """
    An error without a remedy cannot be constructed.
    """
    with pytest.raises(TypeError):
        DeployError("only what")
    with pytest.raises(TypeError):
        DeployError("what", why="why")


def code_table(text):
    """
    Return {class: exit code} of the rows `| code | Class | ... |`, in either order of the columns.
    """
    codes_by_name = {}
    for line in text.splitlines():
        cells = [cell.strip(" `") for cell in line.strip().strip("|").split("|")]
        codes = [cell for cell in cells[:2] if cell.isdigit()]
        names = [cell for cell in cells[:2] if cell in CLASSES]
        if codes and names:
            codes_by_name[names[0]] = int(codes[0])
    return codes_by_name


def test_the_manual_lists_every_exit_code():
    """
    docs/reference/cli.md has one row for each error, with its exit code.
    """
    page = ROOT / "docs/reference/cli.md"
    assert code_table(page.read_text()) == {name: kind.exit_code for name, kind in CLASSES.items()}


def test_the_table_is_read_in_either_order_of_its_columns():
    """
    Negative control: a wrong code in the table is read as such.
    """
    assert code_table("| 2 | `InventoryError` | the file |") == {"InventoryError": 2}
    assert code_table("| `InventoryError` | 3 | the file |") == {"InventoryError": 3}
