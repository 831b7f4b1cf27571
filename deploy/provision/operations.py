"""
The pyinfra operations that bring a resource to its wanted state.

Files are placed by own commands: pyinfra's `files.put` makes a 0600 file readable by all for a
moment, writes it in place, and under sudo keeps a copy in /tmp meanwhile.
"""

import os
import shlex
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.api.operation import operation

from deploy.errors import PreconditionError
from deploy.host import layout
from deploy.host.protocol import (
    CertificateSet,
    DeadmanTest,
    Facts,
    PythonPlace,
)
from deploy.provision import (
    bind_mount,
    certificate_resources,
    deadman_resources,
    interpreter_resource,
    resources,
    slot_resources,
    unit_resources,
    user_resources,
)
from deploy.provision.apt_packages import Packages
from deploy.provision.apt_runner import DRIVER_TRANSACTION_S, AptRunner, Notes
from deploy.provision.apt_sources import AptSources, os_release_of
from deploy.provision.connector import Input, input_of
from deploy.provision.driver.commands import commands_of, transaction_of
from deploy.provision.driver.gpu_state import UNIT as GPU_UNIT
from deploy.provision.driver.gpu_state import GpuUnit, waits_for_driver
from deploy.provision.driver.plan import PlaceFile, PlaceSource
from deploy.provision.driver.resource import LoadedDriver, NvidiaDriver
from deploy.provision.requirements import HostRefusal
from deploy.provision.resources import AnyResource
from deploy.transport.client import HostClient

PYTHON_TIMEOUT_S = 300
DEADMAN_TIMEOUT_S = 60
CERTIFICATE_TIMEOUT_S = 60
GPU_TIMEOUT_S = 150
_SLOWEST_LINK = 2 * 2**20  # bytes per second; a slower upload times out
_SEND_MIN_S = 30
_START_MARGIN_S = 15  # for systemd, beyond the start of a slot

Commands = Generator[StringCommand, None, None]


def apply(resource: AnyResource, facts: Facts | None, client: HostClient, notes: Notes) -> None:
    """
    Bring *resource* of pyinfra's current host to its wanted state; operations run at once.

    Args:
        client: The host program of that host.
        notes: What the operator is told meanwhile.

    Raises:
        pyinfra.api.exceptions.NestedOperationError: A command failed or was not answered.
        DeployError: The host program reports an error.
    """
    name = f"{resource.name}"
    match resource:
        case Packages():
            AptRunner(client, notes).change(resource.transaction(facts))
        case AptSources():
            host = os_release_of(facts) if facts else None
            AptRunner(client, notes).replace_sources(resource, host)
        case user_resources.User():
            shell(name=f"Create {name}", commands=user_commands(resource, facts))
        case resources.Directory():
            directory(name=f"Create {name}", resource=resource)
        case slot_resources.Socket():
            shell(name=f"Give {name} to {resource.owner}", commands=[giving_command(resource)])
        case slot_resources.Reserve():
            shell(name=f"Reserve {name}", commands=[reserve_command(resource)])
        case resources.File():
            place(name=f"Place {name}", resource=resource)
        case certificate_resources.Certificate():
            request = CertificateSet(pem=resource.pem, replaces=resource.replaces(facts))
            client.call(request, timeout_s=CERTIFICATE_TIMEOUT_S)
        case resources.Absent():
            remove(name=f"Remove {name}", path=resource.path)
        case resources.Upload():
            is_placed = facts is not None and resource.is_placed(facts)
            upload(name=f"Send {name}", resource=resource, send=not is_placed)
        case interpreter_resource.StandalonePython():
            upload(name=f"Send {name}", resource=_archive(resource), send=True)
            client.call(_python_place(resource), timeout_s=PYTHON_TIMEOUT_S)
        case resources.Venv():
            for wheel in resource.missing(facts) if facts else resource.wheels or ():
                upload(name=f"Send {wheel.file}", resource=_wheel(wheel), send=True)
            build_environment(resource, client, notes)
        case resources.ComparedTorch():
            build_environment(resource.venv, client, notes)
        case bind_mount.BindMount():
            shell(name=f"Mount {resource.where}", commands=[resource.command])
        case unit_resources.UnitsLoaded():
            shell(name="Reload unit files", commands=[loading_command(resource.units, facts)])
        case slot_resources.SlotUnit():
            shell(
                name=f"Start {name}",
                commands=[slot_command(resource)],
                _timeout=resource.start_s + _START_MARGIN_S,
            )
        case unit_resources.EnabledService():
            shell(
                name=f"Enable, start and load {resource.unit}",
                commands=service_commands(resource, facts),
            )
        case deadman_resources.EnabledUnits():
            loading = loading_command(resource.units, facts)
            shell(
                name=f"Enable and start {name}",
                commands=[f"{loading} && {enabling_command(resource)}"],
            )
        case deadman_resources.DeadmanMark():
            client.call(DeadmanTest(), timeout_s=DEADMAN_TIMEOUT_S)
        case NvidiaDriver() | LoadedDriver() if facts is not None:
            apply_driver(resource, facts, AptRunner(client, notes))
        case GpuUnit() if facts is not None:
            refuse(resource.problem(facts), resource)
            shell(name=f"Run {name}", commands=[gpu_command(facts)], _timeout=GPU_TIMEOUT_S)


