"""
Plans of every distribution and package source against golden files, and every refusal.

After an intended change: SLIPWAY_GOLDEN=write pytest .../provision/driver/test_plans.py
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.provision.apt_sources import os_release_of
from deploy.provision.driver.commands import commands_of, transaction_of
from deploy.provision.driver.plan import DriverPlan, Install, PlaceFile, PlaceSource
from deploy.provision.driver.planner import plan_driver
from tests.unit.deploy.provision.driver.builders import (
    A100,
    B200,
    DEBIAN_KERNEL,
    GIB,
    H100,
    KEYRING,
    P40,
    RTX_5090,
    UNKNOWN,
    device,
    kernel,
    make_facts,
    make_gpu_state,
    make_wish,
    module,
    package,
    simulated,
    with_gpu,
)

GOLDEN = Path(__file__).parents[4] / "golden" / "driver"
DISTRIBUTIONS = {
    "bookworm": "535.309.01",
    "trixie": "550.163.01",
    "jammy": "580.178.04",
    "noble": "580.178.04",
    "resolute": "595.84",
}


def cases():
    """
    Yield the name, the wish and the facts of each combination.
    """
    for codename, version in DISTRIBUTIONS.items():
        facts = make_facts(codename)
        yield f"{codename}-distribution", make_wish(version), facts
        yield f"{codename}-nvidia-580", make_wish("580.178.04", source="nvidia"), facts
        yield f"{codename}-nvidia-620", make_wish("620.70.06", source="nvidia"), facts
        proprietary = make_wish("580.178.04", source="nvidia", modules="proprietary")
        yield f"{codename}-nvidia-580-proprietary", proprietary, facts
        if facts.os_id == "ubuntu":
            dkms = make_wish(version, build="dkms")
            yield f"{codename}-distribution-dkms", dkms, facts
        proprietary = make_wish(version, modules="proprietary")
        yield f"{codename}-distribution-proprietary", proprietary, facts
    hgx = with_gpu(
        make_facts("noble"), devices=(device(), device(number=2), device("22a3", 3, switch=True))
    )
    yield "noble-distribution-nvswitch", make_wish("580.178.04"), hgx
    yield "noble-nvidia-580-nvswitch", make_wish("580.178.04", source="nvidia"), hgx
    hgx = with_gpu(make_facts("trixie"), devices=hgx.gpu.devices)
    yield "trixie-nvidia-580-nvswitch", make_wish("580.178.04", source="nvidia"), hgx
    cuda = make_wish("595.84", source="nvidia", cuda_toolkit="12.8")
    yield "noble-nvidia-595-toolkit", cuda, make_facts("noble")
    compat = make_wish("580.178.04", source="nvidia", cuda_compat="13.2")
    yield "noble-nvidia-580-compat", compat, make_facts("noble")
    old_kernel = kernel("6.1.0-40-amd64", headers=False)
    two = with_gpu(
        make_facts("bookworm"), kernels=(old_kernel, kernel(running=False, headers=False))
    )
    yield "bookworm-distribution-two-kernels", make_wish(), two


CASES = {name: (wish, facts) for name, wish, facts in cases()}


def described(wish, facts):
    """
    Return a plan as an operator could review it: steps, files, commands.
    """
    plan = plan_driver(wish, facts)
    if not isinstance(plan, DriverPlan):
        return "".join(f"refused: {c.why}\n  fix: {c.fix}\n" for c in plan)
    lines = [f"plan {plan.digest}"]
    for step in plan.steps:
        lines.append(f"\n{step.kind}: {step.text}")
        if isinstance(step, PlaceFile):
            is_key = step.path.endswith(".gpg")
            text = "(keys)" if is_key else step.content.decode()
            lines += [f"    {line}".rstrip() for line in text.splitlines()]
        elif isinstance(step, PlaceSource):
            text = step.sources.text(os_release_of(facts))
            lines += [f"    {line}".rstrip() for line in text.splitlines()]
        else:
            lines += [f"    $ {command}" for command in commands_of(step, facts)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", CASES)
def test_each_combination_has_the_plan_that_was_reviewed(name):
    """
    Packages, preferences, files and commands, or the refusal.
    """
    path, text = GOLDEN / f"{name}.txt", described(*CASES[name])
    if os.environ.get("SLIPWAY_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


def test_a_digest_stands_for_every_step():
    """
    Another version, another kernel flavour and another keyring are other plans.
    """
    wish, facts = make_wish("580.178.04", source="nvidia"), make_facts("noble")
    hwe = with_gpu(facts, packages=(package("linux-image-generic-hwe-24.04", "1", "linux"),))
    plans = [
        plan_driver(wish, facts),
        plan_driver(make_wish("580.173.02", source="nvidia"), facts),
        plan_driver(wish, hwe),
        plan_driver(wish.model_copy(update={"keyring": KEYRING * 2}), facts),
    ]
    assert len({plan.digest for plan in plans}) == len(plans)
    assert plan_driver(wish, facts).digest == plans[0].digest
    json.dumps(plans[0].model_dump(mode="json"))


# -- refusals: (what the wish or the host is like) -> words of the reason, words of the remedy


def host(codename="bookworm", **changes):
    return with_gpu(make_facts(codename), **changes)


def all_installed(version="535.309.01", **changes):
    names = ("nvidia-kernel-dkms", "libcuda1", "nvidia-smi", "libnvidia-ml1")
    return (
        *(package(name, f"{version}-1", **changes) for name in names),
        package("nvidia-persistenced", "535.171.04-1", "nvidia-persistenced"),
        package("nvidia-modprobe", "535.171.04-1", "nvidia-modprobe"),
        package("linux-headers-amd64", "6.1.192-2", "linux"),
        package("linux-image-amd64", "6.1.192-2", "linux"),
    )


NVIDIA = {"source": "nvidia"}
REFUSALS = {
    "no GPU": (make_wish(), host(devices=()), "no NVIDIA GPU", "row without CUDA"),
    "a switch alone is no GPU": (
        make_wish("580.178.04"),
        host("noble", devices=(device("22a3", switch=True),)),
        "no NVIDIA GPU",
        "lspci",
    ),
    "a GPU nobody knows": (make_wish(), host(devices=(device(UNKNOWN),)), "10de:0fc6", "yourself"),
    "another distribution": (make_wish(), make_facts("buster"), "buster", "Debian 12"),
    "below the row": (
        make_wish(minimum="550.54.14"),
        host(),
        "needs 550.54.14 or later",
        "driver.version",
    ),
    "branch too old for the GPU": (
        make_wish("535.309.01", **NVIDIA),
        host(devices=(device(RTX_5090),)),
        "Blackwell",
        "from 570 on",
    ),
    "branch too new for the GPU": (
        make_wish("595.84", **NVIDIA),
        host("noble", devices=(device(P40),)),
        "Pascal",
        "to 580",
    ),
    "no modules for all GPUs": (
        make_wish("580.178.04", **NVIDIA),
        host("noble", devices=(device(P40), device(B200, 2))),
        "no kernel modules that all",
        "another branch",
    ),
    "proprietary modules and Blackwell": (
        make_wish("580.178.04", modules="proprietary", **NVIDIA),
        host("noble", devices=(device(B200),)),
        "run with open modules alone",
        "driver.modules to open",
    ),
    "proprietary modules and 620": (
        make_wish("620.70.06", modules="proprietary", **NVIDIA),
        host("noble"),
        "open modules alone",
        "driver.modules",
    ),
    "open modules of Debian 12": (
        make_wish(modules="open"),
        host(),
        "535.261.03 alone",
        "driver.source",
    ),
    "branch that Debian lacks": (make_wish("580.178.04"), host(), "has branch 535", "nvidia"),
    "branch that moved": (
        make_wish("535.309.01"),
        make_facts("noble"),
        "only install 580",
        "driver.version",
    ),
    "prebuilt on Debian": (
        make_wish(build="prebuilt"),
        host(),
        "no prebuilt modules",
        "driver.build",
    ),
    "NVSwitch and Debian's archive": (
        make_wish(),
        host(devices=(device(), device("22a3", 1, switch=True))),
        "fabric manager",
        "driver.source",
    ),
    "a fabric manager that is asked for": (
        make_wish(fabric_manager=True),
        host(),
        "fabric manager",
        "driver.source",
    ),
    "the key of another folder": (
        make_wish("580.178.04", fingerprint=None, **NVIDIA),
        make_facts("trixie"),
        "02182E60104FCDC26EAE1B8597A5D4CB8793F200",
        "cuda-keyring",
    ),
    "a folder whose key is not known": (
        make_wish("595.84", fingerprint=None, **NVIDIA),
        make_facts("resolute"),
        "ubuntu2604 is not known",
        "driver.fingerprint",
    ),
    "another entry for the repository": (
        make_wish("580.178.04", **NVIDIA),
        host(repositories=("/etc/apt/sources.list.d/cuda-debian12-x86_64.list",)),
        "cuda-debian12-x86_64.list",
        "remove",
    ),
    "compat libraries on a newer driver": (
        make_wish("580.178.04", cuda_compat="12.4", **NVIDIA),
        make_facts("noble"),
        "error 803",
        "remove driver.cuda_compat",
    ),
    "compat libraries that nobody knows": (
        make_wish("580.178.04", cuda_compat="19.9", **NVIDIA),
        make_facts("noble"),
        "on branches no",
        "remove driver.cuda_compat",
    ),
    "a .run installation": (
        make_wish(),
        host(leftovers=("/usr/bin/nvidia-uninstall",)),
        ".run installer",
        "nvidia-uninstall",
    ),
    "Secure Boot without a trusted key": (
        make_wish(),
        host(secure_boot=True, mok_enrolled=False),
        "Secure Boot is on",
        "mokutil --import /var/lib/dkms/mok.pub",
    ),
    "Secure Boot before any key": (
        make_wish(),
        host(secure_boot=True, mok_enrolled=None),
        "Secure Boot is on",
        "console",
    ),
    "Secure Boot and DKMS on Ubuntu": (
        make_wish("580.178.04", build="dkms"),
        host("noble", secure_boot=True),
        "Secure Boot is on",
        "driver.build to prebuilt",
    ),
    "/boot is full": (make_wish(), host(boot_free=10 * 2**20), "/boot has 10", "autoremove"),
    "several kernels are followed": (
        make_wish("580.178.04"),
        host(
            "noble",
            packages=(
                package("linux-image-generic", "1", "linux"),
                package("linux-image-aws", "1", "linux"),
            ),
        ),
        "linux-image-generic, linux-image-aws",
        "remove all but",
    ),
    "passed to virtual machines": (
        make_wish(),
        host(devices=(device(bound="vfio-pci"),)),
        "vfio-pci",
        "reboot",
    ),
    "MIG is on": (make_wish(), host(gpus=(make_gpu_state(mig=True),)), "MIG is on", "gpu.mig"),
    "/var is full": (
        make_wish(),
        replace(make_facts(), room={"/usr": 9 * GIB, "/var": 2**20}),
        "/var has 1",
        "free space",
    ),
    "apt has no such version": (
        make_wish(),
        replace(make_facts(), simulation=simulated(("libcuda1", None, "535.261.03-1"))),
        "libcuda1 535.261.03-1, not 535.309.01",
        "madison",
    ),
    "apt finds no solution": (
        make_wish(),
        replace(make_facts(), simulation=simulated(problem="E: Unable to locate package libcuda1")),
        "Unable to locate package libcuda1",
        "apt-get update",
    ),
    "the headers of the running kernel are gone": (
        make_wish(),
        replace(
            make_facts(),
            simulation=simulated(
                problem=f"E: Unable to locate package linux-headers-{DEBIAN_KERNEL}"
            ),
        ),
        f"headers of the running kernel {DEBIAN_KERNEL}",
        "newest kernel",
    ),
    "apt would remove what is not ours": (
        make_wish(),
        replace(make_facts(), simulation=simulated(("haproxy", "2.6", None))),
        "remove haproxy",
        "yourself",
    ),
    "a kernel on hold": (
        make_wish(),
        replace(
            host(packages=(package("linux-image-6.1.0-40-amd64", "6.1", "linux", held=True),)),
            simulation=simulated(("linux-image-6.1.0-40-amd64", "6.1", "6.2")),
        ),
        "on hold",
        "apt-mark unhold linux-image-6.1.0-40-amd64",
    ),
    "two archives": (
        make_wish(),
        replace(
            make_facts(),
            simulation=simulated(
                ("libcuda1", None, "535.309.01-0+deb12u1", "Debian-Security:12/oldstable-security"),
                ("nvidia-smi", None, "535.309.01-1", "NVIDIA:now"),
            ),
        ),
        "mix drivers of Debian and NVIDIA",
        "one source",
    ),
    "versions stay mixed": (
        make_wish(),
        replace(
            host(packages=(package("libnvidia-encode1", "525.147.05-1"),)),
            simulation=simulated(("libcuda1", None, "535.309.01-1")),
        ),
        "libnvidia-encode1 525.147.05-1 stays",
        "purge libnvidia-encode1",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_each_conflict_is_named_with_its_remedy(name):
    wish, facts, why, fix = REFUSALS[name]
    conflicts = plan_driver(wish, facts)
    assert not isinstance(conflicts, DriverPlan)
    [own] = [one for one in conflicts if why in one.why]
    assert fix in own.fix


@pytest.mark.parametrize("name", REFUSALS)
def test_nothing_else_is_reported(name):
    """
    Negative control: a conflict has one reason, and the same host without it has a plan.
    """
    wish, facts, _, _ = REFUSALS[name]
    assert len(plan_driver(wish, facts)) == 1


def test_all_conflicts_are_reported_together():
    wish = make_wish("580.178.04", build="prebuilt")
    facts = host(leftovers=("/usr/bin/nvidia-uninstall",), boot_free=0, secure_boot=True)
    assert len(plan_driver(wish, facts)) == 5


ALLOWED = {
    "Secure Boot and Ubuntu's signed modules": (
        make_wish("580.178.04"),
        host("noble", secure_boot=True),
    ),
    "Secure Boot and a trusted key": (make_wish(), host(secure_boot=True, mok_enrolled=True)),
    "MIG that the fleet turns off": (
        make_wish(turns_mig_off=True),
        host(gpus=(make_gpu_state(mig=True),)),
    ),
    "a driver of the same archive's other suite": (
        make_wish(),
        replace(
            make_facts(),
            simulation=simulated(
                ("libcuda1", None, "535.309.01-1", "Debian-Security:12/oldstable-security"),
                ("nvidia-smi", None, "535.309.01-1", "Debian:12.15/oldstable"),
            ),
        ),
    ),
    "an old driver that goes": (
        make_wish(),
        replace(
            host(packages=(package("libnvidia-encode1", "525.147.05-1"),)),
            simulation=simulated(("libnvidia-encode1", "525.147.05-1", None)),
        ),
    ),
    "our own holds": (
        make_wish("535.309.01"),
        replace(
            host(packages=all_installed("535.261.03", held=True)),
            simulation=simulated(
                *((n, "535.261.03-1", "535.309.01-1") for n in
                  ("nvidia-kernel-dkms", "libcuda1", "nvidia-smi", "libnvidia-ml1"))
            ),
        ),
    ),
    "a full disk once the driver is installed": (
        make_wish(),
        replace(host(packages=all_installed()), room={"/usr": 0, "/var": 0}),
    ),
    "a host without EFI and without /boot": (make_wish(), host(initramfs_size=0, boot_free=0)),
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_what_looks_like_a_conflict_and_is_none_has_a_plan(name):
    assert isinstance(plan_driver(*ALLOWED[name]), DriverPlan)


def test_a_transaction_has_the_simulated_versions_and_the_holds():
    """
    Removed packages, lifted holds and new holds are named; foreign packages are never held.
    """
    facts = replace(
        host(packages=all_installed("535.261.03", held=True)),
        simulation=simulated(
            ("libcuda1", "535.261.03-1", "535.309.01-1"),
            ("libnvidia-ml1", "535.261.03-1", "535.309.01-1"),
            ("libnvidia-old1", "535.261.03-1", None),
            ("gcc-12", None, "12.2.0-14"),
        ),
    )
    plan = plan_driver(make_wish(), facts)
    assert not isinstance(plan, DriverPlan)  # libnvidia-old1 is not known to dpkg
    known = (*facts.gpu.packages, package("libnvidia-old1", "535.261.03-1"))
    facts = with_gpu(facts, packages=known)
    plan = plan_driver(make_wish(), facts)
    [install] = [step for step in plan.steps if isinstance(step, Install)]
    transaction = transaction_of(install, facts)
    assert "libcuda1=535.309.01-1" in transaction.install
    assert transaction.remove == ("libnvidia-old1",)
    assert set(transaction.unhold) == {"libcuda1", "libnvidia-ml1"}
    assert set(transaction.hold) == {"libcuda1", "libnvidia-ml1"}


def test_the_next_kernel_needs_modules_as_the_running_one_does():
    """
    The newest with an image, by number and not by letter; one without an image does not boot.
    """
    kernels = (
        kernel("6.1.0-9-amd64", modules=(module(),)),
        kernel("6.1.0-10-amd64", running=False),
        kernel("6.1.0-99-amd64", running=False, bootable=False),
    )
    plan = plan_driver(make_wish(), host(kernels=kernels))
    [build] = [step for step in plan.steps if step.kind == "build_modules"]
    assert build.missing(host(kernels=kernels).gpu) == ("6.1.0-10-amd64",)


@pytest.mark.parametrize(
    ("id_", "generation"),
    [(H100, "Hopper"), (A100, "Ampere"), (P40, "Pascal"), (B200, "Blackwell"), ("3182", None)],
)
def test_a_gpu_is_known_by_its_pci_id(id_, generation):
    from deploy.provision.driver.supply import generation_of

    assert generation_of(id_) == (generation or "Blackwell Ultra")
    assert generation_of(UNKNOWN) is None


def test_a_fingerprint_of_the_fleet_replaces_nvidias():
    assert isinstance(
        plan_driver(make_wish("580.178.04", **NVIDIA), make_facts("trixie")),
        DriverPlan,
    )
