"""
The environment of a lock: built once from checked wheels, named by the lock's digest.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from deploy.host.bundle.manifest import check_wheels
from deploy.host.bundle.verify import check_file
from deploy.host.files import (
    UNFINISHED,
    discard,
    leftovers,
    locked,
    remove,
    sync_directory,
    sync_filesystem,
    write_atomic,
)
from deploy.host.journaled import journaled
from deploy.host.protocol import Call, ErrorKind, HostError, VenvBuild, VenvBuilt, Wheel
from deploy.host.system import System
from deploy.host.text import one_line

COMPLETE = ".complete"  # lists the wheels that it was built from
# uv installs to 3.9 times the size of the wheels: 223 to 874 MiB, with torch 2.13 for the CPU.  Of
# CUDA's, which hardly compress, to 1.7 times: 2,655 to 4,489 MiB, with torch 2.14 and CUDA 13.0.
UNPACKED_TIMES = 4

_VENV_S, _INSTALL_S, _IMPORT_S = 60.0, 900.0, 300.0

# Modules that the runtime imports, by wheel.  They are imported once as root to write their
# bytecode: the service's user cannot write it.
_IMPORTS = {
    "fastapi": "fastapi, fastapi.middleware.cors, fastapi.responses",
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
    Build the environment of a lock from wheels that are in the wheelhouse.
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
        result = build(system, request.lock, request.digest, request.python, request.wheels)
        op.result = result
    return result


def is_complete(system: System, digest: str) -> bool:
    return (system.layout.venvs / digest / COMPLETE).is_file()


def wheels_of(venv: Path) -> set[str]:
    """
    Return the names of the wheels that *venv* was built from.
    """
    try:
        return set(json.loads((venv / COMPLETE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return set()


def build(
    system: System, text: str, digest: str, python: str, wheels: tuple[Wheel, ...]
) -> VenvBuilt:
    """
    Build the venv unless it exists; the caller holds the stage lock.

    Raises:
        HostError: A wheel differs from the lock, or uv failed; nothing is left.
    """
    began_s = system.steady_s()
    layout = system.layout
    if is_complete(system, digest):
        return VenvBuilt(built=False, took_s=0.0)
    for wheel in wheels:
        path = layout.wheelhouse / wheel.file
        check_file(path, name=wheel.file, sha256=wheel.sha256, size=wheel.size)
    layout.venvs.mkdir(parents=True, exist_ok=True)
    for path in leftovers(layout.venvs):
        remove(path)
    final = layout.venvs / digest
    if final.exists():
        discard(final)  # not marked complete: a build was killed before its last step
    draft = layout.venvs / f"{UNFINISHED}{digest}"
    try:
        _install(system, draft, text, python)
        remove(draft / ".lock")  # of uv, writable by all
        sync_filesystem(layout.venvs)
        draft.rename(final)
        # In its final place: bytecode records the path of its source.
        _import(system, final, wheels)
    except BaseException:
        remove(draft)
        raise
    names = json.dumps(sorted(wheel.file for wheel in wheels))
    write_atomic(final / COMPLETE, names.encode(), 0o644)
    sync_directory(layout.venvs)
    return VenvBuilt(built=True, took_s=round(system.steady_s() - began_s, 3))


def _install(system: System, draft: Path, text: str, python: str) -> None:
    layout = system.layout
    uv = str(layout.uv)
    cache = layout.venvs / f"{UNFINISHED}cache"
    lock = layout.venvs / f"{UNFINISHED}requirements.lock"
    lock.write_text(text)
    # The cache is on the same file system, so that each file is written once.
    env = {
        "UV_CACHE_DIR": str(cache),
        "UV_NO_CONFIG": "1",
        "UV_OFFLINE": "1",
        "UV_LINK_MODE": "hardlink",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
    }
    try:
        _uv(system, [uv, "venv", "--relocatable", "--python", python, str(draft)], _VENV_S, env)
        _uv(
            system,
            [
                uv, "pip", "install", "--python", str(draft / "bin" / "python"),
                "--no-index", "--find-links", str(layout.wheelhouse),
                "--require-hashes", "--no-deps", "--requirement", str(lock),
            ],
            _INSTALL_S,
            env,
        )  # fmt: skip
    finally:
        remove(cache)
        remove(lock)


def _uv(system: System, argv: list[str], timeout_s: float, env: dict[str, str]) -> None:
    completed = system.run(argv, timeout_s=timeout_s, env=env)
    if completed.returncode != 0:
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            f"the venv could not be built: {' '.join(['uv', *argv[1:3]])}",
            one_line(completed.stderr or completed.stdout) or f"exit status {completed.returncode}",
            "inv provision; the lock and the Python of the host must fit",
        )


def _import(system: System, venv: Path, wheels: tuple[Wheel, ...]) -> None:
    installed = {wheel.file.split("-")[0].lower() for wheel in wheels}
    modules = ", ".join(names for wheel, names in _IMPORTS.items() if wheel in installed)
    statement = f"import {modules}" if modules else "pass"
    completed = system.run(
        [str(venv / "bin" / "python"), "-I", "-c", statement],
        timeout_s=_IMPORT_S,
        env={"PYTHONDONTWRITEBYTECODE": ""},
    )
    if completed.returncode != 0:
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            "the venv cannot import the modules of the runtime",
            one_line(completed.stderr),
            "the row's torch build may not fit this host: inv matrix, and nvidia-smi there",
        )
