"""
Every claim of docs/security.md names a test, and that test exists.
"""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"
HEAD = "| actor | what it holds | what it cannot get | test that shows it |"
TEST = re.compile(r"`(tests/[\w./-]+\.py)::(\w+)`")
ACTORS = {
    "client",
    "fleet file of a pull request",
    "host",
    "network attacker",
    "other local user",
    "other operator",
    "package mirror",
    "slot",
    "wheel or model author",
}


def claims(text):
    """
    Return the rows of the table of claims, as lists of four cells.
    """
    lines = text.splitlines()
    rows = []
    for line in lines[lines.index(HEAD) + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@cache
def defined_in(path):
    """
    Return the functions that pytest would collect from *path*, those of classes included.
    """
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def problems(text):
    """
    Yield each row that has no test, or names one that does not exist.
    """
    for row in claims(text):
        if len(row) != 4 or not all(row):
            yield f"not four cells: {row}"
            continue
        named = TEST.findall(row[3])
        if not named or re.sub(TEST, "", row[3]).strip(", "):
            yield f"names no test, or something else: {row[3]}"
        for path, name in named:
            if not (ROOT / path).is_file() or name not in defined_in(path):
                yield f"no such test: {path}::{name}"


def test_every_claim_has_a_test_that_exists():
    """
    A claim whose test was renamed or deleted looks held and is not.
    """
    assert list(problems(PAGE.read_text(encoding="utf-8"))) == []


def test_every_actor_has_a_claim():
    """
    The table covers all actors that the page is about.
    """
    assert ACTORS - {row[0] for row in claims(PAGE.read_text(encoding="utf-8"))} == set()


def test_a_claim_without_a_test_would_be_noticed():
    """
    Negative control: a missing file, a missing test, no test, other text, a missing cell.
    """
    own = "tests/unit/test_security_docs.py"
    rows = [
        f"| a | b | c | `{own}::test_a_claim_without_a_test_would_be_noticed` |",
        f"| a | b | c | `{own}::test_gone` |",
        "| a | b | c | `tests/unit/test_gone.py::test_gone` |",
        "| a | b | c | |",
        "| a | b | c | soon |",
        "| a | b | c |",
        "",
        f"| a | b | c | `{own}::test_after_the_table` |",
    ]
    text = "\n".join([HEAD, "| --- | --- | --- | --- |", *rows])
    assert len(list(problems(text))) == 5
