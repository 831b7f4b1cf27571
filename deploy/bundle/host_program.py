"""
Builds the host program: `deploy/host` as one zipapp, reproducibly.
"""

import io
import zipfile
from pathlib import Path

SHEBANG = b"#!/usr/bin/env python3\n"
_MAIN = """\
from deploy.host.__main__ import main

raise SystemExit(main())
"""
_PACKAGE = Path(__file__).parents[1] / "host"
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest time of the zip format


def build_host_program(package: Path = _PACKAGE) -> bytes:
    """
    Return the content of `deploy.host.layout.HOST_PROGRAM`.

    It is not compressed: the output of a compressor depends on its version.
    """
    contents = {"__main__.py": _MAIN.encode(), "deploy/__init__.py": b""}
    for path in package.rglob("*.py"):
        contents[f"deploy/host/{path.relative_to(package).as_posix()}"] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(contents.items()):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, on every platform
            archive.writestr(entry, data)
    return SHEBANG + buffer.getvalue()