def build_environment(resource: resources.Venv, client: HostClient, notes: Notes) -> None:
    """
    Build an environment, or compare its torch; warn of GPUs on which it was not compared.
    """
    result = client.call(resource.build_request, timeout_s=resources.VENV_TIMEOUT_S)
    if result.full_gpus:
        notes.warn(
            f"torch of {resource.name}",
            f"not compared on GPUs without free memory: {', '.join(map(str, result.full_gpus))}",
            "the next boot compares it before slots start; to do so now, on the host: "
            f"systemctl stop 'slipway-runtime@*'; truncate -s 0 {resource.mark}; then inv "
            "provision compares it and starts the slots again",
        )


def apply_driver(resource: NvidiaDriver | LoadedDriver, facts: Facts, apt: AptRunner) -> None:
    """
    Take the steps of a driver that can be taken with *facts*.
    """
    if isinstance(resource, LoadedDriver):
        refuse(resource.problem(facts), resource)
    for step in resource.next_steps(facts):
        transaction = transaction_of(step, facts)
        if transaction is not None:
            apt.change(transaction, limit_s=DRIVER_TRANSACTION_S)
        elif isinstance(step, PlaceSource):
            apt.replace_sources(step.sources, os_release_of(facts))
        elif isinstance(step, PlaceFile):
            folder = os.path.dirname(step.path)  # noqa: PTH120 - of the host
            shell(name=f"Create {folder}", commands=[shlex.join(["mkdir", "-p", folder])])
            file = resources.File(path=step.path, content=step.content)
            place(name=f"Place {step.path}", resource=file)
        elif commands := commands_of(step, facts):
            shell(name=step.text, commands=list(commands), _timeout=DRIVER_TRANSACTION_S)


def refuse(problem: HostRefusal | None, resource: LoadedDriver | GpuUnit) -> None:
    """
    Raise what no command mends, as the error of the host.
    """
    if problem is not None:
        raise PreconditionError(resource.name, why=problem.why, fix=problem.fix)


def gpu_command(facts: Facts) -> str:
    """
    Return the command that runs the unit of the GPUs again, with its last log lines on failure.

    Where the driver waits for a reboot it only enables the unit.
    """
    enable = f"systemctl daemon-reload && systemctl enable --quiet {GPU_UNIT}"
    if waits_for_driver(facts):
        return enable
    log = f"journalctl --quiet --no-pager --output cat --lines 5 --unit {GPU_UNIT} >&2"
    return f"{enable} && {{ systemctl restart {GPU_UNIT} || {{ {log}; exit 1; }}; }}"


