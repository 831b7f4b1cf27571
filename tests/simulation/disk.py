"""
A disk in memory that loses unsynced writes in a power cut.

`mounted` puts the disks of all hosts behind the functions of `os` while a world runs: the real host
program reads and writes them, and thousands of worlds a minute can be forked and hashed.  What a
file contains is on disk after fsync of the file; which names a directory has, after fsync of the
directory.  A function that this module does not stand in for reaches the real file system, where
the paths of simulated hosts do not exist.
"""

import builtins
import ctypes
import errno
import functools
import io
import itertools
import os
import stat
from contextlib import contextmanager

PREFIX = "/simulated/"  # every host has a disk at PREFIX + its name
_BLOCK = 4096
_FIRST_FD = 1 << 20
_SYS_OPENAT2 = 437

_disks = {}  # by root
_open = {}  # descriptor: _Open
_numbers = itertools.count(_FIRST_FD)


class Node:
    """
    A file, directory or link.

    Attributes:
        content: Bytes of a file, target of a link, nodes by name of a directory.
        allocated: Bytes of the disk that a file has.
        durable: What is left of `content` after a power cut; None: the node was never synced.
    """

    __slots__ = ("allocated", "content", "durable", "ino", "kind", "mode")

    def __init__(self, kind, content, mode, ino):
        self.kind, self.content, self.mode, self.ino = kind, content, mode, ino
        self.allocated = 0
        self.durable = None


class _Open:
    def __init__(self, disk, node, path):
        self.disk, self.node, self.path = disk, node, path
        self.offset = 0
        self.is_locked = False


