"""
What a host is like after provisioning.  Read-only: runs against the lab and against production.

Run by `inv verify`, which says in SLIPWAY_EXPECTED what each host is compared with.
"""

import contextlib
import json
import os
from pathlib import Path

import pytest

# As in deploy/verify/run.py, which is slow to import for the one name.
ENV_EXPECTED = "SLIPWAY_EXPECTED"


def pytest_collection_modifyitems(items):
    # One worker a host: its connection is warm, and a slow host holds up only itself.
    for item in items:
        backend = getattr(item, "callspec", None)
        if backend is not None and "_testinfra_backend" in backend.params:
            item.add_marker(pytest.mark.xdist_group(str(backend.params["_testinfra_backend"])))


@pytest.fixture(scope="session")
def all_expected():
    path = os.environ.get(ENV_EXPECTED)
    if path is None:
        pytest.skip("inv verify says what hosts are compared with")
    return json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected(host, all_expected):
    """
    What the host of this test should be like.
    """
    return all_expected[host.backend.hostname]


@pytest.fixture(scope="module")
def root(host, expected):
    """
    The host, with the rights of root.
    """
    with host.sudo() if expected["sudo"] else contextlib.nullcontext():
        yield host
