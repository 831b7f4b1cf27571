"""
A few cells of `inv drill`: one fault at one journal line of a release or a rollback.

The whole matrix is docs/reference/drill.md.
"""

import pytest

from deploy.drill.cells import Task, cells_of, spread
from deploy.drill.faults import Fault
from deploy.host.layout import BACKEND, HAPROXY_SOCKET
from deploy.lab import lab
from tests.lab.conftest import IS_LONG

# Of each command; about 20 s each.
RELEASE_CELLS, ROLLBACK_CELLS = (10, 10) if IS_LONG else (3, 1)
SET_WEIGHT = (
    "import socket, sys; link = socket.socket(socket.AF_UNIX); "
    f"link.connect({HAPROXY_SOCKET!r}); "
    f"link.sendall(f'set weight {BACKEND}/{{sys.argv[1]}} {{sys.argv[2]}}\\n'.encode()); "
    "print(link.recv(4096).decode())"
)


def set_weight(drill, host, slot, weight):
    argv = ["python3", "-I", "-c", SET_WEIGHT, slot, str(weight)]
    lab.inside(host, argv, config=drill.lab.config)


def test_a_split_host_is_seen_as_one(drill, eventually):
    """
    Negative control: what the drill reads inside a host shows a split that no operator knows of.
    """
    versions = drill.lab.wait_for_one_version(20.0)
    assert set(versions) == {"n1", "n2"}
    assert len(set(versions.values())) == 1
    [slot] = [s for s, pct in drill.lab.states()["n2"].weights.items() if pct]
    set_weight(drill, "n2", slot, 90)
    try:
        eventually(lambda: drill.lab.versions()["n2"], None)
        assert drill.lab.versions()["n1"] == versions["n1"]
    finally:
        set_weight(drill, "n2", slot, 100)
    eventually(drill.lab.versions, dict(versions))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("task", "count"), [(Task.RELEASE, RELEASE_CELLS), (Task.ROLLBACK, ROLLBACK_CELLS)]
)
def test_one_fault_leaves_every_host_with_one_version(drill, task, count):
    """
    Within the lease and 5 s, with no operator; then another checkout brings the fleet to one.
    """
    cells = cells_of(task, drill.record(task), list(Fault))
    results = [drill.run(cell, "rollback") for cell in spread(cells, count)]
    assert {str(r.cell): r.faults for r in results if r.faults} == {}
    assert any(result.is_reached for result in results)