def enabling_command(resource: deadman_resources.EnabledUnits) -> str:
    """
    Return the command that enables units, and runs their timer by its present file.
    """
    enable = shlex.join(["systemctl", "enable", "--quiet", *resource.enabled])
    return f"{enable} && systemctl restart {resource.timer}"


def loading_command(units: tuple[str, ...], facts: Facts | None) -> str:
    """
    Return the command that loads units from the files that were placed, and from no others.
    """
    foreign = unit_resources.foreign_files(facts, units) if facts else ()
    remove = f"{shlex.join(['rm', '-f', '--', *foreign])} && " if foreign else ""
    return f"{remove}systemctl daemon-reload"


def user_commands(resource: user_resources.User, facts: Facts | None) -> list[str]:
    """
    Return the commands that create a user, or change what differs of it.
    """
    user, found = resource.user, facts.users[resource.user] if facts else None
    group = f"getent group {user} >/dev/null || groupadd --system {user}"
    if found is not None:
        return [group, shlex.join(["usermod", *resource.usermod_options(found), user])]
    options = ["--home-dir", resource.home, "--shell", resource.shell, "--no-create-home"]
    return [group, shlex.join(["useradd", "--system", "--gid", user, *options, user])]


def slot_command(resource: slot_resources.SlotUnit) -> str:
    """
    Return the command that starts the unit of a slot again, with its last log lines on failure.
    """
    unit = shlex.quote(resource.unit)
    log = f"journalctl --quiet --no-pager --output cat --lines 5 --unit {unit} >&2"
    return (
        f"systemctl reset-failed {unit}; "
        f"systemctl restart {unit} || {{ echo '{unit} does not start again:' >&2; {log}; exit 1; }}"
    )


def giving_command(resource: slot_resources.Socket) -> str:
    """
    Return the command that gives a socket to its owner; one that has gone is no error.
    """
    path, owner = shlex.quote(resource.path), shlex.quote(resource.owner)
    give = f"chown -h {owner} {path} && chmod {resource.mode} {path}"
    return f"[ ! -S {path} ] || [ -L {path} ] || {{ {give}; }}"


def reserve_command(resource: slot_resources.Reserve) -> str:
    """
    Return the command that lays a reserve file, or leaves none.
    """
    path = shlex.quote(resource.path)
    lay = f"umask 077; fallocate -l {resource.size} {path}"
    return f"rm -f {path}; {{ {lay}; }} || {{ rm -f {path}; exit 1; }}"


def service_commands(resource: unit_resources.EnabledService, facts: Facts | None) -> list[str]:
    """
    Return the commands that start a service, or let it load its configuration.
    """
    unit = resource.unit
    ask = f"echo show info | socat - UNIX-CONNECT:{resource.socket}"
    said = f"{ask} | grep -qxF {shlex.quote(f'description: {resource.description}')}"
    is_lost = facts is not None and resource.has_lost_socket(facts)
    is_stale = facts is not None and facts.units[unit].stale
    verb = "restart" if is_lost else "reload-or-restart"
    return [
        # systemd refuses to start a unit that failed too often, until its counter is reset.
        f"{'systemctl daemon-reload && ' if is_stale else ''}"
        f"systemctl enable --quiet {unit} && systemctl reset-failed {unit} && "
        f"systemctl {verb} {unit}",
        # A reload returns before the new worker has taken over the sockets.
        f"for i in $(seq 100); do {said} 2>/dev/null && exit; sleep 0.1; done; "
        f"echo '{unit} did not load its configuration' >&2; exit 1",
    ]


@operation()
def shell(commands: list[str]) -> Commands:
    """
    Run each command in its own shell.
    """
    for command in commands:
        yield StringCommand(command)


