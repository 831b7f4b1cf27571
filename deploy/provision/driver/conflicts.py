"""
Why a host must not get the driver that its fleet asks for, each with a remedy.  Pure.

All conflicts are reported together: an operator mends them in one go.
"""

from collections.abc import Iterator

from deploy.host.protocol import AptChange, Facts, GpuHost
from deploy.provision.driver.choice import (
    archive_has_open,
    generations,
    gpu_devices,
    is_built,
    modules_of,
    needs_fabric,
    possible_modules,
)
from deploy.provision.driver.keyring import fingerprints
from deploy.provision.driver.plan import (
    Conflict,
    DriverPlan,
    DriverWish,
    gpu_of,
    is_driver,
    is_ours,
    kernel_suffixes,
    upstream,
)
from deploy.provision.driver.supply import DriverSupply, generation_of
from deploy.units import format_size
from deploy.versions.catalog import load_catalog, numbers

DISK_NEEDED = 2 * 2**30  # 0.86 GB of packages on Debian 12, measured; then the build of modules
DISK_PATHS = ("/usr", "/var")
_VFIO = "vfio-pci"
_BOOT_SPARE = 64 * 2**20  # of /boot, beside a second copy of the largest initramfs


def conflicts_of(wish: DriverWish, facts: Facts, supply: DriverSupply) -> tuple[Conflict, ...]:
    """
    Return everything that contradicts *wish* before apt is asked.
    """
    gpu = gpu_of(facts)
    return (
        *_devices(wish, gpu),
        *_version(wish, gpu),
        *_source(wish, gpu, supply),
        *_modules(wish, gpu, supply),
        *_toolkit(wish),
        *_host(wish, facts, supply),
    )


def _devices(wish: DriverWish, gpu: GpuHost) -> Iterator[Conflict]:
    if not gpu_devices(gpu):
        yield Conflict(
            why="no NVIDIA GPU is on the PCI bus",
            fix="give the host a row without CUDA, or look for the card: lspci -d 10de:",
        )
    unknown = sorted({one for one in gpu_devices(gpu) if generation_of(one) is None})
    if unknown:
        yield Conflict(
            why=f"the generation of the GPU with PCI id 10de:{unknown[0]} is not known",
            fix="remove the key driver, and install the driver of this host yourself",
        )
    others = sorted({f"{one.place} ({one.bound})" for one in gpu.devices if one.bound == _VFIO})
    if others:
        yield Conflict(
            why=f"given to virtual machines: {', '.join(others)}",
            fix=f"take the devices from {_VFIO} (its ids on the kernel command line), and reboot",
        )
    if any(one.mig for one in gpu.gpus) and not wish.turns_mig_off:
        yield Conflict(
            why="MIG is on, so that a slot would get a part of a GPU",
            fix="set gpu.mig to false, which turns it off at the next reboot",
        )


def _version(wish: DriverWish, gpu: GpuHost) -> Iterator[Conflict]:
    if numbers(wish.version) < numbers(wish.minimum):
        yield Conflict(
            why=f"driver.version is {wish.version}; row {wish.row} needs {wish.minimum} or later",
            fix="set a later driver.version, or choose another row: inv matrix",
        )
    for generation in generations(gpu):
        last = generation.last_branch
        if wish.branch < generation.first_branch or (last is not None and wish.branch > last):
            span = f"from {generation.first_branch}" + (f" to {last}" if last else " on")
            yield Conflict(
                why=f"branches {span} have drivers for {generation.generation} GPUs, "
                f"{wish.version} is none of them",
                fix=f"set driver.version to one {span}",
            )


def _source(wish: DriverWish, gpu: GpuHost, supply: DriverSupply) -> Iterator[Conflict]:
    if wish.section.source == "nvidia":
        yield from _repository(wish, gpu, supply)
        return
    moved = supply.moved.get(wish.branch)
    has = " and ".join(map(str, supply.branches))
    if moved is not None:
        yield Conflict(
            why=f"the packages of branch {wish.branch} in {supply.title} only install {moved}",
            fix=f"set driver.version to one of {moved}, or driver.source to nvidia",
        )
    elif wish.branch not in supply.branches:
        yield Conflict(
            why=f"{supply.title} has branch {has}, not {wish.branch} (seen {supply.date})",
            fix=f"set driver.version to one of {has}, or driver.source to nvidia",
        )
    if supply.family == "debian" and wish.section.build == "prebuilt":
        yield Conflict(
            why=f"{supply.title} has no prebuilt modules",
            fix="remove driver.build: DKMS builds them",
        )
    if supply.family == "debian" and needs_fabric(wish, gpu):
        yield Conflict(
            why=f"the host needs a fabric manager for NVSwitch; {supply.title} has none",
            fix="set driver.source to nvidia",
        )


