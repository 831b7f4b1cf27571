"""
Hosts of each supported distribution: provisioned twice, then verified.

SLIPWAY_LAB_TREES names the suites to boot, such as "trixie noble"; without it, Debian 13.
SLIPWAY_LAB_PYTHON names an archive of a standalone Python 3.11, which the hosts then get.  Without
it they have the row of their own Python.
"""

import hashlib
import os
import re
from pathlib import Path

import pytest

from deploy.lab import suites
from deploy.provision import provision
from deploy.verify import verify
from tests.lab.conftest import say
from tests.lab.own_lab import booted_lab
from tests.lab.provision_fixtures import ENV, World

ROWS = {
    "bookworm": "torch-2.13-cpu",
    "trixie": "torch-2.13-cpu-py313",
    "noble": "torch-2.13-cpu-py312",
    "resolute": "torch-2.13-cpu-py314",
}
TREES = os.environ.get("SLIPWAY_LAB_TREES", "trixie").split()
PYTHON = os.environ.get("SLIPWAY_LAB_PYTHON")


def python_of(archive):
    """
    Return the fleet's row and mirror of a standalone Python, whose release its file name has.
    """
    release = re.search(r"3\.11\.\d+", archive.name)
    assert release is not None, f"SLIPWAY_LAB_PYTHON: {archive.name} names no release of 3.11"
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    pin = {"release": release[0], "path": archive.name, "sha256": sha256}
    return {"python": {"folder": str(archive.parent), "archives": [pin]}}


@pytest.fixture(scope="module", params=TREES)
def world(request, tmp_path_factory):
    if request.param not in ROWS and PYTHON is None:
        pytest.skip(f"{suites.title(request.param)} needs SLIPWAY_LAB_PYTHON")
    with booted_lab("trees", 1, suite=request.param) as config:
        on = World(config, tmp_path_factory.mktemp("fleet"), hosts=("n1",))
        on.suite = request.param
        yield on


def fleet(world):
    if PYTHON is not None:
        return world.fleet(mirrors=python_of(Path(PYTHON)))
    return world.fleet(row=ROWS[world.suite])


def test_the_host_runs_the_suite(world):
    """
    The toolkit finds what the lab was asked for.
    """
    shown = world.inside("n1", ". /etc/os-release && echo $VERSION_CODENAME")
    assert shown == f"{world.suite}\n"
    say(f"{world.suite}: {world.inside('n1', 'python3 --version && systemctl --version')}")


def test_the_second_run_changes_nothing(world, tmp_path):
    """
    The first makes a bare host as pinned; the assertions hold.
    """
    first = provision(fleet(world), progress=lambda event: say(str(event)), env=ENV)
    assert first.failed == ()
    say(f"{world.suite}: {len(first.changes)} changes")
    second = provision(fleet(world), progress=lambda _: None, env=ENV)
    assert (second.changes, second.failed, second.commands) == ((), (), {"n1": 1})
    report = verify(fleet(world), junit=tmp_path / "junit.xml", progress=say)
    assert report.failed == ()
