"""
slipway's directories on another disk: bind mounts from `storage.root`, so that every path stays.
"""

from deploy.host import layout
from deploy.provision.bind_mount import BindMount
from deploy.provision.requirements import AnyRequirement, DataInPlace
from deploy.provision.resources import AnyResource, Directory, File
from deploy.provision.spec import HostSpec
from deploy.templating import render

# Directory below the root, and the unit, which systemd requires to be named after its path.
MOUNTS = {
    layout.OPT: ("opt", "opt-slipway.mount"),
    layout.STATE: ("lib", "var-lib-slipway.mount"),
}


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    if spec.storage_root is None:
        return []
    return [
        DataInPlace(where=where, unit=unit, unit_file=_unit_file(unit), what=what)
        for where, what, unit in _mounts(spec.storage_root)
    ]


def install(spec: HostSpec) -> list[AnyResource]:
    if spec.storage_root is None:
        return []
    mounts = _mounts(spec.storage_root)
    return [
        Directory(path=spec.storage_root),
        *(Directory(path=what) for _, what, _ in mounts),
        *(
            File(path=_unit_file(unit), content=mount(where, what).encode())
            for where, what, unit in mounts
        ),
        *(BindMount(unit=unit, where=where, what=what) for where, what, unit in mounts),
    ]


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    return []


def mount(where: str, what: str) -> str:
    """
    Return the text of the unit that binds *what* to *where*.
    """
    return render("slipway-data.mount", where=where, what=what)


def _mounts(root: str) -> list[tuple[str, str, str]]:
    return [(where, f"{root}/{name}", unit) for where, (name, unit) in MOUNTS.items()]


def _unit_file(unit: str) -> str:
    return f"{layout.UNITS}/{unit}"