def _repository(wish: DriverWish, gpu: GpuHost, supply: DriverSupply) -> Iterator[Conflict]:
    if gpu.repositories:
        yield Conflict(
            why=f"{', '.join(gpu.repositories)}: another entry for a repository of NVIDIA; apt "
            "refuses two entries for one repository with different keys",
            fix=f"remove {' '.join(gpu.repositories)} on the host: slipway writes its own",
        )
    key = wish.section.fingerprint or supply.key
    if key is None:
        yield Conflict(
            why=f"the key of NVIDIA's folder {supply.folder} is not known to slipway",
            fix="set driver.fingerprint to that of the key in driver.keyring, once compared with "
            "NVIDIA's documentation",
        )
    elif key not in (found := fingerprints(wish.keyring)):
        yield Conflict(
            why=f"driver.keyring has {', '.join(found)}, and {supply.folder} is signed by {key}",
            fix="take the key from that folder (each distribution's cuda-keyring has another one "
            "under the same version), or set driver.fingerprint for a mirror of your own",
        )


def _modules(wish: DriverWish, gpu: GpuHost, supply: DriverSupply) -> Iterator[Conflict]:
    if modules_of(wish, gpu, supply) is not None:
        if wish.section.modules == "open" and wish.section.source == "distribution":
            yield from _open_in_archive(wish, supply)
        return
    names = ", ".join(row.generation for row in generations(gpu)) or "these"
    possible = possible_modules(wish, gpu)
    if possible == ("open",) and wish.section.modules == "auto":
        yield from _open_in_archive(wish, supply)
    elif possible:
        yield Conflict(
            why=f"{names} GPUs with branch {wish.branch} run with {possible[0]} modules alone",
            fix=f"set driver.modules to {possible[0]}, or remove it",
        )
    else:
        yield Conflict(
            why=f"branch {wish.branch} has no kernel modules that all {names} GPUs of the host run "
            "with",
            fix="set driver.version to another branch: inv matrix --driver VERSION --gpu GPU",
        )


def _open_in_archive(wish: DriverWish, supply: DriverSupply) -> Iterator[Conflict]:
    if not archive_has_open(wish, supply):
        yield Conflict(
            why=f"{supply.title} has open modules for {', '.join(supply.open or ())} alone, not "
            f"for {wish.version}",
            fix="set driver.source to nvidia, or driver.version to that",
        )


def _toolkit(wish: DriverWish) -> Iterator[Conflict]:
    compat = wish.section.cuda_compat
    if compat is None:
        return
    known = {row.cuda: row for row in load_catalog().cuda}.get(compat)
    if known is None or wish.branch not in known.compat_branches:
        branches = ", ".join(map(str, known.compat_branches)) if known else "no"
        yield Conflict(
            why=f"NVIDIA supports cuda-compat {compat} on branches {branches}, not {wish.branch} "
            "(a driver that is newer than its libraries ends in error 803)",
            fix="remove driver.cuda_compat: a newer driver runs older CUDA as it is",
        )


def _host(wish: DriverWish, facts: Facts, supply: DriverSupply) -> Iterator[Conflict]:
    gpu = gpu_of(facts)
    if gpu.leftovers:
        yield Conflict(
            why=f"{', '.join(gpu.leftovers[:3])}: left by NVIDIA's .run installer, which is not a "
            "package",
            fix="on the host: nvidia-uninstall (or the .run file with --uninstall); then remove "
            "what is left",
        )
    if gpu.secure_boot and is_built(wish, supply) and not gpu.mok_enrolled:
        prebuilt = supply.family == "ubuntu" and wish.section.source == "distribution"
        key = "/var/lib/shim-signed/mok/MOK.der" if supply.family == "ubuntu" else (
            "/var/lib/dkms/mok.pub"
        )  # fmt: skip
        yield Conflict(
            why="Secure Boot is on, and the firmware does not trust the key that signs modules "
            "built on the host",
            fix=f"{'set driver.build to prebuilt, or ' if prebuilt else ''}enrol the key at the "
            f"console: mokutil --import {key} (dkms generate_mok makes it) and a reboot; or turn "
            "Secure Boot off",
        )
    boot_needed = gpu.initramfs_size + _BOOT_SPARE if gpu.initramfs_size else 0
    if gpu.boot_free < boot_needed:
        yield Conflict(
            why=f"/boot has {format_size(gpu.boot_free)} free; a new initramfs takes "
            f"{format_size(boot_needed)}",
            fix="remove old kernels on the host: apt-get autoremove --purge",
        )
    suffixes = kernel_suffixes(gpu)
    if len(suffixes) > 1:
        names = ", ".join(f"linux-image-{suffix}" for suffix in suffixes)
        yield Conflict(
            why=f"several metapackages of kernels are installed: {names}",
            fix="remove all but that of the kernel that the host is to run",
        )


