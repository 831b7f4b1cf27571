"""
Builds valid specifications, and facts of hosts that match them except for what a test names.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

from deploy.host import layout
from deploy.host.protocol import Facts, PathFacts, UnitFacts, UserFacts, VenvFacts
from deploy.inventory.schema import Mirrors, ReleasePolicy, Service
from deploy.inventory.secrets import SecretValue
from deploy.provision.apt_packages import Packages
from deploy.provision.apt_sources import AptSources, OsRelease
from deploy.provision.bind_mount import BindMount
from deploy.provision.certificate_resources import Certificate
from deploy.provision.concerns import plan_resources
from deploy.provision.deadman_resources import DeadmanMark, EnabledUnits
from deploy.provision.differences import fact_query
from deploy.provision.driver.gpu_state import GpuUnit
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import (
    Absent,
    Directory,
    File,
    Upload,
    Venv,
)
from deploy.provision.slot_resources import Reserve, SlotUnit, Socket
from deploy.provision.spec import HostSpec
from deploy.provision.unit_resources import EnabledService
from deploy.provision.user_resources import User
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import CachedWheel, Lock, UvProgram

TOKEN = "s3cret-Token.1"  # of the made-up service
MAC_KEY = "c" * 64
PLENTY = 2**40
DEBIAN = OsRelease(os_id="debian", codename="bookworm")


def make_spec(
    *,
    row="torch-2.13-cpu",
    mirrors=None,
    tokens=(TOKEN,),
    storage_root=None,
    interpreter=None,
    **service,
):
    text = "torch==2.13.0+cpu --hash=sha256:" + "0" * 64 + "\n"
    wheel = CachedWheel(
        "torch-2.13.0+cpu-cp311.whl", "1" * 64, 190_000_000, Path("/wheels/torch.whl"), 700_000_000
    )
    digest = hashlib.sha256(text.encode()).hexdigest()
    settings = {"device": "cpu", "precision": "fp32", "threads": 2, "memory_max": 2 * 2**30}
    return HostSpec(
        fleet="prod",
        row=load_matrix().row(row),
        lock=Lock(digest=digest, text=text, python="3.11", wheels=(wheel,)),
        service=Service.model_construct(**dict(Service()) | settings | service),
        release=ReleasePolicy(),
        mirrors=mirrors or Mirrors(),
        api_tokens=tuple(SecretValue(token) for token in tokens),
        allowed_signers='lab@slipway namespaces="slipway-bundle" ssh-ed25519 AAAA\n',
        host_program=b"#!a zipapp",
        uv=UvProgram(Path("/wheels/uv"), "2" * 64, 38_000_000, "uv==1.0"),
        mac_key=MAC_KEY,
        storage_root=storage_root,
        interpreter=interpreter,
    )


def make_resources(**changes):
    return plan_resources(make_spec(**changes))


def make_facts(resource_set: ResourceSet, **changes) -> Facts:
    """
    Return the facts of a host that has *resource_set*, except for *changes*.
    """
    query = fact_query(resource_set)
    values = {
        "paths": dict.fromkeys({**query.paths, **query.secrets}),
        "packages": dict.fromkeys(query.packages),
        "users": dict.fromkeys(query.users),
        "units": {
            name: UnitFacts(load="loaded", active="inactive", enabled="disabled", stale=False)
            for name in query.units
        },
        "venvs": dict.fromkeys(query.venvs),
        "listings": {folder: {} for folder in query.listings},
        "listeners": (),
        "room": dict.fromkeys(query.room, PLENTY),
        "haproxy": None,
        "lease": None,
        "pythons": ("3.11",),
        "machine": "x86_64",
        "os_id": "debian",
        "codename": "bookworm",
        "has_apt": True,
        "driver": None,
        "gpu_count": 8,
    }
    for resource in (*resource_set.placed, *resource_set.running):
        _fulfil(resource, values)
    return Facts(**values | changes)


def bare(resource_set: ResourceSet, **changes) -> Facts:
    """
    Return the facts of a host with only its distribution.
    """
    empty = make_facts(ResourceSet(requirements=resource_set.requirements, placed=(), running=()))
    query = fact_query(resource_set)
    unit = UnitFacts(load="not-found", active="inactive", enabled="", stale=False)
    return replace(
        empty,
        **{
            "paths": dict.fromkeys({**query.paths, **query.secrets}),
            "packages": dict.fromkeys(query.packages),
            "users": dict.fromkeys(query.users),
            "venvs": dict.fromkeys(query.venvs),
            "units": dict.fromkeys(query.units, unit),
            "listings": {folder: {} for folder in query.listings},
            "room": dict.fromkeys(query.room, PLENTY),
        }
        | changes,
    )


def path_like(resource, **changes):
    """
    Return the facts of the file or directory *resource*, except for *changes*.
    """
    values = {
        "type": "file",
        "mode": "0644",
        "owner": "root",
        "group": "root",
        "size": 1,
        "sha256": getattr(resource, "sha256", None),
    }
    for name in ("mode", "owner", "group", "size"):
        if hasattr(resource, name):
            values[name] = getattr(resource, name)
    if isinstance(resource, Directory):
        values["type"] = "directory"
    if getattr(resource, "mac", None) is not None:
        values |= {"mac": resource.mac, "sha256": None}
    return PathFacts(**values | changes)


def _fulfil(resource, values):
    match resource:
        case Packages():
            values["packages"] |= dict.fromkeys(resource.names, "1.0-1")
        case AptSources() if resource.sources:
            text = resource.text(DEBIAN)
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            values["paths"][resource.path] = path_like(resource, sha256=sha256)
        case User():
            values["users"][resource.user] = UserFacts(
                group=resource.user,
                shell=resource.shell,
                home=resource.home,
                groups=(),
                is_locked=True,
            )
        case Reserve():
            values["paths"][resource.path] = path_like(resource, mode="0600", sha256=None)
        case Directory() | File():
            values["paths"][resource.path] = path_like(resource)
        case Certificate():
            values["paths"][resource.path] = path_like(resource, mode="0600", sha256=None)
        case Upload():
            values["paths"][resource.path] = path_like(resource)
            link = {"type": "link", "mode": "0777", "target": resource.path, "sha256": None}
            values["paths"][resource.link] = path_like(resource, **link)
        case Venv():
            values["paths"][resource.complete] = path_like(resource)
            closed = {"type": "directory", "mode": "0750", "group": layout.USER, "sha256": None}
            values["paths"][resource.path] = path_like(resource, **closed)
            values["venvs"][resource.path] = VenvFacts(
                is_recorded=True, altered=(), altered_count=0, problem=None
            )
            values["listings"][layout.WHEELHOUSE] = {w.file: w.size for w in resource.wheels}
        case EnabledService():
            values["units"][resource.unit] = UnitFacts(
                load="loaded", active="active", enabled="enabled", stale=False
            )
            values["haproxy"] = resource.description
            values["paths"][resource.socket] = PathFacts(
                type="other", mode="0600", owner="root", group="root", size=0
            )
        case BindMount():
            values["units"][resource.unit] = UnitFacts(
                load="loaded", active="active", enabled="enabled", stale=False
            )
        case SlotUnit():
            values["units"].setdefault(
                resource.unit,
                UnitFacts(load="loaded", active="inactive", enabled="disabled", stale=False),
            )
        case EnabledUnits():
            values["units"] |= {
                name: UnitFacts(load="loaded", active="active", enabled="enabled", stale=False)
                for name in resource.units
            }
        case GpuUnit():
            values["units"][resource.name] = UnitFacts(
                load="loaded", active="active", enabled="enabled", stale=False
            )
        case DeadmanMark():
            values["paths"][resource.path] = path_like(resource)
        case Absent() | Socket():
            values["paths"][resource.path] = None


def find(resource_set: ResourceSet, name: str):
    """
    Return the resource with the operator's name *name*.
    """
    [resource] = [r for r in (*resource_set.placed, *resource_set.running) if r.name == name]
    return resource
