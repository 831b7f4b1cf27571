"""
Debian packages and their sources.
"""

from deploy.provision.requirements import AnyRequirement, Platform
from deploy.provision.resources import Absent, AnyResource, File, Packages
from deploy.provision.spec import HostSpec
from deploy.templating import render

PACKAGES = (
    "ca-certificates",
    "dbus",  # systemd-run reaches systemd over it, for the sandbox of builds
    "haproxy",
    "openssh-client",  # ssh-keygen, which verifies the signature of a bundle
    "python3",  # runs the host program and makes environments
    "socat",  # for operators who use HAProxy's socket
)

# Triton builds its CUDA launcher with them, at the first start on a host.
COMPILER = ("gcc", "libc6-dev", "python3-dev")

_DISTRIBUTION = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return [Platform()]


def install(spec: HostSpec) -> list[AnyResource]:
    sources: list[AnyResource] = [
        File(
            path="/etc/apt/apt.conf.d/90slipway",
            content=render("90slipway.apt", proxy=spec.mirrors.apt_proxy).encode(),
        )
    ]
    if spec.mirrors.apt is not None:
        line = render("slipway.list", line=spec.mirrors.apt).encode()
        sources.append(File(path="/etc/apt/sources.list.d/slipway.list", content=line))
        sources += [Absent(path=path) for path in _DISTRIBUTION]
    compiler = COMPILER if spec.service.options.device == "cuda" else ()
    return [*sources, Packages(names=(*PACKAGES, *compiler))]


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    return []
