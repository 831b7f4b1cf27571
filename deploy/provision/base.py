"""
Debian packages, and where they come from.
"""

from deploy.provision.goal import Goal
from deploy.provision.requirements import AnyRequirement, Platform
from deploy.provision.resources import Absent, AnyResource, File, Packages
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


def requirements(goal: Goal) -> list[AnyRequirement]:
    return [Platform()]


def install(goal: Goal) -> list[AnyResource]:
    found: list[AnyResource] = [
        File(
            path="/etc/apt/apt.conf.d/90slipway",
            content=render("90slipway.apt", proxy=goal.mirrors.apt_proxy).encode(),
        )
    ]
    if goal.mirrors.apt is not None:
        source = render("slipway.list", line=goal.mirrors.apt).encode()
        found.append(File(path="/etc/apt/sources.list.d/slipway.list", content=source))
        found += [Absent(path=path) for path in _DISTRIBUTION]
    compiler = COMPILER if goal.service.options.device == "cuda" else ()
    return [*found, Packages(names=(*PACKAGES, *compiler))]


def configure(goal: Goal) -> list[AnyResource]:
    return []


def activate(goal: Goal) -> list[AnyResource]:
    return []
