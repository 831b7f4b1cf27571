"""
Users and groups: their names, and what the user database of the host has of one.
"""

from __future__ import annotations

import grp
import pwd
from pathlib import Path

from deploy.host.protocol import UserFacts


def user_name(uid: int) -> str:
    """
    Return the name of user *uid*; its number where it has no name.
    """
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """
    Return the name of group *gid*; its number where it has no name.
    """
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def read_user(etc: Path, name: str) -> UserFacts | None:
    """
    Return the local user *name* of the files in *etc*; None if there is none.

    Source: passwd(5), group(5), shadow(5).
    """
    entry = _rows(etc / "passwd", 7).get(name)
    if entry is None:
        return None
    groups = _rows(etc / "group", 4)
    own = [group for group, row in groups.items() if row[2] == entry[3]]
    # Without a row in shadow(5) no password is accepted.
    shadow = _rows(etc / "shadow", 9).get(name, ("", "!")) if entry[1] == "x" else entry
    return UserFacts(
        group=own[0] if own else entry[3],
        shell=entry[6],
        home=entry[5],
        groups=tuple(sorted(g for g, row in groups.items() if name in row[3].split(","))),
        is_locked=shadow[1].startswith(("!", "*")),
    )


def _rows(path: Path, columns: int) -> dict[str, tuple[str, ...]]:
    """
    Return the rows of a file of the user database by name; the first of a name counts.
    """
    try:
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return {}
    rows: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        row = tuple(line.split(":"))
        if len(row) == columns:
            rows.setdefault(row[0], row)
    return rows