@operation()
def directory(resource: resources.Directory) -> Commands:
    """
    Create a directory with its owner and mode.
    """
    rights = ["-o", resource.owner, "-g", resource.group, "-m", resource.mode]
    make = shlex.join(["install", "-d", *rights, resource.path])
    # Only a mode of five digits takes set-id bits from a directory.  Source: chmod(1).
    yield StringCommand(f"{make} && {shlex.join(['chmod', f'0{resource.mode}', resource.path])}")


@operation()
def remove(path: str) -> Commands:
    """
    Remove a file, or a directory with all that is in it.
    """
    yield StringCommand(shlex.join(["rm", "-rf", "--one-file-system", path]))


@operation()
def place(resource: resources.File) -> Commands:
    """
    Place a file atomically, never with wider permissions than its own.
    """
    check = resource.check.replace("{}", '"$new"') if resource.check else "true"
    yield _placing(
        resource, _holds(len(resource.content)), input_of(resource.content), _SEND_MIN_S, check
    )


@operation()
def upload(resource: resources.Upload, send: bool) -> Commands:
    """
    Place a large file once its hash is verified, and link to it.
    """
    if send:
        content = _content(resource.source, resource.size)
        yield _placing(
            resource, _hashes_to(resource.sha256), content, _send_timeout_s(resource.size)
        )
    if resource.link:
        # A symlink is replaced at once by renaming another one over it.
        new = shlex.quote(f"{resource.link}.new")
        path, link = shlex.quote(resource.path), shlex.quote(resource.link)
        yield StringCommand(f"ln -sfn {path} {new} && mv -fT {new} {link}")


def _placing(
    resource: resources.File | resources.Upload,
    verified: str,
    content: Any,
    timeout_s: int,
    check: str = "true",
) -> StringCommand:
    """
    Return the command that places its standard input as a file.

    The new file is created beside the old one, readable by root only.  Owner and mode are set when
    its content is complete and verified; then it is renamed over the old one.  A connection that
    ends early leaves the old file.
    """
    folder, base = os.path.split(resource.path)
    owner = (
        f"{resource.owner}:{resource.group}"
        if isinstance(resource, resources.File)
        else "root:root"
    )
    new = shlex.quote(f"{folder}/.{base}.")
    script = (
        # First removes what an earlier crash left; a signal removes the new file too.
        f"umask 077; rm -f {new}????????; new=; trap 'rm -f \"$new\"' EXIT; "
        f"trap 'exit 1' HUP INT TERM; new=$(mktemp {new}XXXXXXXX) || exit 1; "
        f'cat >"$new" && {verified} && {{ {check}; }} && '
        f'chown {owner} "$new" && chmod {resource.mode} "$new" && '
        f'mv -fT "$new" {shlex.quote(resource.path)}'
    )
    return StringCommand(script, _stdin=content, _timeout=timeout_s)


def _archive(resource: interpreter_resource.StandalonePython) -> resources.Upload:
    assert resource.source is not None, "it is fetched before a host is changed"
    return resources.Upload(
        path=resource.upload, source=resource.source, sha256=resource.sha256, size=resource.size
    )


def _python_place(resource: interpreter_resource.StandalonePython) -> PythonPlace:
    return PythonPlace(
        python=resource.python,
        release=resource.release,
        sha256=resource.sha256,
        size=resource.size,
    )


def _wheel(wheel: resources.WheelFile) -> resources.Upload:
    return resources.Upload(
        path=f"{layout.WHEELHOUSE}/{wheel.file}",
        source=wheel.source,
        sha256=wheel.sha256,
        size=wheel.size,
    )


def _holds(size: int) -> str:
    # Not a hash: this line is facts by all users of the host, and a short secret can be guessed.
    return f'[ "$(stat -c %s "$new")" = {size} ]'


def _hashes_to(sha256: str) -> str:
    return f'echo "{sha256}  $new" | sha256sum --check --status'


def _content(source: str, size: int) -> Input:
    return Input(lambda: Path(source).open("rb"), size)


def _send_timeout_s(size: int) -> int:
    return _SEND_MIN_S + size // _SLOWEST_LINK
