"""
The program that everything else asks for on a host, and what it is told about the host.
"""

import json

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement, NoReleaseRunning
from deploy.provision.resources import AnyResource, File
from deploy.provision.spec import HostSpec


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return [NoReleaseRunning()]


def install(spec: HostSpec) -> list[AnyResource]:
    return [File(path=layout.HOST_PROGRAM, content=spec.host_program, mode="0755")]


def configure(spec: HostSpec) -> list[AnyResource]:
    return [
        File(path=layout.HOST_CONFIG, content=host_config(spec).encode()),
        File(path=layout.ALLOWED_SIGNERS, content=spec.allowed_signers.encode()),
    ]


def activate(spec: HostSpec) -> list[AnyResource]:
    return []


def host_config(spec: HostSpec) -> str:
    """
    Return /etc/slipway/host.json.
    """
    settings = {"locks": [spec.lock.digest]}  # environments that `retire` keeps, used or not
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"
