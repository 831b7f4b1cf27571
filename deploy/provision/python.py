"""
uv, and the Python environment of the row.  Hosts need no index: everything is sent from here.
"""

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement, PythonThere
from deploy.provision.resources import AnyResource, Upload, Venv, WheelFile
from deploy.provision.spec import Goal


def requirements(goal: Goal) -> list[AnyRequirement]:
    return [PythonThere(version=goal.row.python)]


def install(goal: Goal) -> list[AnyResource]:
    uv, lock = goal.uv, goal.lock
    wheels = tuple(
        WheelFile(file=w.file, sha256=w.sha256, size=w.size, source=str(w.path))
        for w in lock.wheels
    )
    return [
        Upload(
            path=f"{layout.UV}-{uv.sha256[:16]}",
            source=str(uv.path),
            sha256=uv.sha256,
            size=uv.size,
            mode="0755",
            link=layout.UV,
        ),
        Venv(digest=lock.digest, text=lock.text, python=lock.python, wheels=wheels),
    ]


def configure(goal: Goal) -> list[AnyResource]:
    return []


def activate(goal: Goal) -> list[AnyResource]:
    return []