def disk_conflicts(facts: Facts) -> Iterator[Conflict]:
    """
    Yield a conflict for each file system without space for the packages.
    """
    for path in DISK_PATHS:
        if facts.room[path] < DISK_NEEDED:
            yield Conflict(
                why=f"{path} has {format_size(facts.room[path])} free; the driver and the build of "
                f"its modules take up to {format_size(DISK_NEEDED)}",
                fix=f"free space on the file system of {path}",
            )


def simulation_conflicts(plan: DriverPlan, facts: Facts) -> tuple[Conflict, ...]:
    """
    Return what speaks against the transaction that apt simulated; empty where none was.
    """
    simulation, gpu = facts.simulation, gpu_of(facts)
    if simulation is None:
        return ()
    if simulation.problem is not None:
        return (_unsolved(simulation.problem, gpu),)
    known = {one.package: one for one in gpu.packages}
    return (
        *_removals(simulation.changes, gpu),
        *_foreign_holds(simulation.changes, gpu),
        *_wrong_versions(plan, simulation.changes),
        *_mixed_archives(plan, simulation.changes),
        *_left_versions(plan, simulation.changes, {n: p.version for n, p in known.items()
                                                   if is_driver(p)}),
    )  # fmt: skip


def _unsolved(problem: str, gpu: GpuHost) -> Conflict:
    running = next((kernel.release for kernel in gpu.kernels if kernel.running), "")
    if f"linux-headers-{running}" in problem:
        return Conflict(
            why=f"no source has the headers of the running kernel {running}: {problem}",
            fix="install the newest kernel of the distribution and reboot, then provision again",
        )
    return Conflict(
        why=f"apt cannot install the driver: {problem}",
        fix="compare with apt-cache policy on the host; mirrors.apt and driver.version must fit, "
        "and apt-get update must have read the lists",
    )


def _removals(changes: tuple[AptChange, ...], gpu: GpuHost) -> Iterator[Conflict]:
    drivers = {one.package for one in gpu.packages if is_driver(one)}
    removed = [one.package for one in changes if one.after is None]
    foreign = [name for name in removed if name.partition(":")[0] not in drivers]
    if foreign:
        yield Conflict(
            why=f"apt would remove {', '.join(foreign[:8])}, which is no part of the driver",
            fix="remove it yourself if that is meant, or choose another driver.source",
        )


def _foreign_holds(changes: tuple[AptChange, ...], gpu: GpuHost) -> Iterator[Conflict]:
    held = {one.package for one in gpu.packages if one.held and not is_ours(one)}
    touched = [one.package for one in changes if one.package in held]
    if touched:
        yield Conflict(
            why=f"on hold, and apt would change it: {', '.join(touched[:8])}",
            fix=f"on the host, if that is meant: apt-mark unhold {' '.join(touched[:8])}",
        )


def _wrong_versions(plan: DriverPlan, changes: tuple[AptChange, ...]) -> Iterator[Conflict]:
    wanted, version = set(plan.install.versioned), plan.install.version
    wrong = [
        f"{one.package} {one.after}"
        for one in changes
        if one.package in wanted and one.after is not None and upstream(one.after) != version
    ]
    if wrong:
        yield Conflict(
            why=f"apt would install {', '.join(wrong[:4])}, not {version}: no source has that "
            "version, or other preferences come first",
            fix="set driver.version to one that apt-cache madison on the host lists, and look at "
            "/etc/apt/preferences",
        )


def _mixed_archives(plan: DriverPlan, changes: tuple[AptChange, ...]) -> Iterator[Conflict]:
    # "Debian-Security:12/oldstable-security" is of the same archive as "Debian:12.15/oldstable".
    versioned = set(plan.install.versioned)
    names = {
        one.archive.partition(":")[0].removesuffix("-Security")
        for one in changes
        if one.package in versioned and one.archive
    }
    if len(names) > 1:
        yield Conflict(
            why=f"apt would mix drivers of {' and '.join(sorted(names))}",
            fix="leave one source of drivers on the host",
        )


def _left_versions(
    plan: DriverPlan, changes: tuple[AptChange, ...], installed: dict[str, str]
) -> Iterator[Conflict]:
    """
    Yield a conflict if libraries of another version of the driver would stay.
    """
    after = installed | {one.package: one.after or "" for one in changes}
    left = sorted(
        f"{name} {version}"
        for name, version in after.items()
        if name in installed
        and name.startswith(("libnvidia-", "libcuda", "nvidia-utils", "nvidia-compute-utils"))
        and version
        and upstream(version) != plan.install.version
    )
    if left:
        yield Conflict(
            why=f"versions would be mixed: {', '.join(left[:6])} stays beside "
            f"{plan.install.version}",
            fix=f"on the host: apt-get purge {' '.join(one.split()[0] for one in left[:6])}",
        )
