"""
Builds wishes, facts of GPU hosts, and a host that takes the steps of a plan.
"""

import hashlib
from dataclasses import replace

from deploy.host.protocol import (
    AptChange,
    DriverPackage,
    Facts,
    GpuHost,
    GpuState,
    Kernel,
    KernelModule,
    PathFacts,
    PciDevice,
    Simulation,
    UnitFacts,
)
from deploy.inventory.schema.gpu import DriverSection
from deploy.provision.driver.plan import FABRIC_UNIT, OWN_FILES, PERSISTENCE_UNIT, DriverWish

H100, A100, P40, B200, RTX_5090, UNKNOWN = "2330", "20b2", "1b38", "2901", "2b85", "0fc6"
DEBIAN_KERNEL, UBUNTU_KERNEL = "6.1.0-56-amd64", "6.8.0-45-generic"
GIB = 2**30
# A version 4 key as in RFC 9580; its fingerprint is that of these bytes.
KEY_BODY = b"\x04" + b"\x66" * 40
KEYRING = bytes([0x98, len(KEY_BODY)]) + KEY_BODY
FINGERPRINT = (
    hashlib.sha1(b"\x99" + len(KEY_BODY).to_bytes(2, "big") + KEY_BODY).hexdigest().upper()
)
MIRROR = "https://mirror.example.com/nvidia/repos"


def make_wish(version="535.309.01", *, minimum="525.60.13", turns_mig_off=False, **keys):
    if keys.get("source") == "nvidia":
        keys = {"repository": MIRROR, "keyring": "/k.gpg", "fingerprint": FINGERPRINT} | keys
    return DriverWish(
        section=DriverSection(version=version, **keys),
        version=version,
        row="torch-2.3-cu121",
        minimum=minimum,
        keyring=KEYRING if keys.get("source") == "nvidia" else b"",
        turns_mig_off=turns_mig_off,
    )


def device(id_=H100, number=0, *, switch=False, bound=None):
    return PciDevice(
        place=f"0000:{number:02x}:00.0",
        device=id_,
        class_code="068000" if switch else "030200",
        bound=bound,
    )


def kernel(release=DEBIAN_KERNEL, **changes):
    values = {
        "running": True,
        "bootable": True,
        "headers": True,
        "old_initramfs": False,
        "modules": (),
    }
    return Kernel(release=release, **values | changes)


def module(version="535.309.01", *, is_open=False):
    return KernelModule(
        module="nvidia-current",
        version=version,
        license="Dual MIT/GPL" if is_open else "NVIDIA",
    )


def package(name, version, origin="nvidia-graphics-drivers", *, complete=True, held=False):
    return DriverPackage(package=name, version=version, origin=origin, complete=complete, held=held)


def make_gpu(**changes):
    values = {
        "devices": (device(),),
        "kernels": (kernel(),),
        "secure_boot": None,
        "mok_enrolled": None,
        "packages": (package("linux-image-amd64", "6.1.192-2", "linux-signed-amd64"),),
        "leftovers": (),
        "repositories": (),
        "old_lists": True,
        "boot_free": GIB,
        "initramfs_size": 60 * 2**20,
        "loaded": (),
        "library": None,
        "holders": (),
        "gpus": (),
        "smi_problem": "no driver is loaded",
        "fabric": (),
    }
    return GpuHost(**values | changes)


def make_gpu_state(bus="00000000:1B:00.0", **changes):
    values = {
        "persistence": True,
        "power_w": 700.0,
        "power_min_w": 200.0,
        "power_max_w": 700.0,
        "ecc": True,
        "next_ecc": True,
        "mig": False,
        "next_mig": False,
    }
    return GpuState(bus=bus, **values | changes)


def make_facts(codename="bookworm", *, gpu=None, **changes):
    """
    Return the facts of a host with GPUs and no driver.
    """
    if gpu is None:
        is_debian = codename in ("bookworm", "trixie")
        name = DEBIAN_KERNEL if is_debian else UBUNTU_KERNEL
        suffix = "amd64" if is_debian else "generic"
        gpu = make_gpu(
            kernels=(kernel(name),), packages=(package(f"linux-image-{suffix}", "1", "linux"),)
        )
    values = {
        "paths": dict.fromkeys(OWN_FILES),
        "packages": {},
        "users": {},
        "units": dict.fromkeys(
            (PERSISTENCE_UNIT, FABRIC_UNIT),
            UnitFacts(load="not-found", active="inactive", enabled="", stale=False),
        ),
        "listings": {},
        "listeners": (),
        "room": {"/usr": 50 * GIB, "/var": 50 * GIB},
        "haproxy": None,
        "lease": None,
        "pythons": ("3.11",),
        "machine": "x86_64",
        "os_id": "debian" if codename in ("bookworm", "trixie") else "ubuntu",
        "codename": codename,
        "has_apt": True,
        "driver": None,
        "gpu": gpu,
    }
    return Facts(**values | changes)


def file_facts(content):
    return PathFacts(
        type="file",
        mode="0644",
        owner="root",
        group="root",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def simulated(*changes, problem=None):
    """
    Return what apt would do: (package, before, after[, archive]) each.
    """
    return Simulation(
        tuple(
            AptChange(package=c[0], before=c[1], after=c[2], archive=c[3] if c[3:] else "Debian:12")
            for c in changes
        ),
        problem,
    )


def with_gpu(facts, **changes):
    return replace(facts, gpu=replace(facts.gpu, **changes))
