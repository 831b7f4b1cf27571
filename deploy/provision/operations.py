"""
The pyinfra operations that make a resource so, and the fact that looks at a host.

Files are placed by commands of our own: pyinfra's `files.put` lets a file that is to be 0600 be
readable by all for a moment, writes it in place, and under sudo leaves it in /tmp meanwhile.
"""

import inspect
import io
import json
import os
import shlex
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.api.facts import FactBase
from pyinfra.api.operation import operation

from deploy.host import facts as look
from deploy.host import layout
from deploy.provision import resources
from deploy.provision.connector import Input
from deploy.provision.resources import AnyResource
from deploy.provision.seen import Question, Seen

APT_TIMEOUT_S = 600
VENV_TIMEOUT_S = 600
_SLOWEST_LINK = 2 * 2**20  # bytes per second that a send may take at worst
_SEND_MIN_S = 30

Commands = Generator[StringCommand, None, None]


class Look(FactBase[Seen | None]):
    """
    Everything that provisioning asks of a host, in one command; None: it has no Python.
    """

    def command(self) -> str:
        return "python3 -"

    def requires_command(self) -> str:
        return "python3"

    def process(self, output: list[str]) -> Seen:
        return Seen.model_validate_json(output[-1])


def look_input(question: Question) -> Any:
    """
    Return the program that answers *question*, for `python3 -`.
    """
    asked = json.dumps(question.model_dump_json())
    program = f"{inspect.getsource(look)}\n\nmain({asked})\n"
    return _bytes(program.encode())


def apply(resource: AnyResource, seen: Seen | None) -> None:
    """
    Make *resource* so on the current host; pyinfra runs the operations at once.

    Raises:
        pyinfra.api.exceptions.NestedOperationError: A command said no or was not answered.
    """
    name = f"{resource.name}"
    match resource:
        case resources.Packages():
            wanted = resource.missing(seen) if seen else resource.names
            from pyinfra.operations import apt, server  # slow to import, and seldom needed

            # A run that was cut off in the midst of dpkg leaves what apt refuses to go on with.
            # Where another apt holds the lock there is nothing to mend, and the next one waits.
            server.shell(
                name="Finish what an interrupted dpkg has left",
                commands=["dpkg --configure -a || true"],
                _timeout=APT_TIMEOUT_S,
                _env={"DEBIAN_FRONTEND": "noninteractive"},
            )
            apt.packages(
                name=f"Install {', '.join(wanted)}",
                packages=list(wanted),
                update=True,
                no_recommends=True,
                _timeout=APT_TIMEOUT_S,
                _env={"DEBIAN_FRONTEND": "noninteractive"},
            )
        case resources.User():
            from pyinfra.operations import server

            server.group(name=f"Make group {resource.user}", group=resource.user, system=True)
            server.user(
                name=f"Make {name}",
                user=resource.user,
                group=resource.user,
                home=resource.home,
                shell=resource.shell,
                system=True,
                ensure_home=False,
                create_home=False,
            )
        case resources.Directory():
            directory(name=f"Make {name}", goal=resource)
        case resources.File():
            place(name=f"Place {name}", goal=resource)
        case resources.Absent():
            remove(name=f"Remove {name}", path=resource.path)
        case resources.Upload():
            is_there = seen is not None and resource.is_there(seen)
            upload(name=f"Send {name}", goal=resource, send=not is_there)
        case resources.Venv():
            for wheel in resource.missing(seen) if seen else resource.wheels:
                upload(name=f"Send {wheel.file}", goal=_wheel(wheel), send=True)
            venv(name=f"Build {name}", goal=resource)
        case resources.UnitsRead():
            shell(name="Read units again", commands=["systemctl daemon-reload"])
        case resources.Service():
            _serve(resource)


def _serve(goal: resources.Service) -> None:
    ask = f"echo show info | socat - UNIX-CONNECT:{goal.socket}"
    said = f"{ask} | grep -qxF {shlex.quote(f'description: {goal.description}')}"
    shell(
        name=f"Enable, start and load {goal.unit}",
        commands=[
            f"systemctl enable --quiet {goal.unit} && systemctl reload-or-restart {goal.unit}",
            # A reload returns before the new worker has taken over.
            f"for i in $(seq 100); do {said} 2>/dev/null && exit; sleep 0.1; done; "
            f"echo '{goal.unit} does not load its configuration' >&2; exit 1",
        ],
    )


@operation()
def shell(commands: list[str]) -> Commands:
    """
    Run commands, each in a shell of its own.
    """
    for command in commands:
        yield StringCommand(command)


