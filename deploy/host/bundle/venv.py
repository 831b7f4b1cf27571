"""
The environment of a lock: built once from checked wheels, named by the lock's digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from deploy.host import layout as paths
from deploy.host import tree
from deploy.host.bundle import interpreters
from deploy.host.bundle.manifest import check_wheels
from deploy.host.bundle.sandbox import end_all, sandboxed
from deploy.host.bundle.takeover import (
    DIRECTORY_MODE,
    FILE_MODE,
    check_interpreter,
    close_to_group,
    is_closed,
    take_over,
)
from deploy.host.bundle.torch_check import check_torch, compare_later
from deploy.host.bundle.verify import check_file
from deploy.host.files import (
    TRASH,
    UNFINISHED,
    leftovers,
    locked,
    remove,
    sync_directory,
    sync_filesystem,
    write_atomic,
)
from deploy.host.interpreter import python_problem
from deploy.host.journaled import journaled
from deploy.host.protocol import Call, ErrorKind, HostError, VenvBuild, VenvBuilt, Wheel
from deploy.host.system import System
from deploy.host.text import one_line
from deploy.host.trusted_files import LIST_MAX, read_below

COMPLETE = ".complete"  # lists the wheels that it was built from
# uv installs to 3.9 times the size of the wheels: 223 to 874 MiB, with torch 2.13 for the CPU.  Of
# CUDA's, which hardly compress, to 1.7 times: 2,655 to 4,489 MiB, with torch 2.14 and CUDA 13.0.
UNPACKED_TIMES = 4

_VENV_S, _INSTALL_S, _IMPORT_S = 60.0, 900.0, 300.0

# Modules that the runtime imports, by wheel.  They are imported once in the sandbox to write their
# bytecode: the service's user cannot write it.
_IMPORTS = {
    "fastapi": "fastapi, fastapi.middleware.cors, fastapi.responses",
    "jinja2": "jinja2, jinja2.ext, jinja2.meta, jinja2.sandbox",
    "numpy": "numpy",
    "prometheus_client": "prometheus_client",
    "pydantic": "pydantic",
    "pyyaml": "yaml",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "torch": "torch, torch.nn.functional",
    "triton": "triton, triton.language.extra.cuda",
    "uvicorn": "uvicorn, uvicorn.loops.auto, uvicorn.protocols.http.auto, uvicorn.lifespan.on",
}


def run(system: System, call: Call, request: VenvBuild) -> VenvBuilt:
    """
    Build the environment of a lock from wheels that are in the wheelhouse; one whose files are
    not as recorded, or whose Python does not run, is built anew.
    """
    if hashlib.sha256(request.lock.encode()).hexdigest() != request.digest:
        raise HostError(
            ErrorKind.USAGE,
            f"{request.VERB}: digest is not that of lock",
            f"got {request.digest}",
            "send the SHA-256 of the lock's text",
        )
    try:
        check_wheels(request.wheels)
    except ValueError as error:
        raise HostError(
            ErrorKind.USAGE,
            f"{request.VERB}: wheels is not valid",
            str(error),
            "send file, sha256 and size of each wheel, once",
        ) from None
    with (
        journaled(system, call, request.VERB, {"digest": request.digest}, needs_lease=False) as op,
        locked(system, system.layout.stage_lock, _INSTALL_S),
    ):
        is_good = is_complete(system, request.digest) and _is_as_built(system, request.digest)
        result = build(
            system,
            request.lock,
            request.digest,
            request.python,
            request.wheels,
            replaces=not is_good,
            torch=request.torch,
        )
        close_older(system)
        _close(system, system.layout.venvs / request.digest)
        if request.torch is not None:
            full_gpus = compare_later(system, system.layout.venvs / request.digest)
            result = replace(result, full_gpus=full_gpus)
        op.result = result
    return result


def is_complete(system: System, digest: str) -> bool:
    return (system.layout.venvs / digest / COMPLETE).is_file()


def wheels_of(venv: Path) -> set[str]:
    """
    Return the names of the wheels that *venv* was built from.
    """
    try:
        return set(map(str, json.loads(read_below(venv, COMPLETE, LIST_MAX))))
    except (OSError, ValueError, TypeError, RecursionError):
        return set()


def build(
    system: System,
    text: str,
    digest: str,
    python: str,
    wheels: tuple[Wheel, ...],
    *,
    replaces: bool = False,
    torch: str | None = None,
) -> VenvBuilt:
    """
    Build the venv unless it exists; the caller holds the stage lock.

    With *replaces* it is built beside the present one, which slots use until it is exchanged.

    The build user unpacks and imports it in the sandbox; then root takes the files over, and runs
    none of them.

    Args:
        torch: Version and build that the environment must have; None: not compared.

    Raises:
        HostError: A wheel differs from the lock, uv failed, what was installed is refused, or it
            is another torch; nothing is left.
    """
    began_s = system.steady_s()
    layout = system.layout
    if is_complete(system, digest) and not replaces:
        return VenvBuilt(built=False, took_s=0.0)
    for wheel in wheels:
        path = layout.wheelhouse / wheel.file
        check_file(path, name=wheel.file, sha256=wheel.sha256, size=wheel.size)
        if not path.stat().st_mode & stat.S_IROTH:  # else the build user could not read it
            os.chown(path, os.geteuid(), system.account(paths.BUILD_USER).gid)
            path.chmod(FILE_MODE)
    interpreter = find_interpreter(system, python, text)
    make_directory(system, layout.venvs)
    end_all(system)  # before what it may still write is deleted
    for path in leftovers(layout.venvs):
        remove(path)
    final = layout.venvs / digest
    with build_area(system, layout.venvs / f"{UNFINISHED}{digest}") as area:
        draft = area / "venv"
        _install(system, area, draft, text, interpreter)
        _import(system, area, draft, wheels)
        mark = None
        if torch is not None:
            mark = check_torch(system, area, draft / "bin" / "python", torch)
        # uv's cache has the other names of its files.  What is in the draft is deleted once it is
        # root's: until then the draft itself may be a link.
        remove(area / "cache")
        take_over(
            draft,
            writer=system.account(paths.BUILD_USER).uid,
            gid=system.account(paths.USER).gid,
            interpreter=interpreter,
        )
        check_interpreter(draft, interpreter)
        for name in (".lock", COMPLETE, tree.RECORD, tree.UNCOMPARED):
            remove(draft / name)
        gid = system.account(paths.USER).gid
        names = json.dumps(sorted(wheel.file for wheel in wheels))
        write_atomic(draft / COMPLETE, names.encode(), FILE_MODE, gid)
        if mark is not None:
            write_atomic(draft / tree.UNCOMPARED, mark, FILE_MODE, gid)
        write_atomic(draft / tree.RECORD, tree.describe(draft), FILE_MODE, gid)
        sync_filesystem(layout.venvs)
        _exchange(draft, final)
    return VenvBuilt(built=True, took_s=round(system.steady_s() - began_s, 3))


def _is_as_built(system: System, digest: str) -> bool:
    venv = system.layout.venvs / digest
    altered = tree.compare(venv, deep=True)
    if not altered.is_recorded or altered.names:
        return False
    return python_problem(system, venv / "bin" / "python") is None


def _exchange(draft: Path, final: Path) -> None:
    """
    Put *draft* in the place of *final*, and delete what was there.
    """
    old = final.with_name(f"{TRASH}{final.name}")
    remove(old)
    if os.path.lexists(final):
        final.rename(old)
    draft.rename(final)
    sync_directory(final.parent)
    remove(old)


def _close(system: System, venv: Path) -> None:
    os.chown(venv, os.geteuid(), system.account(paths.USER).gid, follow_symlinks=False)
    venv.chmod(DIRECTORY_MODE)


def find_interpreter(system: System, version: str, lock: str) -> Path:
    """
    Return the Python of the environment of *lock*: the standalone one that it names, or the host's
    own of *version*.

    Raises:
        HostError: The host does not have it; none is downloaded.
    """
    named = interpreters.named_in(lock)
    if named is not None:
        release, archive = named
        minor = release.rpartition(".")[0]
        standalone = interpreters.program(system.layout.pythons, archive, minor)
        if minor == version and standalone.is_file():
            return standalone.resolve()
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            f"the venv needs a standalone Python {version}",
            f"{standalone} is not there",
            f"let mirrors.python.archives have release {release} with sha256 {archive} for this "
            "Python, in place of another release of it, then: inv provision; or make the bundle "
            "again with the present one: inv bundle",
        )
    interpreter = system.interpreter(version)
    if interpreter is None:
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            f"the venv needs Python {version}",
            f"the host has no python{version}",
            f"install python{version} on the host, or take a row for the Python that it has",
        )
    return interpreter


def close_older(system: System) -> None:
    """
    Close what older host programs placed, which all users could read; the caller holds the lock.
    """
    layout, gid = system.layout, system.account(paths.USER).gid
    for top in (layout.venvs, layout.releases, layout.models, layout.blobs):
        for path in top.iterdir() if top.is_dir() else ():
            # What a killed build left is removed before the next one, and never taken over.
            is_left = path.name.startswith((UNFINISHED, TRASH))
            if not is_left and not is_closed(path, gid):
                close_to_group(path, gid)


@contextlib.contextmanager
def build_area(system: System, path: Path) -> Iterator[Path]:
    """
    Make the directory *path* for the build user, and delete it with its content afterwards.
    """
    user = system.account(paths.BUILD_USER)
    remove(path)
    path.mkdir(mode=0o700)
    os.chown(path, user.uid, user.gid)
    try:
        yield path
    finally:
        remove(path)


def make_directory(system: System, path: Path) -> None:
    """
    Make *path*, a directory that the runtime may read, unless it exists.
    """
    if not path.is_dir():
        path.mkdir(parents=True)
        os.chown(path, os.geteuid(), system.account(paths.USER).gid)
        path.chmod(DIRECTORY_MODE)


def _install(system: System, area: Path, draft: Path, text: str, interpreter: Path) -> None:
    layout = system.layout
    uv = str(layout.uv)
    lock = area / "requirements.lock"
    lock.write_text(text)
    lock.chmod(0o644)
    # The cache is in the same directory, so that each file is written once.
    env = {
        "UV_CACHE_DIR": str(area / "cache"),
        "UV_NO_CONFIG": "1",
        "UV_OFFLINE": "1",
        "UV_LINK_MODE": "hardlink",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
    }
    make = [uv, "venv", "--relocatable", "--python", str(interpreter), str(draft)]
    install = [
        uv, "pip", "install", "--python", str(draft / "bin" / "python"),
        "--no-index", "--find-links", str(layout.wheelhouse),
        "--require-hashes", "--no-deps", "--requirement", str(lock),
    ]  # fmt: skip
    for argv, timeout_s in ((make, _VENV_S), (install, _INSTALL_S)):
        completed = sandboxed(
            system,
            argv,
            timeout_s=timeout_s,
            writable=[area],
            readable=[layout.bin, layout.wheelhouse],
            env=env,
        )
        if completed.returncode != 0:
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                f"the venv could not be built: {' '.join(['uv', *argv[1:3]])}",
                one_line(completed.stderr or completed.stdout)
                or f"exit status {completed.returncode}",
                "inv provision; the lock and the Python of the host must fit",
            )


def _import(system: System, area: Path, draft: Path, wheels: tuple[Wheel, ...]) -> None:
    installed = {wheel.file.split("-")[0].lower() for wheel in wheels}
    modules = ", ".join(names for wheel, names in _IMPORTS.items() if wheel in installed)
    statement = f"import {modules}" if modules else "pass"
    # Bytecode records the path of the draft; Python replaces it when it loads the file.
    completed = sandboxed(
        system,
        [str(draft / "bin" / "python"), "-I", "-c", statement],
        timeout_s=_IMPORT_S,
        writable=[area],
    )
    if completed.returncode != 0:
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            "the venv cannot import the modules of the runtime",
            one_line(completed.stderr) or f"exit status {completed.returncode}",
            "the row's torch build may not fit this host: inv matrix, and nvidia-smi there",
        )
