"""
Debian packages and their sources.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from deploy.host import layout
from deploy.inventory.schema import Mirrors
from deploy.provision.apt_packages import Packages
from deploy.provision.apt_sources import AptSources, Archive
from deploy.provision.requirements import AnyRequirement, Platform
from deploy.provision.resources import Absent, AnyResource, File
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


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return [Platform()]


def install(spec: HostSpec) -> list[AnyResource]:
    mirrors = spec.mirrors
    compiler = COMPILER if spec.service.options.device == "cuda" else ()
    authorities: list[AnyResource] = [Absent(path=layout.MIRRORS_CA)]
    if spec.mirrors_ca is not None:
        authorities = [File(path=layout.MIRRORS_CA, content=spec.mirrors_ca.encode())]
    return [
        *authorities,
        File(path=f"{layout.APT}/apt.conf.d/90slipway", content=settings(mirrors).encode()),
        AptSources(sources=archives(mirrors)),
        Packages(names=(*PACKAGES, *compiler), proxy=mirrors.apt_proxy, no_proxy=mirrors.no_proxy),
    ]


def settings(mirrors: Mirrors) -> str:
    """
    Return the text of apt's configuration on hosts.
    """
    names = _host_names(uri for source in mirrors.apt for uri in source.uris)
    exact = [name for name in mirrors.no_proxy if not name.startswith(".") and ":" not in name]
    covered = [name for name in names if _is_direct(name, mirrors.no_proxy)]
    return render(
        "90slipway.apt",
        proxy=mirrors.apt_proxy,
        direct=sorted({*exact, *covered}) if mirrors.apt_proxy else (),
        authority_hosts=names if mirrors.ca_bundle else (),
        authorities=layout.MIRRORS_CA,
    )


def archives(mirrors: Mirrors) -> tuple[Archive, ...]:
    """
    Return the sources of a fleet file by their names there.
    """
    return tuple(
        Archive(named=f"mirrors.apt[{number}]", **source.model_dump())
        for number, source in enumerate(mirrors.apt)
    )


def _host_names(uris: Iterable[str]) -> list[str]:
    # An option of apt cannot name an IPv6 address.
    names = (urlsplit(uri).hostname or "" for uri in uris)
    return sorted({name for name in names if name and ":" not in name})


def _is_direct(name: str, exceptions: tuple[str, ...]) -> bool:
    return any(
        name == one.removeprefix(".") or (one.startswith(".") and name.endswith(one))
        for one in exceptions
    )


def configure(spec: HostSpec) -> list[AnyResource]:
    return []


def activate(spec: HostSpec) -> list[AnyResource]:
    return []
