"""
`docs/reference/runtime.md` and `docs/reference/openai.md` match the code.
"""

import re
from pathlib import Path

import pytest

from runtime import contract
from runtime.contract.engine_options import OPTIONS
from runtime.server.api import CODES
from runtime.server.config import RuntimeConfig
from runtime.server.failures import FAILURES
from runtime.server.middleware import ROUTES
from runtime.server.openai_bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from runtime.server.schemas import GenerateBody

PAGE = (Path(__file__).parents[4] / "docs/reference/runtime.md").read_text()
BODIES = (GenerateBody, ChatBody, CompletionBody, TokenizeBody, DetokenizeBody)
OPENAI = (Path(__file__).parents[4] / "docs/reference/openai.md").read_text()
NAMED = set(re.findall(r"`([^`]+)`", PAGE + OPENAI))


@pytest.mark.parametrize(
    "names",
    [
        # Those of the engine are explained, every one, in `inventories/example.yml`.
        pytest.param(set(RuntimeConfig.model_fields) - set(OPTIONS), id="configuration"),
        pytest.param({field for body in BODIES for field in body.model_fields}, id="bodies"),
        pytest.param(
            {getattr(contract, name) for name in dir(contract) if name.startswith("ENV_")}, id="env"
        ),
        pytest.param({code for _, code, _ in FAILURES.values()} | set(CODES.values()), id="codes"),
        pytest.param(
            {
                getattr(contract, name)
                for name in dir(contract)
                if name.endswith(("_TOTAL", "_SECONDS", "_REQUESTS")) or name.startswith("KV_")
            },
            id="metrics",
        ),
    ],
)
def test_every_name_is_in_the_page(names):
    """
    Keys, variables, codes and metrics.
    """
    assert len(names) > 3
    assert names - NAMED == set()


def test_every_route_is_in_the_page():
    """
    The page has no route that is not served.
    """
    documented = {name.split()[-1] for name in NAMED if re.match(r"(GET|POST) /", name)}
    assert {route.partition("?")[0] for route in documented} == ROUTES


def compared(page):
    """
    Yield key, default in *page* and default in the code, of numbers and names.
    """
    rows = re.findall(r"^\| `(?!slipway_)([a-z_]+)` \| ([^|]+) \|", page, re.MULTILINE)
    fields = {**GenerateBody.model_fields, **RuntimeConfig.model_fields}
    for key, text in rows:
        default = fields[key].default if key in fields else None
        is_word = isinstance(default, bool) or not isinstance(default, int | float | str)
        if key not in fields or not is_word:  # none, required and false are words
            yield key, text, default


def wrong_defaults(page):
    return [
        key
        for key, text, default in compared(page)
        if default is None
        or text != (f"{default:g}" if isinstance(default, float) else str(default))
    ]


def test_documented_defaults_match_the_code():
    """
    The table's default column, key by key.
    """
    assert len(list(compared(PAGE))) == 23
    assert wrong_defaults(PAGE) == []


def test_a_wrong_default_would_be_noticed():
    """
    Negative control: each kind of key, and a key that the code does not have.
    """
    for row, slip in (
        ("| `threads` | 1 |", "| `threads` | 2 |"),
        ("| `max_queue_requests` | 256 |", "| `max_queue_requests` | 255 |"),
        ("| `max_tokens` | 64 |", "| `max_tokens` | 46 |"),
        ("| `device` | cpu |", "| `device` | cuda |"),
    ):
        assert PAGE.count(row) == 1
        assert wrong_defaults(PAGE.replace(row, slip)) == [re.findall(r"\w+", row)[0]]
    assert wrong_defaults(PAGE.replace("| `gpus` |", "| `gpu` |")) == ["gpu"]
