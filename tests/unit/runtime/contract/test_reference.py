"""
`docs/reference/runtime.md` says what the code says.
"""

import re
from pathlib import Path

import pytest

from runtime import contract
from runtime.server.api import CODES
from runtime.server.config import RuntimeConfig
from runtime.server.generation import ENDINGS
from runtime.server.middleware import ROUTES
from runtime.server.schemas import CompletionBody, GenerateBody

PAGE = (Path(__file__).parents[4] / "docs/reference/runtime.md").read_text()
NAMED = set(re.findall(r"`([^`]+)`", PAGE))
LATER = {"/v1/chat/completions"}  # in the contract, and not served yet


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(set(RuntimeConfig.model_fields), id="configuration"),
        pytest.param(
            set(GenerateBody.model_fields) | set(CompletionBody.model_fields), id="bodies"
        ),
        pytest.param(
            {getattr(contract, name) for name in dir(contract) if name.startswith("ENV_")}, id="env"
        ),
        pytest.param({code for _, code, _ in ENDINGS.values()} | set(CODES.values()), id="codes"),
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
    And none that is not served.
    """
    told = {name.split()[-1] for name in NAMED if re.match(r"(GET|POST) /", name)}
    assert {route.partition("?")[0] for route in told} == ROUTES - LATER


def test_defaults_are_those_of_the_code():
    """
    The table's default column, key by key.
    """
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, re.MULTILINE))
    for model in (RuntimeConfig, GenerateBody):
        for key, field in model.model_fields.items():
            if key in rows and isinstance(field.default, int | float) and key != "stream":
                assert float(rows[key]) == field.default, key
