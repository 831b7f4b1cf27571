"""
The verb `facts`: what provisioning compares with the wanted state.  Changes nothing.

Needs nothing on the host but Python: it also runs before the host program is installed.
"""

from __future__ import annotations

import base64
import glob
import hashlib
import hmac
import os
import re
import stat
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from deploy.host import tree
from deploy.host.accounts import group_name, read_user, user_name
from deploy.host.background import Background
from deploy.host.conffiles import untouched
from deploy.host.deadman import pending
from deploy.host.disk import free_bytes
from deploy.host.immutable import immutable_paths
from deploy.host.interpreter import python_problem
from deploy.host.lease import Leases
from deploy.host.protocol import (
    Call,
    ErrorKind,
    FactQuery,
    Facts,
    GpuHost,
    HostError,
    Listener,
    PathFacts,
    Simulation,
    UnitFacts,
    VenvFacts,
)
from deploy.host.reboot_reasons import reasons
from deploy.host.system import System
from deploy.host.text import one_line
from deploy.host.torch_mark import read_mark

TEXT_MAX_BYTES = 64 * 1024
ALTERED_MAX = 20  # names of altered files in an answer
_CHUNK = 1 << 20
_PROGRAM_TIMEOUT_S = 20.0
_TYPES = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "directory"), (stat.S_ISLNK, "link"))


def run(system: System, call: Call, query: FactQuery) -> Facts:
    """
    Return the facts that *query* asks for.

    Raises:
        HostError: dpkg-query or systemctl failed.
    """
    # dpkg and systemd answer while this process looks at files.
    packages = Background(partial(_packages, system, query.packages))
    units = Background(partial(_units, system, query.units))
    os_release = _os_release(system)
    return Facts(
        paths={
            **{path: _path(_at(system, path), sha256) for path, sha256 in query.paths.items()},
            **{
                path: _secret(_at(system, path), key, path in query.certificates)
                for path, key in query.secrets.items()
            },
        },
        immutable=immutable_paths(system.layout.root, (*query.paths, *query.secrets)),
        users={name: read_user(_at(system, "/etc"), name) for name in query.users},
        listings={path: _listing(_at(system, path)) for path in query.listings},
        listeners=_listeners(system, query.port) if query.port else (),
        room={path: free_bytes(system, _at(system, path)) for path in query.room},
        haproxy=_haproxy(system) if query.haproxy else None,
        lease=Leases(system).status(),
        pending=pending.status(system),
        reboot_reasons=reasons(system),
        pythons=_pythons(system),
        machine=os.uname().machine,
        os_id=os_release.get("ID", ""),
        codename=os_release.get("VERSION_CODENAME", ""),
        has_apt=_at(system, "/usr/bin/apt-get").exists(),
        driver=_first_line(_at(system, "/sys/module/nvidia/version")),
        untouched=untouched(system.layout.root, query.conffiles),
        venvs={path: _venv(system, _at(system, path), query.deep) for path in query.venvs},
        packages=packages.result(),
        units=units.result(),
        gpus=_gpus(system),
        gpu_count=len(_gpu_folders(system)),
        gpu_modules=_gpu_modules(system),
        nvswitch=any(_at(system, "/proc/driver/nvidia-nvswitch/devices").glob("*")),
        uvm=_at(system, "/sys/module/nvidia_uvm").is_dir(),
        gpu=_gpu(system) if query.gpu else None,
        simulation=_simulation(system, query) if query.install else None,
    )


def _gpu(system: System) -> GpuHost:
    from deploy.host.gpu_facts import read_gpu_host

    return read_gpu_host(system)


def _simulation(system: System, query: FactQuery) -> Simulation:
    from deploy.host.apt_simulation import simulate

    return simulate(system, query.install, query.pins)


def _at(system: System, path: str) -> Path:
    return Path(system.layout.root) / path.lstrip("/")


def _secret(path: Path, key: str, is_certificate: bool) -> PathFacts | None:
    facts = _path(path, "")
    if facts is None or facts.type != "file":
        return facts
    mac = hmac.new(bytes.fromhex(key), path.read_bytes(), hashlib.sha256).hexdigest()
    return replace(facts, mac=mac, certificate=_certificate(path) if is_certificate else None)


def _certificate(path: Path) -> str | None:
    from deploy.host import tls

    try:
        return base64.b64encode(tls.check_file(path)).decode()
    except (OSError, ValueError):
        return None


