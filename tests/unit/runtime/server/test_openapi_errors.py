import ast
import re
from collections import defaultdict

from runtime.server import api
from runtime.server.failures import FAILURES
from runtime.server.openapi_errors import CODES, WORDS
from tests.unit.runtime.started import ROOT

# Calls with a status or a code that is no literal: grammars._refused, body._invalid.
COMPUTED = {
    400: {"grammar_refused", "no_structured_output", "invalid_request"},
    422: {"invalid_request"},
}


def codes_of_the_code():
    found = defaultdict(set)
    for status, codes in COMPUTED.items():
        found[status] |= codes
    for status, code in [*api.CODES.items(), *(each[:2] for each in FAILURES.values())]:
        found[status].add(code)
    for path in (ROOT / "runtime/server").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Name(id="Refusal"),
                    args=[ast.Constant(value=int(status)), ast.Constant(value=str(code)), *_],
                ):
                    found[status].add(code)
    return found


def test_the_description_has_every_code():
    """
    Both ways; nobody gets a 499.
    """
    found = codes_of_the_code()
    del found[499]
    assert {status: set(codes) for status, codes in CODES.items()} == found
    assert WORDS.keys() == CODES.keys() - {405}  # of no method that a route has


def test_the_page_has_every_code():
    """
    In the table of docs/reference/runtime.md, in the row of its status.
    """
    page = (ROOT / "docs/reference/runtime.md").read_text()
    rows = re.findall(r"^\| ([0-9, ]+) \| (.*) \|$", page, re.MULTILINE)
    shown = defaultdict(set)
    for statuses, words in rows:
        for status in statuses.split(", "):
            shown[int(status)] |= set(re.findall(r"`([a-z_]+)`", words))
    for status, codes in CODES.items():
        assert set(codes) <= shown[status], status
