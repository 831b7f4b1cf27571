"""
Reads and opens plain files: never a pipe, which would wait for ever, or a device.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def read_plain_file(path: Path, most_bytes: int) -> bytes:
    """
    Return the content of *path*.

    Raises:
        OSError: It can't be read, is no plain file, or has more than *most_bytes*.
    """
    with open_plain_file(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"more than {most_bytes} bytes", str(path))
    return data


def open_plain_file(path: Path, *, follows_links: bool = True) -> BinaryIO:
    """
    Open *path* for reading.

    Args:
        follows_links: Else a link at the end of *path* can't be opened.

    Raises:
        OSError: It can't be opened, or is no plain file.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    descriptor = os.open(path, flags if follows_links else flags | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
