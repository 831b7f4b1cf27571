"""
Looks at a host once and prints what it found as one line of JSON.  Changes nothing.

Sent over standard input, because it is needed before anything is installed; the question is
appended as a call of `main`.  What it answers is `deploy.provision.seen.Seen`.
"""

from __future__ import annotations

import glob
import grp
import hashlib
import json
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TEXT_MAX = 64 * 1024


def main(question: str) -> None:
    sys.stdout.write(json.dumps(look(json.loads(question))) + "\n")


def look(question: dict[str, Any]) -> dict[str, Any]:
    """
    Answer a `deploy.provision.seen.Question`.
    """
    secret = set(question["secret"])
    release = os_release()
    return {
        "paths": {p: path(Path(p), want, p in secret) for p, want in question["paths"].items()},
        "packages": packages(question["packages"]),
        "users": {name: user(name) for name in question["users"]},
        "units": units(question["units"]),
        "listings": {folder: listing(folder) for folder in question["listings"]},
        "listeners": listeners(question["port"]) if question["port"] else [],
        "room": {p: room(Path(p)) for p in question["room"]},
        "haproxy": haproxy(question["haproxy_socket"]),
        "lease": lease(question["lease"]),
        "pythons": pythons(),
        "machine": os.uname().machine,
        "os_id": release.get("ID", ""),
        "codename": release.get("VERSION_CODENAME", ""),
        "has_apt": Path("/usr/bin/apt-get").exists(),
        "driver": first_line("/sys/module/nvidia/version"),
    }


def path(name: Path, want: str, is_secret: bool) -> dict[str, Any] | None:
    try:
        found = name.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    kinds = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "directory"), (stat.S_ISLNK, "link"))
    kind = next((word for test, word in kinds if test(found.st_mode)), "other")
    answer: dict[str, Any] = {
        "type": kind,
        "mode": f"{stat.S_IMODE(found.st_mode):04o}",
        "owner": owner(found.st_uid),
        "group": group(found.st_gid),
        "size": found.st_size,
        "target": str(name.readlink()) if kind == "link" else None,
    }
    if want and kind == "file":
        content = name.read_bytes()
        answer["sha256"] = hashlib.sha256(content).hexdigest()
        if answer["sha256"] != want and not is_secret and len(content) <= TEXT_MAX:
            answer["text"] = content.decode("utf-8", "replace")
    return answer


def owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def packages(names: list[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(names)
    if names and Path("/usr/bin/dpkg-query").exists():
        shown = "${Package}\t${db:Status-Status}\t${Version}\n"
        for line in said(["dpkg-query", "-W", "-f", shown, *names]).splitlines():
            name, status, version = line.split("\t")
            if status == "installed":
                found[name] = version
    return found


def user(name: str) -> dict[str, str] | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return {"group": group(entry.pw_gid), "shell": entry.pw_shell, "home": entry.pw_dir}


def units(names: list[str]) -> dict[str, Any]:
    if not names:
        return {}
    keys = "Id,LoadState,ActiveState,UnitFileState,NeedDaemonReload"
    found = {}
    for block in said(["systemctl", "show", "-p", keys, *names]).strip().split("\n\n"):
        shown = dict(line.split("=", 1) for line in block.splitlines())
        found[shown["Id"]] = {
            "load": shown["LoadState"],
            "active": shown["ActiveState"],
            "enabled": shown["UnitFileState"],
            "stale": shown["NeedDaemonReload"] == "yes",
        }
    absent = {"load": "not-found", "active": "inactive", "enabled": "", "stale": False}
    return {name: found.get(name, absent) for name in names}


def listing(folder: str) -> dict[str, int]:
    try:
        return {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    except FileNotFoundError:
        return {}


def listeners(port: int) -> list[dict[str, Any]]:
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            # Column 1 is ADDRESS:PORT in hexadecimal, 3 the state (0A: LISTEN), 9 the inode.
            row = line.split()
            if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{row[9]}]")
    found = {}
    for link in glob.glob("/proc/[0-9]*/fd/*") if inodes else ():  # noqa: PTH207 - much faster
        try:
            if os.readlink(link) in inodes:  # noqa: PTH115
                pid = int(link.split("/")[2])
                found[pid] = first_line(f"/proc/{pid}/comm") or "?"
        except OSError:
            continue  # the process or its descriptor went away meanwhile
    if inodes and not found:
        found[0] = "?"  # of another namespace: it can be seen to listen, not who it is
    return [{"program": program, "pid": pid} for pid, program in sorted(found.items())]


def room(name: Path) -> int:
    while not name.exists():
        name = name.parent
    free = os.statvfs(name)
    return free.f_bavail * free.f_frsize


def haproxy(address: str | None) -> str | None:
    if not address or not Path(address).exists():
        return None
    try:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(2)
            link.connect(address)
            link.sendall(b"show info\n")
            answer = b"".join(iter(lambda: link.recv(65536), b"")).decode()
    except OSError:
        return None
    match = re.search(r"^description: (.*)$", answer, re.MULTILINE)
    return match[1] if match else ""


def lease(name: str | None) -> dict[str, Any] | None:
    if not name:
        return None
    try:
        found = json.loads(Path(name).read_bytes())
        # Ends with the clock that counts from boot, and with the boot that it was given in.
        left_s = found["expires_steady_s"] - time.clock_gettime(time.CLOCK_BOOTTIME)
        same_boot = found["boot_id"] == first_line("/proc/sys/kernel/random/boot_id")
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if left_s <= 0 or not same_boot or not found.get("owner"):
        return None
    return {"owner": str(found["owner"]), "release": found.get("release"), "left_s": left_s}


def pythons() -> list[str]:
    names = (found.name for found in Path("/usr/bin").glob("python3.*"))
    matches = (re.fullmatch(r"python(3\.\d+)", name) for name in names)
    return sorted({match[1] for match in matches if match})


def os_release() -> dict[str, str]:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except FileNotFoundError:
        return {}
    parts = (line.partition("=") for line in lines)
    return {key: value.strip('"') for key, _, value in parts}


def first_line(name: str) -> str | None:
    try:
        with Path(name).open() as file:
            return file.readline().strip() or None
    except OSError:
        return None


def said(argv: list[str]) -> str:
    # dpkg-query exits 1 when one of the names is unknown; what it knows it still says.
    done = subprocess.run(argv, capture_output=True, check=False)
    if done.returncode > 1:
        sys.exit(f"{argv[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode()