def _path(path: Path, sha256: str) -> PathFacts | None:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    type_ = next((name for is_type, name in _TYPES if is_type(status.st_mode)), "other")
    own_sha256 = text = None
    if sha256 and type_ == "file":
        own_sha256 = _sha256(path)
        if own_sha256 != sha256 and status.st_size <= TEXT_MAX_BYTES:
            text = path.read_bytes()[: TEXT_MAX_BYTES + 1].decode("utf-8", "replace")
    return PathFacts(
        type=type_,
        mode=f"{stat.S_IMODE(status.st_mode):04o}",
        owner=user_name(status.st_uid),
        group=group_name(status.st_gid),
        size=status.st_size,
        target=str(path.readlink()) if type_ == "link" else None,
        sha256=own_sha256,
        text=text,
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _venv(system: System, path: Path, deep: bool) -> VenvFacts | None:
    if not path.is_dir():
        return None
    altered, mark = tree.compare(path, deep=deep), read_mark(path, system.boot_id())
    # The link to its Python is followed where it is the one that was made.
    python = path / "bin" / "python"
    is_as_built = altered.is_recorded and not altered.names and os.path.lexists(python)
    return VenvFacts(
        is_recorded=altered.is_recorded,
        altered=altered.names[:ALTERED_MAX],
        altered_count=len(altered.names),
        problem=python_problem(system, python) if is_as_built else None,
        uncompared=mark is not None and mark.is_due,
        full_gpus=mark.full_gpus if mark else (),
    )


def _packages(system: System, names: Sequence[str]) -> dict[str, str | None]:
    versions: dict[str, str | None] = dict.fromkeys(names)
    if names and _at(system, "/usr/bin/dpkg-query").exists():
        columns = "${Package}\t${db:Status-Status}\t${Version}\n"
        # Exits 1 when it does not know one of the names, and prints the others.
        found = _output(system, ["dpkg-query", "-W", "-f", columns, *names], accepted=(0, 1))
        for line in found.splitlines():
            name, status, version = line.split("\t")
            if status == "installed":
                versions[name] = version
    return versions


def _units(system: System, names: Sequence[str]) -> dict[str, UnitFacts]:
    if not names:
        return {}
    keys = "Id,LoadState,ActiveState,UnitFileState,NeedDaemonReload,FragmentPath,DropInPaths"
    units = {}
    text = _output(system, ["systemctl", "show", "-p", keys, *names])
    for block in text.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        try:
            units[values["Id"]] = UnitFacts(
                load=values["LoadState"],
                active=values["ActiveState"],
                enabled=values["UnitFileState"],
                stale=values["NeedDaemonReload"] == "yes",
                fragment=values.get("FragmentPath", ""),
                drop_ins=tuple(values.get("DropInPaths", "").split()),
            )
        except KeyError as missing:
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                "the output of systemctl show cannot be read",
                f"it lacks {missing}: {one_line(block)[:200] or 'it is empty'}",
                "run it on the host: systemctl show",
            ) from None
    absent = UnitFacts(load="not-found", active="inactive", enabled="", stale=False)
    return {name: units.get(name, absent) for name in names}


def _listing(directory: Path) -> dict[str, int]:
    try:
        return {entry.name: entry.stat().st_size for entry in os.scandir(directory)}
    except FileNotFoundError:
        return {}


def _listeners(system: System, port: int) -> tuple[Listener, ...]:
    inodes = set()
    for table in (_at(system, "/proc/net/tcp"), _at(system, "/proc/net/tcp6")):
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            # Column 1 is ADDRESS:PORT in hexadecimal, 3 the state (0A: LISTEN), 9 the inode.
            row = line.split()
            if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{row[9]}]")
    programs = {}
    pattern = f"{glob.escape(str(_at(system, '/proc')))}/[0-9]*/fd/*"
    for link in glob.glob(pattern) if inodes else ():  # noqa: PTH207 - much faster
        try:
            if os.readlink(link) in inodes:  # noqa: PTH115
                process = Path(link).parents[1]
                programs[int(process.name)] = _first_line(process / "comm") or "?"
        except OSError:
            continue  # the process or its descriptor has gone meanwhile
    if inodes and not programs:
        programs[0] = "?"  # a process of another namespace, which /proc does not show
    return tuple(Listener(program, pid) for pid, program in sorted(programs.items()))


def _haproxy(system: System) -> str | None:
    try:
        info = system.haproxy("show info")
    except OSError:
        return None
    match = re.search(r"^description: (.*)$", info, re.MULTILINE)
    return match[1] if match else ""


def _pythons(system: System) -> tuple[str, ...]:
    names = (path.name for path in _at(system, "/usr/bin").glob("python3.*"))
    matches = (re.fullmatch(r"python(3\.\d+)", name) for name in names)
    return tuple(sorted({match[1] for match in matches if match}))


def _gpus(system: System) -> tuple[str, ...]:
    # Not nvidia-smi: it may hang on a broken driver.
    models = set()
    for folder in _gpu_folders(system):
        model = (_first_line(folder / "information") or "").partition("Model:")[2].strip()
        if model:
            models.add(model)
    return tuple(sorted(models))


def _gpu_folders(system: System) -> tuple[Path, ...]:
    return tuple(_at(system, "/proc/driver/nvidia/gpus").glob("*"))


def _gpu_modules(system: System) -> str | None:
    line = _first_line(_at(system, "/proc/driver/nvidia/version"))
    if line is None or "NVRM version:" not in line:
        return None
    return "open" if "Open Kernel Module" in line else "proprietary"


def _os_release(system: System) -> dict[str, str]:
    try:
        lines = _at(system, "/etc/os-release").read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return {}
    parts = (line.partition("=") for line in lines)
    return {key: value.strip('"') for key, _, value in parts}


def _first_line(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:  # a name may be any bytes
            return file.readline().strip() or None
    except OSError:
        return None


def _output(system: System, argv: list[str], accepted: Collection[int] = (0,)) -> str:
    result = system.run(argv, timeout_s=_PROGRAM_TIMEOUT_S)
    if result.returncode not in accepted:
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            f"{argv[0]} failed",
            f"exit status {result.returncode}: {one_line(result.stderr) or 'no output'}",
            f"run it on the host: {' '.join(argv[:3])}",
        )
    return result.stdout
