"""
Records what this process does to the world: processes, files and sockets.
"""

import contextlib
import os
import sys
import threading

_recorders = {}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENTS = frozenset({
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "os.forkpty", "pty.spawn", "socket.connect", "socket.bind", "socket.getaddrinfo",
    "socket.gethostbyname", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link",
    "os.symlink", "os.chmod", "os.chown", "os.truncate", "os.utime", "os.putenv", "os.unsetenv",
    "shutil.copyfile", "shutil.move", "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp",
    "ctypes.dlopen", "os.kill", "signal.pthread_kill", "exec",
})  # fmt: skip


@contextlib.contextmanager
def traced():
    """
    Yield the events of this thread: (event, arguments, whether it changes or leaves something).
    """
    events = _recorders[threading.get_ident()] = []
    try:
        yield events
    finally:
        del _recorders[threading.get_ident()]


def effects(events):
    """
    Return the events that change something or leave this process.
    """
    return [e for e in events if e[0] != "open" or e[2]]


def _hook(event, args):
    events = _recorders.get(threading.get_ident())
    if events is None:
        return
    if event == "open":
        path, mode, flags = args
        is_write = bool(flags & _WRITES) or any(c in (mode or "") for c in "wax+")
        events.append(("open", str(path), is_write))
    elif event in _EVENTS:
        events.append((event, repr(args)[:200], True))


sys.addaudithook(_hook)  # it cannot be removed; it does nothing outside `traced`
