"""
Names of users and groups, by number.
"""

from __future__ import annotations

import grp
import pwd


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
