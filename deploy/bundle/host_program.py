"""
The host program as one file: `deploy/host` in a zip that `python3` runs.
"""

import importlib.util
import io
import marshal
import zipfile
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path

SHEBANG = b"#!/usr/bin/env python3\n"
_MAIN = """\
from deploy.host.__main__ import main

raise SystemExit(main())
"""
_PACKAGE = Path(__file__).parents[1] / "host"
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can store
# For facts and for the lease; the other packages need what only provisioning brings.
_FED = ("*.py", "deadman/__init__.py", "deadman/pending.py")
_HEADER_SIZE = 16  # of a .pyc file: magic number, flags, and 8 bytes that the flags explain
_UNCHECKED = (1).to_bytes(4, "little") + bytes(8)  # flags: hash-based, never compared (PEP 552)


def build_host_program(package: Path = _PACKAGE) -> bytes:
    """
    Return the file for `deploy.host.layout.HOST_PROGRAM`: the same sources give the same bytes.

    Not compressed: the output of a compressor depends on its version.
    """
    contents = {"__main__.py": _MAIN.encode(), "deploy/__init__.py": b""}
    for path in package.rglob("*.py"):
        contents[_name(package, path)] = path.read_bytes()
    return SHEBANG + _archive(contents)


def build_fed_program(package: Path = _PACKAGE) -> bytes:
    """
    Return a zip of the modules of *package* that a host needs before it is provisioned.

    Includes bytecode of this machine's Python version: a host with the same version does not
    compile the modules, any other compiles their sources.
    """
    contents = {"deploy/__init__.py": b""}
    for path in (path for pattern in _FED for path in package.glob(pattern)):
        name = _name(package, path)
        contents[name] = path.read_bytes()
        contents[f"{name}c"] = importlib.util.MAGIC_NUMBER + _UNCHECKED + _bytecode(path)
    return _archive(contents)


def _name(package: Path, path: Path) -> str:
    return f"deploy/host/{path.relative_to(package).as_posix()}"


def _bytecode(path: Path) -> bytes:
    cached = _cached_bytecode(path)
    if cached is not None:
        return cached
    # Caches it too, for the next time.
    return marshal.dumps(SourceFileLoader(path.stem, str(path)).get_code(path.stem))


def _cached_bytecode(path: Path) -> bytes | None:
    """
    Return the cached bytecode of *path*; None if there is none, or the source has changed.
    """
    try:
        bytecode = Path(importlib.util.cache_from_source(str(path))).read_bytes()
        status = path.stat()
    except (OSError, NotImplementedError):
        return None
    # Flags 0, then the time of change and the size of the source (PEP 552).
    source = b"".join(
        (value & 0xFFFFFFFF).to_bytes(4, "little")
        for value in (0, int(status.st_mtime), status.st_size)
    )
    if bytecode[:_HEADER_SIZE] != importlib.util.MAGIC_NUMBER + source:
        return None
    return bytecode[_HEADER_SIZE:]


def _archive(contents: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, on any machine
            archive.writestr(entry, data)
    return buffer.getvalue()
