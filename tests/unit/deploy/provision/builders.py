"""
Goals that are right but for what a test names, and hosts that are as a site wants them.
"""

import hashlib
from pathlib import Path

from deploy.host import layout
from deploy.inventory.schema import Host, Mirrors, ReleasePolicy, Service, Ssh
from deploy.inventory.secrets import SecretValue
from deploy.provision.concerns import plan_site
from deploy.provision.differences import question_of
from deploy.provision.resources import (
    Absent,
    Directory,
    File,
    Packages,
    Upload,
    User,
    Venv,
)
from deploy.provision.resources import Service as ServiceResource
from deploy.provision.seen import Path as SeenPath
from deploy.provision.seen import Seen, Unit
from deploy.provision.seen import User as SeenUser
from deploy.provision.spec import Binary, Goal
from deploy.provision.worker_request import Site
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse import Lock, Wheel

TOKEN = "s3cret-Token.1"  # of the made-up service
PLENTY = 2**40


def make_goal(*, row="torch-2.13-cpu", mirrors=None, tokens=(TOKEN,), **service):
    text = "torch==2.13.0+cpu --hash=sha256:" + "0" * 64 + "\n"
    wheel = Wheel("torch-2.13.0+cpu-cp311.whl", "1" * 64, 190_000_000, Path("/wheels/torch.whl"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    settings = {"device": "cpu", "precision": "fp32", "threads": 2, "memory_max": 2 * 2**30}
    return Goal(
        host=Host(name="n1", address="192.0.2.1", groups=(), row=row, ssh=Ssh(), vars={}),
        row=load_matrix().row(row),
        lock=Lock(digest=digest, text=text, python="3.11", wheels=(wheel,)),
        service=Service.model_construct(**Service().model_dump() | settings | service),
        release=ReleasePolicy(),
        mirrors=mirrors or Mirrors(),
        api_tokens=tuple(SecretValue(token) for token in tokens),
        allowed_signers='lab@slipway namespaces="slipway-bundle" ssh-ed25519 AAAA\n',
        host_tool=b"#!a zipapp",
        uv=Binary(Path("/venv/bin/uv"), "2" * 64, 38_000_000),
    )


def make_site(**changes):
    return plan_site(make_goal(**changes))


def make_seen(site: Site, **changes) -> Seen:
    """
    Return a look at a host that is as *site* wants it, but for *changes*.
    """
    question = question_of(site)
    found = {
        "paths": dict.fromkeys(question.paths),
        "packages": dict.fromkeys(question.packages),
        "users": dict.fromkeys(question.users),
        "units": {
            name: Unit(load="loaded", active="inactive", enabled="disabled", stale=False)
            for name in question.units
        },
        "listings": {folder: {} for folder in question.listings},
        "listeners": (),
        "room": dict.fromkeys(question.room, PLENTY),
        "haproxy": None,
        "lease": None,
        "pythons": ("3.11",),
        "machine": "x86_64",
        "os_id": "debian",
        "codename": "bookworm",
        "has_apt": True,
        "driver": None,
    }
    for resource in (*site.placed, *site.running):
        _fulfil(resource, found)
    return Seen(**found | changes)


def bare(site: Site, **changes) -> Seen:
    """
    Return a look at a host that has only what the distribution brings.
    """
    empty = make_seen(Site(requirements=site.requirements, placed=(), running=()))
    question = question_of(site)
    unit = Unit(load="not-found", active="inactive", enabled="", stale=False)
    return empty.model_copy(
        update={
            "paths": dict.fromkeys(question.paths),
            "packages": dict.fromkeys(question.packages),
            "users": dict.fromkeys(question.users),
            "units": dict.fromkeys(question.units, unit),
            "listings": {folder: {} for folder in question.listings},
            "room": dict.fromkeys(question.room, PLENTY),
        }
        | changes
    )


def path_like(resource, **changes):
    """
    Return the path of a file or directory as *resource* wants it, but for *changes*.
    """
    found = {
        "type": "file",
        "mode": "0644",
        "owner": "root",
        "group": "root",
        "size": 1,
        "sha256": getattr(resource, "sha256", None),
    }
    for name in ("mode", "owner", "group", "size"):
        if hasattr(resource, name):
            found[name] = getattr(resource, name)
    if isinstance(resource, Directory):
        found["type"] = "directory"
    return SeenPath(**found | changes)


def _fulfil(resource, found):
    match resource:
        case Packages():
            found["packages"] |= dict.fromkeys(resource.names, "1.0-1")
        case User():
            found["users"][resource.user] = SeenUser(
                group=resource.user, shell=resource.shell, home=resource.home
            )
        case Directory() | File():
            found["paths"][resource.path] = path_like(resource)
        case Upload():
            found["paths"][resource.path] = path_like(resource, sha256=None)
            link = {"type": "link", "mode": "0777", "target": resource.path, "sha256": None}
            found["paths"][resource.link] = path_like(resource, **link)
        case Venv():
            found["paths"][resource.complete] = path_like(resource)
            found["listings"][layout.WHEELHOUSE] = {w.file: w.size for w in resource.wheels}
        case ServiceResource():
            found["units"][resource.unit] = Unit(
                load="loaded", active="active", enabled="enabled", stale=False
            )
            found["haproxy"] = resource.description
        case Absent():
            found["paths"][resource.path] = None


def find(site: Site, name: str):
    """
    Return the resource that an operator calls *name*.
    """
    [found] = [r for r in (*site.placed, *site.running) if r.name == name]
    return found
