"""
Directories, and the room that they need.
"""

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement, Room
from deploy.provision.resources import AnyResource, Directory
from deploy.provision.spec import Goal

# What is left for logs, journals and a second venv while the first one is in use.
FLOOR_BYTES = 512 * 2**20


def requirements(goal: Goal) -> list[AnyRequirement]:
    return [
        Room(path=layout.OPT, floor_bytes=FLOOR_BYTES),
        Room(path=layout.STATE, floor_bytes=FLOOR_BYTES),
    ]


def install(goal: Goal) -> list[AnyResource]:
    public = (
        *(layout.OPT, layout.BIN, layout.WHEELHOUSE, layout.VENVS, layout.RELEASES),
        *(layout.STATE, layout.MODELS, f"{layout.MODELS}/blobs", layout.SLOT_LINKS),
    )
    return [
        *(Directory(path=path) for path in public),
        # Nothing in it is verified yet.
        Directory(path=layout.INCOMING, mode="0700"),
        Directory(path=layout.ETC, group=layout.USER, mode="0750"),
    ]


def configure(goal: Goal) -> list[AnyResource]:
    return []


def activate(goal: Goal) -> list[AnyResource]:
    return []
