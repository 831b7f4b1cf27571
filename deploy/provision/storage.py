"""
Directories, and the free space that they need.
"""

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement, DiskSpace
from deploy.provision.resources import AnyResource, Directory
from deploy.provision.slot_resources import Reserve
from deploy.provision.spec import HostSpec

# For logs, journals and a second environment while the first is in use.
FLOOR_BYTES = 512 * 2**20


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    root = spec.storage_root
    paths = (layout.OPT, layout.STATE) if root is None else (root,)
    return [DiskSpace(path=path, floor_bytes=FLOOR_BYTES) for path in paths]


def install(spec: HostSpec) -> list[AnyResource]:
    public = (layout.OPT, layout.BIN, layout.STATE, layout.SLOT_LINKS)
    # Code and weights: for the group of the runtime.
    of_releases = (layout.VENVS, layout.RELEASES, layout.MODELS, f"{layout.MODELS}/blobs")
    return [
        *(Directory(path=path) for path in public),
        *(Directory(path=path, group=layout.USER, mode="0750") for path in of_releases),
        Directory(path=layout.WHEELHOUSE, group=layout.BUILD_USER, mode="0750"),
        # Uploads, before they are verified.
        Directory(path=layout.INCOMING, mode="0700"),
        Directory(path=layout.ETC, group=layout.USER, mode="0750"),
        *(Reserve(path=path, size=size) for path, size in layout.RESERVES.items()),
    ]


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    return []
