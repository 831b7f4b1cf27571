"""
The host program and its configuration.
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
    Return the text of /etc/slipway/host.json.
    """
    settings: dict[str, object] = {
        "fleet": spec.fleet,  # a bundle of another fleet is refused
        "locks": [spec.lock.digest],  # `retire` keeps their environments
        "port": spec.service.port,  # a release is confirmed by a request to it
    }
    if spec.service.tls.is_on:
        settings["tls"] = True
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"
