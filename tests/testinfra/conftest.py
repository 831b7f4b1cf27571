"""
The state of a host after provisioning.  Read-only: runs against the lab and against production.

`inv verify` runs it; SLIPWAY_EXPECTED names the file of expected values.
"""

import contextlib
import json
import os
from pathlib import Path

import pytest

# The value of deploy.verify.child, which is slow to import.
ENV_EXPECTED = "SLIPWAY_EXPECTED"


@pytest.fixture(scope="session")
def all_expected():
    path = os.environ.get(ENV_EXPECTED)
    if path is None:
        pytest.skip("needs the expected values that inv verify writes")
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected(host, all_expected):
    """
    The expected values of the host of this test.
    """
    return all_expected[host.backend.hostname]


@pytest.fixture(scope="module")
def root(host, expected):
    """
    The host, with the rights of root.
    """
    with host.sudo() if expected["sudo"] else contextlib.nullcontext():
        yield host