@operation()
def directory(goal: resources.Directory) -> Commands:
    """
    Make a directory with its owner and mode.
    """
    words = ["install", "-d", "-o", goal.owner, "-g", goal.group, "-m", goal.mode, goal.path]
    yield StringCommand(shlex.join(words))


@operation()
def remove(path: str) -> Commands:
    """
    Remove a file.
    """
    yield StringCommand(shlex.join(["rm", "-f", path]))


@operation()
def place(goal: resources.File) -> Commands:
    """
    Put a file in place, whole or not at all, and never with wider permissions than it is to have.
    """
    check = goal.check.replace("{}", '"$new"') if goal.check else "true"
    yield _placing(goal, _holds(len(goal.content)), _bytes(goal.content), _SEND_MIN_S, check)


@operation()
def upload(goal: resources.Upload, send: bool) -> Commands:
    """
    Put a large file in place once its hash is right, and link to it.
    """
    if send:
        content = _content(goal.source, goal.size)
        yield _placing(goal, _hashes_to(goal.sha256), content, _send_timeout_s(goal.size))
    if goal.link:
        # A symlink is replaced at once by renaming another one over it.
        new = shlex.quote(f"{goal.link}.new")
        path, link = shlex.quote(goal.path), shlex.quote(goal.link)
        yield StringCommand(f"ln -sfn {path} {new} && mv -fT {new} {link}")


@operation()
def venv(goal: resources.Venv) -> Commands:
    """
    Have the host tool build the environment of a lock.
    """
    wheels = [{"file": w.file, "sha256": w.sha256, "size": w.size} for w in goal.wheels]
    args: dict[str, Any] = {
        "lock": goal.text,
        "digest": goal.digest,
        "python": goal.python,
        "wheels": wheels,
    }
    envelope = {"fence": None, "release": None, "actor": "provision", "args": args}
    # It exits 0 also when it says no: pyinfra is to see the refusal.
    yield StringCommand(
        f"said=$(python3 {layout.HOST_PROGRAM} venv.build) || exit; "
        'case $said in \'{"ok": true\'*|\'{"ok":true\'*) ;; *) echo "$said" >&2; exit 1;; esac',
        _stdin=_bytes(json.dumps(envelope).encode()),
        _timeout=VENV_TIMEOUT_S,
    )


def _placing(
    goal: resources.File | resources.Upload,
    right: str,
    content: Any,
    timeout_s: int,
    check: str = "true",
) -> StringCommand:
    """
    Return the command that places what comes in on standard input.

    The new file is made beside the old one, readable by root alone; owner and mode are set when
    its content is whole and right; then it takes the old one's name.  A connection that ends in
    the middle leaves the old file.
    """
    folder, base = os.path.split(goal.path)
    owner = f"{goal.owner}:{goal.group}" if isinstance(goal, resources.File) else "root:root"
    new = shlex.quote(f"{folder}/.{base}.")
    script = (
        # What a crash left of an earlier try goes first; a signal takes the new one along.
        f"umask 077; rm -f {new}????????; new=; trap 'rm -f \"$new\"' EXIT; "
        f"trap 'exit 1' HUP INT TERM; new=$(mktemp {new}XXXXXXXX) || exit 1; "
        f'cat >"$new" && {right} && {{ {check}; }} && '
        f'chown {owner} "$new" && chmod {goal.mode} "$new" && '
        f'mv -fT "$new" {shlex.quote(goal.path)}'
    )
    return StringCommand(script, _stdin=content, _timeout=timeout_s)


def _wheel(wheel: resources.WheelFile) -> resources.Upload:
    return resources.Upload(
        path=f"{layout.WHEELHOUSE}/{wheel.file}",
        source=wheel.source,
        sha256=wheel.sha256,
        size=wheel.size,
    )


def _holds(size: int) -> str:
    # Not a hash: this line is seen by all users of the host, and a short secret can be guessed.
    return f'[ "$(stat -c %s "$new")" = {size} ]'


def _hashes_to(sha256: str) -> str:
    return f'echo "{sha256}  $new" | sha256sum --check --status'


def _bytes(content: bytes) -> Any:
    # pyinfra types _stdin as text; our connector takes bytes, as files are.
    return Input(lambda: io.BytesIO(content), len(content))


def _content(source: str, size: int) -> Any:
    return Input(lambda: Path(source).open("rb"), size)


def _send_timeout_s(size: int) -> int:
    return _SEND_MIN_S + size // _SLOWEST_LINK
