"""
uv, a standalone Python where the fleet has one, and the Python environment of the row.  All of it
is sent from here: hosts need no package index.
"""

from deploy.host import layout
from deploy.provision.interpreter_resource import StandalonePython
from deploy.provision.requirements import AnyRequirement, PythonAvailable, RowFits
from deploy.provision.resources import AnyResource, ComparedTorch, Upload, Venv, WheelFile
from deploy.provision.spec import HostSpec
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import Lock


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    row = spec.row
    rows = {
        other.name: other.python
        for other in load_matrix().rows
        if (other.torch, other.build) == (row.torch, row.build) and other.lock
    }
    return [
        RowFits(
            row=row.name,
            torch=row.minor,
            cuda=row.cuda or "cpu",
            python=row.python,
            driver=spec.driver.version if row.needs_gpu else None,
        ),
        PythonAvailable(version=row.python, rows=rows, is_sent=spec.interpreter is not None),
    ]


def install(spec: HostSpec) -> list[AnyResource]:
    uv, pin = spec.uv, spec.interpreter
    standalone: list[AnyResource] = []
    if pin is not None:
        standalone = [
            StandalonePython(
                python=pin.python,
                release=pin.release,
                sha256=pin.sha256,
                disk=spec.storage_root or layout.OPT,
            )
        ]
    return [
        Upload(
            path=f"{layout.UV}-{uv.sha256[:16]}",
            source=str(uv.path),
            sha256=uv.sha256,
            size=uv.size,
            mode="0755",
            link=layout.UV,
        ),
        *standalone,
        _venv(spec),
    ]


def _venv(spec: HostSpec) -> Venv:
    lock = spec.lock
    return Venv(
        digest=lock.digest,
        text=lock.text,
        python=lock.python,
        wheels=wheel_files(lock) if lock.is_fetched else None,
        disk=spec.storage_root or layout.OPT,
        torch=spec.row.version,
    )


def wheel_files(lock: Lock) -> tuple[WheelFile, ...]:
    """
    Return the wheels of *lock*, which are on this machine.
    """
    return tuple(
        WheelFile(
            file=w.file, sha256=w.sha256, size=w.size, source=str(w.path), unpacked=w.unpacked
        )
        for w in lock.wheels
    )


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    return [ComparedTorch(venv=_venv(spec))] if spec.row.needs_gpu else []
