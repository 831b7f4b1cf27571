"""
uv, and the Python environment of the row.  Wheels are sent from here: hosts need no package index.
"""

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement, PythonAvailable
from deploy.provision.resources import AnyResource, Upload, Venv, WheelFile
from deploy.provision.spec import HostSpec
from deploy.wheelhouse import Lock


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return [PythonAvailable(version=spec.row.python)]


def install(spec: HostSpec) -> list[AnyResource]:
    uv, lock = spec.uv, spec.lock
    return [
        Upload(
            path=f"{layout.UV}-{uv.sha256[:16]}",
            source=str(uv.path),
            sha256=uv.sha256,
            size=uv.size,
            mode="0755",
            link=layout.UV,
        ),
        Venv(
            digest=lock.digest,
            text=lock.text,
            python=lock.python,
            wheels=wheel_files(lock) if lock.is_fetched else None,
            disk=spec.storage_root or layout.OPT,
        ),
    ]


def wheel_files(lock: Lock) -> tuple[WheelFile, ...]:
    """
    Return the wheels of *lock*, which are on this machine.
    """
    return tuple(
        WheelFile(file=w.file, sha256=w.sha256, size=w.size, source=str(w.path))
        for w in lock.wheels
    )


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    return []
