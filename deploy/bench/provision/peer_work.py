"""
The resources of a host as a peer writes them: a playbook of Ansible, a deploy of pyinfra.  Pure.

Peers get what they have modules for.  What only slipway has (start of slots, the dead-man's test,
reserve files) is left out of theirs and named, so peers do a little less.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.host import layout
from deploy.provision import deadman_resources, resources, unit_resources, user_resources
from deploy.provision.apt_packages import Packages
from deploy.provision.resources import AnyResource

# A bare Debian host has no Python, which modules need; Ansible's apt needs its binding besides.
FIRST_COMMAND = (
    "[ -d /usr/lib/python3/dist-packages/apt ] || "
    "{ apt-get update -q && apt-get install -q -y python3 python3-apt; }"
)
_CACHE_S = 3600  # package lists younger than this are not read again


@dataclass(frozen=True)
class PeerWork:
    """
    Attributes:
        files: {name: content or path on this machine} of what is copied to hosts.
        left_out: Names of the resources that peers have no module for.
    """

    playbook: str
    deploy: str
    files: dict[str, bytes | str]
    left_out: tuple[str, ...]


def peer_work(wanted: Sequence[AnyResource], folder: str) -> PeerWork:
    """
    Return the work of peers for the resources *wanted*; they read the files below *folder*.
    """
    files: dict[str, bytes | str] = {}
    tasks: list[dict[str, Any]] = [{"name": "Python", "ansible.builtin.raw": FIRST_COMMAND}]
    tasks[0]["changed_when"] = False
    operations = [f"server.shell(name='Python', commands=[{FIRST_COMMAND!r}])"]
    left_out = []
    for resource in wanted:
        translated = _translate(resource, folder, files)
        if translated is None:
            left_out.append(resource.name)
            continue
        tasks += translated[0]
        operations += translated[1]
    play = {"hosts": "all", "gather_facts": False, "tasks": tasks}
    return PeerWork(
        playbook=json.dumps([play], indent=1),  # JSON is YAML
        deploy="\n".join((_PYINFRA_IMPORTS, *operations, "")),
        files=files,
        left_out=tuple(left_out),
    )


_PYINFRA_IMPORTS = "from pyinfra.operations import apt, files, server, systemd"

Translated = tuple[list[dict[str, Any]], list[str]]


def _translate(
    resource: AnyResource, folder: str, files: dict[str, bytes | str]
) -> Translated | None:
    """
    Return the tasks of Ansible and the operations of pyinfra; None: there are no modules for it.
    """
    match resource:
        case Packages():
            return _packages(resource)
        case user_resources.User():
            return _user(resource)
        case resources.Directory():
            module = {
                "path": resource.path,
                "state": "directory",
                "owner": resource.owner,
                "group": resource.group,
                "mode": resource.mode,
            }
            operation = _call(
                "files.directory",
                resource.name,
                path=resource.path,
                user=resource.owner,
                group=resource.group,
                mode=resource.mode.lstrip("0"),
            )
            return [_task(resource.name, "file", module)], [operation]
        case resources.File():
            files[_file_name(files)] = resource.content
            return _copied(
                resource.name,
                f"{folder}/{next(reversed(files))}",
                resource.path,
                (resource.owner, resource.group, resource.mode),
            )
        case resources.Absent():
            module = {"path": resource.path, "state": "absent"}
            operation = _call("files.file", resource.name, path=resource.path, present=False)
            return [_task(resource.name, "file", module)], [operation]
        case resources.Upload():
            files[_file_name(files)] = resource.source
            source = f"{folder}/{next(reversed(files))}"
            owner = ("root", "root", resource.mode)
            tasks, operations = _copied(resource.name, source, resource.path, owner)
            if resource.link is None:
                return tasks, operations
            module = {"src": resource.path, "dest": resource.link, "state": "link"}
            operation = _call(
                "files.link", f"link {resource.link}", path=resource.link, target=resource.path
            )
            return [*tasks, _task(f"link {resource.link}", "file", module)], [
                *operations,
                operation,
            ]
        case resources.Venv():
            return _venv(resource, folder, files)
        case unit_resources.EnabledService():
            return _units((resource.unit,))
        case deadman_resources.EnabledUnits():
            return _units((resource.timer,))
        case _:
            return None


def _packages(resource: Packages) -> Translated:
    module = {
        "name": list(resource.names),
        "update_cache": True,
        "cache_valid_time": _CACHE_S,
        "install_recommends": False,
    }
    operation = _call(
        "apt.packages",
        resource.name,
        packages=list(resource.names),
        update=True,
        cache_time=_CACHE_S,
        no_recommends=True,
    )
    return [_task(resource.name, "apt", module)], [operation]


def _user(resource: user_resources.User) -> Translated:
    module = {
        "name": resource.user,
        "group": resource.user,
        "home": resource.home,
        "shell": resource.shell,
        "system": True,
        "create_home": False,
    }
    group = {"name": resource.user, "system": True}
    return [
        _task(f"group {resource.user}", "group", group),
        _task(resource.name, "user", module),
    ], [
        _call("server.group", f"group {resource.user}", group=resource.user, system=True),
        _call(
            "server.user",
            resource.name,
            user=resource.user,
            group=resource.user,
            home=resource.home,
            shell=resource.shell,
            system=True,
            ensure_home=False,
            create_home=False,
        ),
    ]


def _copied(name: str, source: str, path: str, owner: tuple[str, str, str]) -> Translated:
    user, group, mode = owner
    module = {"src": source, "dest": path, "owner": user, "group": group, "mode": mode}
    operation = _call(
        "files.put", name, src=source, dest=path, user=user, group=group, mode=mode.lstrip("0")
    )
    return [_task(name, "copy", module)], [operation]


def _venv(resource: resources.Venv, folder: str, files: dict[str, bytes | str]) -> Translated:
    tasks, operations = [], []
    for wheel in resource.wheels or ():
        files[wheel.file] = wheel.source
        target = f"{layout.WHEELHOUSE}/{wheel.file}"
        copied = _copied(
            wheel.file, f"{folder}/{wheel.file}", target, ("root", "slipway-build", "0640")
        )
        tasks += copied[0]
        operations += copied[1]
    wheels = " ".join(f"{layout.WHEELHOUSE}/{wheel.file}" for wheel in resource.wheels or ())
    build = (
        f"{layout.UV} venv -q --python {resource.python} {resource.path} && "
        f"{layout.UV} pip install -q --python {resource.path}/bin/python --offline --no-deps "
        f"--no-cache --compile-bytecode {wheels} && chgrp slipway {resource.path} && "
        f"chmod 0750 {resource.path} && touch {resource.complete}"
    )
    module = {"cmd": f"sh -c '{build}'", "creates": resource.complete}
    command = f"test -e {resource.complete} || {{ {build}; }}"
    return [*tasks, _task(resource.name, "command", module)], [
        *operations,
        _call("server.shell", resource.name, commands=[command]),
    ]


def _units(units: Sequence[str]) -> Translated:
    tasks = [
        _task(unit, "systemd_service", {"name": unit, "enabled": True, "state": "started"})
        for unit in units
    ]
    operations = [
        _call("systemd.service", unit, service=unit, running=True, enabled=True) for unit in units
    ]
    return tasks, operations


def _task(name: str, module: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, f"ansible.builtin.{module}": arguments}


def _call(function: str, name: str, **arguments: Any) -> str:
    words = ", ".join(f"{key}={value!r}" for key, value in {"name": name, **arguments}.items())
    return f"{function}({words})"


def _file_name(files: dict[str, bytes | str]) -> str:
    return f"{len(files):03d}"
