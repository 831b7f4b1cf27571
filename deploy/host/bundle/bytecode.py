"""
Compiles the runtime of a release in the sandbox: the service cannot write its bytecode itself.

The sources are copied for the build user, and of what it writes only files with the expected names
are read back, as bytes.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from deploy.host import layout as paths
from deploy.host.bundle import venv
from deploy.host.bundle.manifest import LOCK_FILE, Manifest
from deploy.host.bundle.sandbox import end_all, sandboxed
from deploy.host.files import UNFINISHED
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.system import System
from deploy.host.text import one_line
from deploy.host.trusted_files import LIST_MAX, read_below

_COMPILE_S = 60.0
_BYTECODE_MAX = 32 << 20  # bytes of one file


def compile_runtime(system: System, draft: Path, final: Path, manifest: Manifest) -> None:
    """
    Add the bytecode of `runtime/` to *draft*, with the paths of its sources in *final*.

    It names no time of its source (PEP 552, unchecked): sources of a release never change.

    Raises:
        HostError: A module does not compile.
    """
    sources = [
        PurePosixPath(file.path)
        for file in manifest.files
        if file.path.startswith("runtime/") and file.path.endswith(".py")
    ]
    lock = read_below(draft, LOCK_FILE, LIST_MAX).decode()
    python = venv.find_interpreter(system, manifest.lock.python, lock)
    end_all(system)
    with venv.build_area(system, draft.parent / f"{UNFINISHED}build") as area:
        for source in sources:
            _copy(system, area, source, (draft / source).read_bytes())
        argv = [
            str(python), "-I", "-S", "-m", "compileall", "-q",
            "--invalidation-mode", "unchecked-hash",
            "-s", str(area), "-p", str(final), str(area / "runtime"),
        ]  # fmt: skip
        completed = sandboxed(system, argv, timeout_s=_COMPILE_S, writable=[area])
        if completed.returncode != 0:
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                "the runtime of the bundle does not compile",
                one_line(completed.stdout + completed.stderr),
                "correct it and build the bundle again: inv bundle",
            )
        tag = f"cpython-{manifest.lock.python.replace('.', '')}"
        for source in sources:
            name = source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc"
            try:
                bytecode = read_below(area, str(name), _BYTECODE_MAX)
            except FileNotFoundError:
                continue  # Python compiles it at each start
            (draft / name.parent).mkdir(exist_ok=True)
            (draft / name).write_bytes(bytecode)


def _copy(system: System, area: Path, source: PurePosixPath, content: bytes) -> None:
    user = system.account(paths.BUILD_USER)
    at = area
    for part in source.parts[:-1]:
        at = at / part
        if not at.is_dir():
            at.mkdir(mode=0o700)
            os.chown(at, user.uid, user.gid)
    (at / source.name).write_bytes(content)
    (at / source.name).chmod(0o644)
