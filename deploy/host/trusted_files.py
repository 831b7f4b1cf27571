"""
Opens and reads files below a trusted directory: no link is followed, no pipe or device is opened.

Whoever may write below the directory can neither lead the host program to another file, nor make
it wait, nor fill its memory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

# Large enough for the manifest of a model in thousands of files.
MANIFEST_MAX = 16 << 20
SIGNATURE_MAX = 64 << 10
LIST_MAX = 16 << 20  # bytes of a list of files or prompts
STATE_FILE_MAX = 16 << 20  # far beyond every file in which the host program keeps its state
_CHUNK = 1 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

# Source: linux/openat2.h, and asm/unistd.h, where the number is the same on all architectures.
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08
_ABSENT = (errno.ENOSYS, errno.EPERM, errno.EINVAL)  # an old kernel, or a seccomp filter


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class Untrusted(OSError):
    """
    A file is not a plain file below its directory, or is larger than it may be.
    """


def open_below(root: Path, relative: str) -> int:
    """
    Return a descriptor of the plain file *relative* below the directory *root*, for reading.

    Links in *root* itself are followed, links below it are not.

    Raises:
        Untrusted: A component is a link or "..", or it is not a plain file.
        OSError: It is missing, or cannot be read.
    """
    parts = Path(relative).parts
    if not parts or Path(relative).is_absolute() or ".." in parts:
        raise Untrusted(errno.EXDEV, "it is not below its directory", f"{root}/{relative}")
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = _openat2(directory, relative)
        if descriptor is None:
            descriptor = _walk(directory, parts)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EXDEV, errno.ENXIO):
            raise Untrusted(error.errno, "it is a link or no file", f"{root}/{relative}") from None
        raise OSError(error.errno, error.strerror, f"{root}/{relative}") from None
    finally:
        os.close(directory)
    return _plain(descriptor, f"{root}/{relative}")


def open_plain(path: Path) -> int:
    """
    Return a descriptor of the plain file *path*, for reading; a link as last component is refused.
    """
    return open_regular(path, os.O_RDONLY)


def open_regular(path: Path, flags: int, mode: int = 0o600) -> int:
    """
    Return a descriptor of the plain file *path*, opened with *flags*; it waits for no pipe.

    Args:
        mode: Of a file that is made.

    Raises:
        Untrusted: It is a link or no file.
        OSError: It cannot be opened.
    """
    try:
        return _plain(os.open(path, flags | _FLAGS, mode), str(path))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise Untrusted(error.errno, "it is a link or no file", str(path)) from None
        raise


def read_below(root: Path, relative: str, max_bytes: int) -> bytes:
    """
    Return the content of the plain file *relative* below *root*.

    Raises:
        Untrusted: As for `open_below`, or it has more than *max_bytes*.
        OSError: As for `open_below`.
    """
    return _read(open_below(root, relative), f"{root}/{relative}", max_bytes)


def read_plain(path: Path, max_bytes: int = STATE_FILE_MAX) -> bytes:
    """
    Return the content of the plain file *path*; a link as last component is refused.

    Raises:
        Untrusted: It is a link or no file, or it has more than *max_bytes*.
        OSError: It is missing, or cannot be read.
    """
    return _read(open_plain(path), str(path), max_bytes)


def _openat2(directory: int, relative: str) -> int | None:
    """
    Open *relative* with openat2(2); None where the kernel or a filter does not offer it.
    """
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    how = _OpenHow(_FLAGS, 0, resolve)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(directory),
        ctypes.c_char_p(os.fsencode(relative)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if descriptor >= 0:
        return int(descriptor)
    number = ctypes.get_errno()
    if number in _ABSENT:
        return None
    raise OSError(number, os.strerror(number))


def _walk(directory: int, parts: tuple[str, ...]) -> int:
    """
    Open the components of *parts* one by one, without following a link.
    """
    held = os.dup(directory)
    try:
        for part in parts[:-1]:
            # O_DIRECTORY on a link fails with ENOTDIR; name it as what it is.
            if stat.S_ISLNK(os.stat(part, dir_fd=held, follow_symlinks=False).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            below = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=held)
            os.close(held)
            held = below
        return os.open(parts[-1], _FLAGS, dir_fd=held)
    finally:
        os.close(held)


def _read(descriptor: int, name: str, max_bytes: int) -> bytes:
    """
    Return the content of *descriptor*, which is closed.
    """
    try:
        content = bytearray()
        while chunk := os.read(descriptor, _CHUNK):
            content += chunk
            if len(content) > max_bytes:
                raise Untrusted(errno.EFBIG, f"it has more than {max_bytes} bytes", name)
        return bytes(content)
    finally:
        os.close(descriptor)


def _plain(descriptor: int, name: str) -> int:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Untrusted(errno.ENXIO, "it is not a plain file", name)
    return descriptor
