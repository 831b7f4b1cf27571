"""
The files of a driver on a host.  Pure.
"""

import hashlib
from collections.abc import Iterator

from deploy.provision.apt_sources import AptSources, Archive
from deploy.provision.driver.package_sets import PackageSet
from deploy.provision.driver.plan import (
    KEYRING,
    MODULES,
    NOUVEAU,
    PERSISTENCE,
    PREFERENCES,
    SOURCES,
    UPGRADES,
    DriverWish,
    PlaceFile,
    PlaceSource,
    RemoveFile,
)
from deploy.provision.driver.supply import DriverSupply

_HEAD = "# Written by inv provision; edits are lost.\n"

# Regular expressions that unattended-upgrades matches at the start of a package name.
_NEVER_UPGRADED = (
    "nvidia-",
    "libnvidia-",
    "libcuda1",
    "firmware-nvidia-",
    "xserver-xorg-video-nvidia",
    "cuda-",
    "linux-modules-nvidia-",
    "linux-objects-nvidia-",
    "linux-signatures-nvidia-",
    "linux-image-",
    "linux-headers-",
    "linux-generic",
)

# nova_core is the successor of nouveau, from kernel 7.0 on.
_NOUVEAU = f"""\
{_HEAD}\
blacklist nouveau
options nouveau modeset=0
blacklist nova_core
blacklist nova_drm
"""

_MODULES = f"{_HEAD}nvidia\nnvidia-uvm\n"

# Ubuntu's unit, and that of NVIDIA's packages for it, turn persistence off.
_PERSISTENCE = f"""\
{_HEAD}\
[Service]
ExecStart=
ExecStart=/usr/bin/nvidia-persistenced --user nvidia-persistenced --persistence-mode --verbose
"""


def repository_files(
    wish: DriverWish, supply: DriverSupply
) -> Iterator[PlaceFile | PlaceSource | RemoveFile]:
    """
    Yield the key and the entry of NVIDIA's repository, or their removal.
    """
    base = wish.section.repository
    if base is None:
        yield RemoveFile(path=SOURCES)
        return
    yield _place(KEYRING, wish.keyring)
    uri = f"{base.rstrip('/')}/{supply.folder}/x86_64/"
    source = Archive(
        named="driver.repository", uris=(uri,), suites=("/",), components=(), signed_by=KEYRING
    )
    yield PlaceSource(sources=AptSources(label="nvidia", sources=(source,), replaces=()))


def package_files(packages: PackageSet) -> Iterator[PlaceFile]:
    """
    Yield what decides on versions, before a package is installed.
    """
    yield _place(PREFERENCES, packages.pins.encode())
    names = "".join(f'  "{name}";\n' for name in _NEVER_UPGRADED)
    text = f"{_HEAD.replace('#', '//')}Unattended-Upgrade::Package-Blacklist {{\n{names}}};\n"
    yield _place(UPGRADES, text.encode())


def module_files(supply: DriverSupply) -> Iterator[PlaceFile]:
    """
    Yield what decides on kernel modules.
    """
    yield _place(NOUVEAU, _NOUVEAU.encode())
    yield _place(MODULES, _MODULES.encode())
    if supply.family == "ubuntu":
        yield _place(PERSISTENCE, _PERSISTENCE.encode())


def _place(path: str, content: bytes) -> PlaceFile:
    return PlaceFile(path=path, sha256=hashlib.sha256(content).hexdigest(), content=content)
