"""
Makes the locks of the rows again; a program of its own.

    python -m deploy.wheelhouse.renew             make all that uv compiles, and uv.lock
    python -m deploy.wheelhouse.renew NAME ...    make these files of requirements/

The index is that of uv on this machine (UV_DEFAULT_INDEX); of it, locks get nothing but hashes.
The locks of torch's CPU build are written by hand: no default index has that build.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import uv

from deploy.errors import CommandFailed, DeployError, UsageError
from deploy.versions.matrix import Row, load_matrix
from deploy.wheelhouse.fetch import REQUIREMENTS
from deploy.wheelhouse.uv_wheel import UV_LOCK, fetch_uv_wheel, uv_lock_text

COMMAND = "python -m deploy.wheelhouse.renew"
_CONTROL = "requirements/control.lock"
_CPU = "torch.lock"  # by hand
_TIMEOUT_S = 600.0
# What torch needs and runtime.in lists too: a lock of torch leaves it to the lock of the runtime.
_IN_RUNTIME = (
    *("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy"),
    "typing-extensions",
)


def main(argv: list[str]) -> int:
    """
    Make the locks; return the exit code.
    """
    parser = argparse.ArgumentParser(prog=COMMAND, description="Makes the locks of the rows again.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="file of requirements/")
    names = parser.parse_args(argv).names
    try:
        commands = lock_commands(load_matrix().rows)
        for name in _checked(names, commands):
            if name == UV_LOCK:
                _renew_uv()
            else:
                _compile(commands[name])
            sys.stdout.write(f"wrote: requirements/{name}\n")
    except DeployError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def lock_commands(rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """
    Return the arguments of uv that make each lock of *rows*, by file name; a runtime's lock goes
    before those of torch, which are constrained by it.
    """
    commands: dict[str, tuple[str, ...]] = {}
    locked = [row for row in rows if row.lock is not None]
    for row in locked:
        commands[row.runtime_lock] = _command("runtime.in", row, row.runtime_lock, _CONTROL)
    for row in locked:
        if row.lock is not None and row.needs_gpu:
            runtime = f"requirements/{row.runtime_lock}"
            omitted = [word for name in _IN_RUNTIME for word in ("--no-emit-package", name)]
            source = f"{_CPU.partition('.')[0]}-{row.build}.in"
            commands[row.lock] = _command(source, row, row.lock, runtime, omitted)
    return commands


def _command(
    source: str, row: Row, target: str, constraint: str, more: Sequence[str] = ()
) -> tuple[str, ...]:
    return (
        *("pip", "compile", "--generate-hashes", "--python-version", row.python),
        *("--python-platform", "x86_64-manylinux_2_28", f"requirements/{source}"),
        *("-c", constraint, *more, "-o", f"requirements/{target}"),
    )


def _checked(names: Sequence[str], commands: Mapping[str, object]) -> Iterator[str]:
    known = (*commands, UV_LOCK)
    for name in names:
        if name not in known:
            raise UsageError(
                f"{name}: not a lock that this program makes",
                why=f"it makes {', '.join(known)}",
                fix=f"{COMMAND} {known[0]}",
            )
    yield from names or known


def _compile(arguments: Sequence[str]) -> None:
    argv = [uv.find_uv_bin(), "--quiet", *arguments]
    try:
        done = subprocess.run(
            argv,
            cwd=REQUIREMENTS.parent,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _failed(arguments[-1], f"uv did not end within {_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise _failed(arguments[-1], done.stderr.strip()[-600:] or f"uv exited {done.returncode}")


def _renew_uv() -> None:
    control = (REQUIREMENTS / "control.lock").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        wheel = fetch_uv_wheel(control, Path(folder))
        (REQUIREMENTS / UV_LOCK).write_text(uv_lock_text(wheel), encoding="utf-8")


def _failed(name: str, why: str) -> CommandFailed:
    return CommandFailed(
        f"{name}: not made",
        why=why,
        fix=f"check the package index of uv on this machine (UV_DEFAULT_INDEX), then: {COMMAND}",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
