"""
Which tests of hosts may run at the same time: `pytest tests/lab -n 2`.

A lab is used by one worker alone.  Two labs at a time use two cores well: a test of hosts waits
more than it computes.
"""

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

# Test modules that share a lab, by its name; each other module has labs of its own.
_SHARED = {
    "test_lab": "lab",
    "test_lab_leaves_nothing": "lab",
    "test_release": "lab",
    "test_slow_clients": "lab",
    "test_transport": "lab",
    "test_hostile_bundle": "hostile",
    "test_hostile_slot": "hostile",
    "test_drill": "drill",
    "test_interrupted": "drill",
}


def scope_of(nodeid: str) -> str:
    """
    Return the name that tests share which must not run at the same time.

    Tests of the simulation are each alone; those of another folder go by their module.
    """
    path = PurePosixPath(nodeid.partition("::")[0])
    if path.parent.name == "lab":
        return _SHARED.get(path.stem, path.stem)
    return nodeid if path.parent.name == "simulation" else str(path)


class OneLabAWorker(LoadScopeScheduling):
    """
    Gives all tests of a lab to one worker.

    xdist's `loadgroup` does not work with pytest 9.2, which keeps the name of a test apart.
    """

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)
