"""
The shell commands and the changes of packages that the steps of a plan are.  Pure.
"""

import shlex

from deploy.host.layout import DRIVER_BUILD_UNIT
from deploy.host.protocol import Facts
from deploy.host.reboot_reasons import MODULE_NAMES
from deploy.provision.apt_packages import AptTransaction
from deploy.provision.driver.plan import (
    BuildModules,
    Hold,
    Install,
    LoadModules,
    ReadLists,
    RebuildInitramfs,
    RemoveFile,
    StartUnits,
    Step,
    gpu_of,
    upstream,
)

# Unload in this order: each uses the next.
_MODULES = ("nvidia_uvm", "nvidia_drm", "nvidia_modeset", "nvidia_peermem", "nvidia")
# They hold the devices, and start again with the driver.
_DAEMONS = ("nvidia-persistenced", "nvidia-fabricmanager", "nvidia-dcgm")
BUILD_UNIT = DRIVER_BUILD_UNIT
_UPDATE_TRIES = 60  # another program may hold the lock of the lists
_UPDATE_PAUSE_S = 5

# A list that did not change leaves the directory as old as it was: `touch` says that it was read.
_READ_LISTS = (
    "i=0; until said=$(LC_ALL=C apt-get -q update 2>&1); do "
    f"case $said in *'get lock'*) i=$((i + 1)); [ $i -lt {_UPDATE_TRIES} ] && "
    f"sleep {_UPDATE_PAUSE_S} && continue ;; esac; "
    "printf '%s\\n' \"$said\" | tail -n 4 >&2; exit 1; done; touch /var/lib/apt/lists"
)


def commands_of(step: Step, facts: Facts) -> tuple[str, ...]:
    """
    Return the commands of *step*; files are placed, and packages changed, by others.
    """
    match step:
        case RemoveFile():
            return (shlex.join(["rm", "-f", step.path]),)
        case ReadLists():
            return (_READ_LISTS,)
        case RebuildInitramfs():
            return ("update-initramfs -u -k all",)
        case BuildModules():
            missing = step.missing(gpu_of(facts))
            return (build_command(step.version, missing, is_open=step.is_open),)
        case Hold():
            return (shlex.join(["apt-mark", "hold", *step.left(gpu_of(facts))]),)
        case LoadModules():
            return (_load_script(facts, step),)
        case StartUnits():
            return tuple(_start(unit) for unit in step.units)
        case _:
            return ()


def transaction_of(step: Step, facts: Facts) -> AptTransaction | None:
    """
    Return the change of packages that *step* is; None: it is none.

    The versions are exactly those that were simulated.
    """
    if isinstance(step, BuildModules) and step.prebuilt is not None:
        missing = step.missing(gpu_of(facts))
        return AptTransaction(install=tuple(f"{step.prebuilt}-{one}" for one in missing))
    if not isinstance(step, Install) or facts.simulation is None:
        return None
    changes = {one.package: one for one in facts.simulation.changes}
    held = {one.package for one in gpu_of(facts).packages if one.held}
    install = [
        f"{name}={changes[name].after}" if name in changes else name for name in step.packages
    ]
    changed = tuple(name for name in changes if name in held)
    hold = [
        name
        for name, one in changes.items()
        if one.after is not None
        and (name in held or name in step.packages or upstream(one.after) == step.version)
    ]
    removed = tuple(name for name, one in changes.items() if one.after is None)
    return AptTransaction(install=tuple(install), remove=removed, unhold=changed, hold=tuple(hold))


def build_command(version: str, releases: tuple[str, ...], *, is_open: bool) -> str:
    """
    Return the command that builds modules in a unit of its own, and waits for its end.

    A lost connection ends the command alone.  The next run waits for a unit that still runs.
    """
    flavour = "open" if is_open else "proprietary"
    script = " && ".join(
        _build_script(shlex.quote(version), shlex.quote(release), flavour) for release in releases
    )
    script = script.replace("$", "$$")  # systemd takes one of two
    unit = BUILD_UNIT
    log = f"journalctl -q --no-pager -o cat -n 12 -u {unit} >&2"
    return (
        f"while systemctl is-active -q {unit}; do sleep 2; done; "
        f"systemctl reset-failed {unit} 2>/dev/null; "
        f"systemd-run -q --wait --collect --unit={unit} /bin/sh -c {shlex.quote(script)} "
        f"|| {{ {log}; exit 1; }}"
    )


def _build_script(version: str, release: str, flavour: str) -> str:
    """
    Return the script that has DKMS build the modules for one kernel.

    DKMS takes modules for installed that it was killed in installing, or whose files are damaged or
    gone; modules of the other flavour have the same version.  So where the kernel lacks the wanted
    ones afterwards, it builds and installs them again.
    """
    has_modules = (
        f"for module in {' '.join(MODULE_NAMES)}; do "
        f'[ "$(modinfo -k {release} -F version $module)" = {version} ] || continue; '
        f'case "$(modinfo -k {release} -F license $module)" in '
        "*GPL*) echo open ;; *) echo proprietary ;; esac; done "
        f"2>/dev/null | grep -qx {flavour}"
    )
    again = (
        f"for source in /usr/src/nvidia*-{version}; do name=${{source#/usr/src/}}; "
        f"name=${{name%-{version}}}; "
        f'dkms build --force -m "$name" -v {version} -k {release} && '
        f'dkms install --force -m "$name" -v {version} -k {release} || exit 1; done'
    )
    return f"dkms autoinstall -k {release} && {{ {{ {has_modules}; }} || {again}; }}"


def _load_script(facts: Facts, step: LoadModules) -> str:
    # On every way out what ran before runs again, with the old modules if need be.
    stop = (
        f"was=; for unit in {' '.join(_DAEMONS)}; do "
        'systemctl is-active -q "$unit" && was="$was $unit"; done; '
        "trap '[ -z \"$was\" ] || systemctl start $was' EXIT; trap 'exit 1' HUP INT TERM; "
        f"systemctl stop {' '.join(_DAEMONS)} 2>/dev/null; "
    )
    unload = "".join(
        f"[ ! -d /sys/module/{name} ] || rmmod {name} || exit 1; " for name in _MODULES
    )
    load = "modprobe nvidia && modprobe nvidia-uvm && { nvidia-modprobe -c 0 -u || true; }"
    return load if step.is_loaded(facts) else f"{stop}{unload}{load}"


def _start(unit: str) -> str:
    # Ubuntu's persistence daemon is started by udev alone, and cannot be enabled.
    name = shlex.quote(unit)
    return (
        f"systemctl enable -q {name} 2>/dev/null; systemctl reset-failed {name}; "
        f"systemctl start {name}"
    )
