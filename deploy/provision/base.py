"""
Debian packages, and where they come from.
"""

from deploy.provision.requirements import AnyRequirement, Platform
from deploy.provision.resources import Absent, AnyResource, File, Packages
from deploy.provision.spec import HostSpec
from deploy.templating import render

PACKAGES = (
    "ca-certificates",
    "haproxy",
    "openssh-client",  # ssh-keygen, which verifies the signature of a bundle
    "python3",  # runs the host tool, and is what venvs are made with
    "socat",  # for people who talk to HAProxy's socket
)

# Triton compiles its way to the driver on a host where it first runs.
COMPILER = ("gcc", "libc6-dev", "python3-dev")

_DISTRIBUTION = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return [Platform()]


def install(spec: HostSpec) -> list[AnyResource]:
    found: list[AnyResource] = [
        File(
            path="/etc/apt/apt.conf.d/90slipway",
            content=render("90slipway.apt", proxy=spec.mirrors.apt_proxy).encode(),
        )
    ]
    if spec.mirrors.apt is not None:
        source = render("slipway.list", line=spec.mirrors.apt).encode()
        found.append(File(path="/etc/apt/sources.list.d/slipway.list", content=source))
        found += [Absent(path=path) for path in _DISTRIBUTION]
    compiler = COMPILER if spec.service.options.device == "cuda" else ()
    return [*found, Packages(names=(*PACKAGES, *compiler))]


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    return []
