"""
Finds secrets on a host where no secret may be: its journal, its processes, its files.

Standard library only: tests send its text to a host, `python3 -I -c TEXT CONFIG`.  CONFIG is the
arguments of `search` as JSON in hex: the command line of the search has no secret in the clear.
"""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

PIECE = 1 << 20  # bytes that are read at once
JOURNAL = ["journalctl", "--no-pager", "--quiet", "--all", "--output=export"]


def search(secrets, roots, since_s, *, root="/", journal=None):
    """
    Return where the *secrets* are: sorted (name, kind, place).

    Kinds are journal, cmdline, environ and file.

    Args:
        secrets: By name: {"text": ...}, which may be nowhere, or {"file": ...}, the content of a
            file, which may be in that file alone.
        roots: Directories of the files to read.
        since_s: Files that were not changed since then, in seconds since 1970, are not read.
        root: Prefix of all paths, /proc included.
        journal: Its text; None for that of this host.
    """
    needles, allowed = {}, {}
    for name, secret in secrets.items():
        if "text" in secret:
            needles[name] = secret["text"].encode()
        else:
            allowed[name] = _at(root, secret["file"])
            needles[name] = allowed[name].read_bytes().strip()
    assert all(needles.values()), "an empty secret is everywhere"
    if journal is None:
        journal = subprocess.run(JOURNAL, stdout=subprocess.PIPE, check=True).stdout
    found = {(name, "journal", "journal") for name in needles if needles[name] in journal}
    for process in _at(root, "proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            for kind in ("cmdline", "environ"):
                names = _names_in(process / kind, needles)
                found |= {(name, kind, str(process / kind)) for name in names}
    for path in _files(root, roots, since_s):
        names = [name for name in _names_in(path, needles) if allowed.get(name) != path]
        found |= {(name, "file", str(path)) for name in names}
    return sorted(found)


def _at(root, path):
    return Path(root) / str(path).lstrip("/")


def _files(root, roots, since_s):
    """
    Yield the plain files below *roots* that changed since *since_s*; no link is followed.
    """
    for top in roots:
        for directory, _, names in os.walk(_at(root, top)):
            for name in names:
                path = Path(directory) / name
                try:
                    state = path.lstat()
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(state.st_mode) and state.st_ctime >= since_s:
                    yield path


def _names_in(path, needles):
    """
    Return the names of the *needles* in a file; none for one that is gone.
    """
    longest = max(map(len, needles.values()))
    names, kept = set(), b""
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                text = kept + piece
                names |= {name for name, needle in needles.items() if needle in text}
                kept = text[-longest:]
    except (FileNotFoundError, ProcessLookupError):
        pass  # the process or the file ended meanwhile
    except PermissionError:
        if path.name != "environ":  # one that root may not read is no other user's to read
            raise
    return names


if __name__ == "__main__":
    config = json.loads(bytes.fromhex(sys.argv[1]))
    json.dump(search(**config), sys.stdout)