class Disk:
    """
    The file system of one host.

    Attributes:
        free: Bytes that can still be allocated.
        is_gone: The host is off: every operation raises what `gone` returns.
        on_sync: Called with "before" or "after" and the path, at each fsync.
        syncs: False: fsync does nothing, as a mutant of the host program would have it.
    """

    def __init__(self, root):
        self.root = root
        self.free = 1 << 40
        self.is_gone = False
        self.gone = None
        self.on_sync = lambda when, path: None
        self._inos = itertools.count(2)
        self.top = self.node(_DIR, {}, 0o755)
        self.top.durable = {}
        _disks[root] = self

    def node(self, kind, content, mode):
        return Node(kind, content, mode, next(self._inos))

    def live(self):
        if self.is_gone:
            raise self.gone()
        return self

    # -- names

    def walk(self, parts, start=None, links=0):
        """
        Return (directory, last name, node or None) of *parts*, with links followed but the last.
        """
        if links > 20:
            raise _error(errno.ELOOP, "/".join(parts))
        here = start or self.top
        if not parts:
            return None, "", here
        for position, name in enumerate(parts):
            if here.kind is not _DIR:
                raise _error(errno.ENOTDIR, "/".join(parts))
            below = here.content.get(name)
            if position == len(parts) - 1:
                return here, name, below
            if below is None:
                raise _error(errno.ENOENT, f"{self.root}/{'/'.join(parts)}")
            if below.kind is _LINK:
                target = below.content
                if not target.startswith(f"{self.root}/"):
                    raise _error(errno.ENOENT, target)
                rest = target[len(self.root) + 1 :].split("/")
                return self.walk([*rest, *parts[position + 1 :]], links=links + 1)
            here = below
        raise AssertionError("unreachable")

    def find(self, parts, *, follow, start=None):
        _, _, node = self.walk(parts, start)
        if node is None:
            raise _error(errno.ENOENT, f"{self.root}/{'/'.join(parts)}")
        if follow and node.kind is _LINK:
            target = node.content
            if not target.startswith(f"{self.root}/"):
                raise _error(errno.ENOENT, target)
            return self.find(target[len(self.root) + 1 :].split("/"), follow=True)
        return node

    # -- space

    def allocate(self, node, size):
        need = -(-size // _BLOCK) * _BLOCK - node.allocated
        if need > 0:
            if need > self.free:
                raise _error(errno.ENOSPC, self.root)
            self.free -= need
            node.allocated += need

    def release(self, node, size=0):
        kept = -(-size // _BLOCK) * _BLOCK
        if node.allocated > kept:
            self.free += node.allocated - kept
            node.allocated = kept

    def new(self, directory, name, kind, content, mode):
        if self.free < _BLOCK:
            raise _error(errno.ENOSPC, name)
        node = directory.content[name] = self.node(kind, content, mode)
        return node

    # -- power

    def sync(self, node):
        node.durable = dict(node.content) if node.kind is _DIR else bytes(node.content)

    def sync_all(self):
        """
        Write everything to disk, as an orderly shutdown does.
        """
        for _, node in self.tree():
            if node.kind is not _LINK:
                self.sync(node)

    def cut(self, *, keeps_names=False):
        """
        Lose what was not synced.

        Args:
            keeps_names: Names are as they were and only contents are lost, as on a file system
                that writes its directories first.
        """
        _lose(self.top, keeps_names=keeps_names)

    def kept(self, node=None, *, keeps_names=False):
        """
        Return what `cut` would leave, to compare.
        """
        node = node or self.top
        if node.kind is _FILE:
            return hash(node.durable or b"")
        if node.kind is _LINK:
            return node.content
        names = node.content if keeps_names else node.durable or {}
        return [(n, self.kept(names[n], keeps_names=keeps_names)) for n in sorted(names)]

    def tree(self, node=None, path=""):
        """
        Yield (path, node) of everything there is.
        """
        node = node or self.top
        yield path, node
        if node.kind is _DIR:
            for name in sorted(node.content):
                yield from self.tree(node.content[name], f"{path}/{name}")


def _lose(node, *, keeps_names):
    if node.kind is _FILE:
        node.content = bytearray(node.durable or b"")
    elif node.kind is _DIR:
        if not keeps_names:
            node.content = dict(node.durable or {})
        for below in node.content.values():
            _lose(below, keeps_names=keeps_names)


_FILE, _DIR, _LINK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK


def _error(number, path):
    return OSError(number, os.strerror(number), str(path))


# -- the functions of os


def _is_here(path):
    try:
        text = os.fspath(path)
    except TypeError:
        return False
    return isinstance(text, str) and text.startswith(PREFIX)


def _locate(path, dir_fd=None):
    """
    Return (disk, start node, parts) of *path*.
    """
    text = os.fspath(path)
    if dir_fd is not None:
        opened = _open[dir_fd]
        return opened.disk.live(), opened.node, [p for p in text.split("/") if p and p != "."]
    root, parts = _split(text)
    try:
        disk = _disks[root]
    except KeyError:
        raise _error(errno.ENOENT, text) from None
    return disk.live(), None, parts


@functools.cache
def _split(text):
    """
    Return the root of the disk of a path, and the path's parts below it.
    """
    name, _, rest = text[len(PREFIX) :].partition("/")
    return PREFIX + name, [part for part in rest.split("/") if part and part != "."]


_OWNER = os.geteuid(), os.getegid()


def _status(node):
    size = len(node.content) if node.kind is not _DIR else _BLOCK
    row = (node.kind | node.mode, node.ino, 1, 1, *_OWNER, size, 0, 0, 0)
    return os.stat_result(row, {"st_blocks": node.allocated // 512, "st_mtime_ns": 0})


def _sim_stat(path, *, dir_fd=None, follow_symlinks=True):
    if isinstance(path, int):
        return _status(_open[path].node)
    disk, start, parts = _locate(path, dir_fd)
    return _status(disk.find(parts, follow=follow_symlinks, start=start))


def _sim_open(path, flags, mode=0o777, *, dir_fd=None):
    disk, start, parts = _locate(path, dir_fd)
    directory, name, node = disk.walk(parts, start)
    if node is not None and node.kind is _LINK:
        if flags & os.O_NOFOLLOW:
            raise _error(errno.ELOOP, path)
        node = disk.find(parts, follow=True, start=start)
    if node is None:
        if not flags & os.O_CREAT:
            raise _error(errno.ENOENT, path)
        node = disk.new(directory, name, _FILE, bytearray(), mode & 0o777)
    elif flags & os.O_CREAT and flags & os.O_EXCL:
        raise _error(errno.EEXIST, path)
    if flags & os.O_DIRECTORY and node.kind is not _DIR:
        raise _error(errno.ENOTDIR, path)
    if flags & os.O_TRUNC and node.kind is _FILE:
        node.content = bytearray()
        disk.release(node)
    number = next(_numbers)
    opened = _open[number] = _Open(disk, node, str(path))
    if flags & os.O_APPEND:
        opened.offset = -1
    return number


def _sim_close(descriptor):
    _open.pop(descriptor, None)


def _sim_dup(descriptor):
    number = next(_numbers)
    opened = _open[descriptor]
    _open[number] = _Open(opened.disk, opened.node, opened.path)
    return number


def _sim_read(descriptor, size):
    opened = _opened(descriptor)
    data = bytes(opened.node.content[opened.offset : opened.offset + size])
    opened.offset += len(data)
    return data


def _sim_pread(descriptor, size, offset):
    return bytes(_opened(descriptor).node.content[offset : offset + size])


def _sim_write(descriptor, data):
    opened = _opened(descriptor)
    at = len(opened.node.content) if opened.offset < 0 else opened.offset
    count = _sim_pwrite(descriptor, data, at)
    if opened.offset >= 0:
        opened.offset += count
    return count


def _sim_pwrite(descriptor, data, offset):
    opened = _opened(descriptor)
    node, data = opened.node, bytes(data)
    opened.disk.allocate(node, offset + len(data))
    if len(node.content) < offset:
        node.content.extend(bytes(offset - len(node.content)))
    node.content[offset : offset + len(data)] = data
    return len(data)


def _sim_ftruncate(descriptor, size):
    opened = _opened(descriptor)
    _truncate(opened.disk, opened.node, size)


def _sim_truncate(path, size):
    if isinstance(path, int):
        return _sim_ftruncate(path, size)
    disk, start, parts = _locate(path)
    node = disk.find(parts, follow=True, start=start)
    return _truncate(disk, node, size)


def _truncate(disk, node, size):
    if size < len(node.content):
        del node.content[size:]
        disk.release(node, size)
    else:
        node.content.extend(bytes(size - len(node.content)))


def _sim_fsync(descriptor):
    opened = _opened(descriptor)
    opened.disk.on_sync("before", opened.path)
    opened.disk.live().sync(opened.node)
    opened.disk.on_sync("after", opened.path)


def _sim_fallocate(descriptor, offset, size):
    opened = _opened(descriptor)
    opened.disk.allocate(opened.node, offset + size)
    if len(opened.node.content) < offset + size:
        opened.node.content.extend(bytes(offset + size - len(opened.node.content)))


def _sim_replace(source, target):
    disk, start, parts = _locate(source)
    from_directory, from_name, node = disk.walk(parts, start)
    if node is None:
        raise _error(errno.ENOENT, source)
    to_directory, to_name, old = disk.walk(_locate(target)[2])
    if old is not None and old is not node:
        if old.kind is _DIR and old.content:
            raise _error(errno.ENOTEMPTY, target)
        if old.kind is _FILE:
            disk.release(old)
    del from_directory.content[from_name]
    to_directory.content[to_name] = node


def _exchange(one, other):
    disk, _, parts = _locate(one)
    directory, name, node = disk.walk(parts)
    other_directory, other_name, other_node = disk.walk(_locate(other)[2])
    if node is None or other_node is None:
        return -1
    directory.content[name], other_directory.content[other_name] = other_node, node
    return 0


def _sim_unlink(path, *, dir_fd=None):
    disk, start, parts = _locate(path, dir_fd)
    directory, name, node = disk.walk(parts, start)
    if node is None:
        raise _error(errno.ENOENT, path)
    if node.kind is _DIR:
        raise _error(errno.EISDIR, path)
    del directory.content[name]
    if node.kind is _FILE:
        disk.release(node)


def _sim_rmdir(path, *, dir_fd=None):
    disk, start, parts = _locate(path, dir_fd)
    directory, name, node = disk.walk(parts, start)
    if node is None:
        raise _error(errno.ENOENT, path)
    if node.content:
        raise _error(errno.ENOTEMPTY, path)
    del directory.content[name]


def _sim_mkdir(path, mode=0o777, *, dir_fd=None):
    disk, start, parts = _locate(path, dir_fd)
    directory, name, node = disk.walk(parts, start)
    if node is not None:
        raise _error(errno.EEXIST, path)
    # Made by provisioning on a real host, long before a power cut.
    new = disk.new(directory, name, _DIR, {}, mode)
    new.durable = {}


def _sim_symlink(target, path, target_is_directory=False, *, dir_fd=None):
    disk, start, parts = _locate(path, dir_fd)
    directory, name, node = disk.walk(parts, start)
    if node is not None:
        raise _error(errno.EEXIST, path)
    disk.new(directory, name, _LINK, os.fspath(target), 0o777)


def _sim_readlink(path, *, dir_fd=None):
    disk, start, parts = _locate(path, dir_fd)
    node = disk.find(parts, follow=False, start=start)
    if node.kind is not _LINK:
        raise _error(errno.EINVAL, path)
    return node.content


def _sim_listdir(path="."):
    node = _open[path].node if isinstance(path, int) else _directory(path)
    return sorted(node.content)


class _Entry:
    def __init__(self, parent, name, node):
        self.name, self._node = name, node
        self.path = f"{parent}/{name}"

    def is_dir(self, *, follow_symlinks=True):
        return self._node.kind is _DIR

    def is_file(self, *, follow_symlinks=True):
        return self._node.kind is _FILE

    def is_symlink(self):
        return self._node.kind is _LINK

    def stat(self, *, follow_symlinks=True):
        return _status(self._node)


@contextmanager
def _sim_scandir(path="."):
    node = _open[path].node if isinstance(path, int) else _directory(path)
    parent = "" if isinstance(path, int) else os.fspath(path)
    yield iter([_Entry(parent, name, below) for name, below in sorted(node.content.items())])


def _directory(path):
    disk, start, parts = _locate(path)
    node = disk.find(parts, follow=True, start=start)
    if node.kind is not _DIR:
        raise _error(errno.ENOTDIR, path)
    return node


def _sim_chmod(path, mode, *, dir_fd=None, follow_symlinks=True):
    if isinstance(path, int):
        _open[path].node.mode = mode
        return
    disk, start, parts = _locate(path, dir_fd)
    disk.find(parts, follow=True, start=start).mode = mode


def _sim_chown(path, uid, gid, *, dir_fd=None, follow_symlinks=True):
    if not isinstance(path, int):
        _locate(path, dir_fd)


def _sim_access(path, mode, *, dir_fd=None, effective_ids=False, follow_symlinks=True):
    try:
        _sim_stat(path, dir_fd=dir_fd)
    except OSError:
        return False
    return True


def _opened(descriptor):
    opened = _open[descriptor]
    opened.disk.live()
    return opened


class _Raw(io.RawIOBase):
    def __init__(self, descriptor, mode):
        self._descriptor, self._mode = descriptor, mode

    def fileno(self):
        return self._descriptor

    def readable(self):
        return "r" in self._mode or "+" in self._mode

    def writable(self):
        return "r" not in self._mode or "+" in self._mode

    def readinto(self, buffer):
        data = _sim_read(self._descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self):
        opened = _opened(self._descriptor)
        return _sim_read(self._descriptor, len(opened.node.content))

    def write(self, data):
        return _sim_write(self._descriptor, data)

    def close(self):
        if not self.closed:
            _sim_close(self._descriptor)
        super().close()


def _file(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **_):
    if isinstance(file, int):
        descriptor = file
    else:
        flags = os.O_RDONLY if "r" in mode else os.O_WRONLY | os.O_CREAT
        flags |= os.O_TRUNC if "w" in mode else os.O_APPEND if "a" in mode else 0
        flags |= os.O_EXCL if "x" in mode else 0
        descriptor = _sim_open(file, flags, 0o644)
        if _open[descriptor].node.kind is _DIR:
            raise _error(errno.EISDIR, file)
    raw = _Raw(descriptor, mode)
    if buffering == 0:
        return raw
    buffered = io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8")


class _Libc:
    """
    What the host program calls in libc by ctypes.
    """

    def __init__(self, real):
        self._real = real

    def __getattr__(self, name):
        return getattr(self._real, name)

    def renameat2(self, from_fd, source, to_fd, target, flags):
        source, target = os.fsdecode(source), os.fsdecode(target)
        if not _is_here(source):
            return self._real.renameat2(from_fd, os.fsencode(source), to_fd, target, flags)
        assert flags == 2, "RENAME_EXCHANGE"
        return _exchange(source, target)

    def fallocate(self, descriptor, mode, offset, size):
        offset, size = getattr(offset, "value", offset), getattr(size, "value", size)
        opened = _opened(descriptor)
        try:
            opened.disk.allocate(opened.node, offset + size)
        except OSError:
            return -1
        return 0

    def syncfs(self, descriptor):
        _opened(descriptor).disk.sync_all()
        return 0

    def syscall(self, number, directory, relative, *rest):
        assert number.value == _SYS_OPENAT2, number
        opened = _opened(directory.value)
        parts = os.fsdecode(relative.value).split("/")
        try:
            if opened.disk.find(parts, follow=False, start=opened.node).kind is _LINK:
                raise _error(errno.ELOOP, relative.value)
            return _sim_open("/".join(parts), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory.value)
        except OSError as error:
            ctypes.set_errno(error.errno)
            return -1


_BY_PATH = {
    "stat": _sim_stat,
    "open": _sim_open,
    "truncate": _sim_truncate,
    "replace": _sim_replace,
    "rename": _sim_replace,
    "unlink": _sim_unlink,
    "remove": _sim_unlink,
    "rmdir": _sim_rmdir,
    "mkdir": _sim_mkdir,
    "readlink": _sim_readlink,
    "listdir": _sim_listdir,
    "scandir": _sim_scandir,
    "chmod": _sim_chmod,
    "chown": _sim_chown,
    "access": _sim_access,
}
_BY_DESCRIPTOR = {
    "close": _sim_close,
    "dup": _sim_dup,
    "read": _sim_read,
    "pread": _sim_pread,
    "write": _sim_write,
    "pwrite": _sim_pwrite,
    "ftruncate": _sim_ftruncate,
    "fsync": _sim_fsync,
    "fdatasync": _sim_fsync,
    "posix_fallocate": _sim_fallocate,
    "fstat": _sim_stat,
    "fchmod": _sim_chmod,
    "fchown": _sim_chown,
}


@contextmanager
def mounted():
    """
    Let `os` and `io` reach the disks of simulated hosts; the disks are gone afterwards.
    """
    replaced = []

    def put(module, name, new):
        replaced.append((module, name, getattr(module, name)))
        setattr(module, name, new)

    real_open, real_libc = io.open, ctypes.CDLL

    def open_file(file, *words, **options):
        is_ours = file >= _FIRST_FD if isinstance(file, int) else _is_here(file)
        return (_file if is_ours else real_open)(file, *words, **options)

    try:
        for name, ours in _BY_PATH.items():
            put(os, name, _either(getattr(os, name), ours))
        real_lstat, real_symlink = os.lstat, os.symlink
        put(
            os,
            "lstat",
            lambda path, *, dir_fd=None: (
                _sim_stat(path, dir_fd=dir_fd, follow_symlinks=False)
                if _is_here(path) or (dir_fd or 0) >= _FIRST_FD
                else real_lstat(path, dir_fd=dir_fd)
            ),
        )
        put(
            os,
            "symlink",
            lambda target, path, *words, **options: (
                _sim_symlink if _is_here(path) else real_symlink
            )(target, path, *words, **options),
        )
        for name, ours in _BY_DESCRIPTOR.items():
            put(os, name, _either(getattr(os, name), ours))
        put(io, "open", open_file)
        put(builtins, "open", open_file)
        libc = _Libc(real_libc(None, use_errno=True))
        put(ctypes, "CDLL", lambda name=None, *words, **options: libc)
        yield
    finally:
        for module, name, old in reversed(replaced):
            setattr(module, name, old)
        _disks.clear()
        _open.clear()


def _either(real, ours):
    def chosen(path, *words, **options):
        if isinstance(path, int):
            is_ours = path >= _FIRST_FD
        else:
            is_ours = (options.get("dir_fd") or 0) >= _FIRST_FD or _is_here(path)
        return (ours if is_ours else real)(path, *words, **options)

    return chosen
