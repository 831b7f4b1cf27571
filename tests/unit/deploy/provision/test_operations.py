"""
The commands that place files, run by the same shell as on hosts.
"""

import getpass
import grp
import hashlib
import os
import signal
import socket
import stat
import subprocess
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from deploy.errors import DiskTooSmall
from deploy.host import layout
from deploy.host.protocol import ErrorKind, HostError, VenvBuilt
from deploy.host.rpc import encode_error, encode_result, parse_request
from deploy.provision import operations
from deploy.provision.resources import File, Upload, Venv
from deploy.provision.slot_resources import Reserve, Socket
from deploy.transport.base import Completed
from deploy.transport.client import HostClient
from tests.unit.deploy.provision.builders import bare, make_resources

USER, GROUP = getpass.getuser(), grp.getgrgid(os.getgid()).gr_name


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def make_file(path, content=b"secret\n", **changes):
    kind = {"owner": USER, "group": GROUP, "mode": "0600", "mac_key": "c" * 64}
    return File(path=str(path), content=content, **kind | changes)


def command_of(generator):
    [command] = generator
    stdin = b"".join(command.connector_arguments["_stdin"])
    return command.get_raw_value(), stdin


def run(script, stdin):
    return subprocess.run(["sh", "-c", script], input=stdin, capture_output=True, check=False)


def place(spec):
    return run(*command_of(operations.place._inner(spec)))


def test_a_file_is_placed_with_its_mode(tmp_path):
    """
    Content, owner and mode are right, and the directory has no other file.
    """
    path = tmp_path / "environment"
    assert place(make_file(path)).returncode == 0
    assert path.read_bytes() == b"secret\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names_in(tmp_path) == ["environment"]


def test_leftovers_of_a_crash_are_removed(tmp_path):
    """
    A partial secret of a killed try does not remain.
    """
    (tmp_path / ".environment.abcdEFGH").write_bytes(b"half")
    (tmp_path / ".environment.keep").write_bytes(b"not ours")
    assert place(make_file(tmp_path / "environment")).returncode == 0
    assert names_in(tmp_path) == [".environment.keep", "environment"]


def test_odd_names_are_quoted(tmp_path):
    """
    A path may have any characters.
    """
    path = tmp_path / "it's $(a) file"
    assert place(make_file(path)).returncode == 0
    assert path.read_bytes() == b"secret\n"


def test_nothing_of_a_secret_is_in_the_command(tmp_path):
    """
    All users of the host see command lines; they have neither the content nor its hash.
    """
    spec = make_file(tmp_path / "environment", b"TOKEN=hunter2\n")
    [command] = operations.place._inner(spec)
    shown = command.get_raw_value() + repr(command) + repr(command.connector_arguments)
    assert "hunter2" not in shown
    assert spec.sha256 not in shown


def test_a_connection_that_ends_early_leaves_the_old_file(tmp_path):
    """
    A partial file never replaces a complete one.
    """
    path = tmp_path / "environment"
    path.write_bytes(b"old\n")
    script, stdin = command_of(operations.place._inner(make_file(path)))
    assert run(script, stdin[:3]).returncode != 0
    assert path.read_bytes() == b"old\n"
    assert names_in(tmp_path) == ["environment"]


def test_a_file_that_fails_its_check_is_not_placed(tmp_path):
    """
    The check reads the new file; if it fails, the old file stays.
    """
    path = tmp_path / "haproxy.cfg"
    path.write_bytes(b"old\n")
    refused = place(make_file(path, b"bad\n", check="grep -q good {}"))
    assert refused.returncode != 0
    assert path.read_bytes() == b"old\n"
    assert place(make_file(path, b"good\n", check="grep -q good {}")).returncode == 0
    assert path.read_bytes() == b"good\n"


class ModeWatcher:
    """
    Polls the modes of a directory's files as fast as possible.

    Attributes:
        modes: All modes that any file had.
        has_seen: Set once it has seen a file.
    """

    def __init__(self, folder):
        self.folder, self.modes = folder, set()
        self.has_seen, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def _look(self):
        while not self._end.is_set():
            for entry in os.scandir(self.folder):
                try:
                    self.modes.add(stat.S_IMODE(entry.stat().st_mode))
                except FileNotFoundError:
                    continue
                self.has_seen.set()


def slowly(argv, content, watcher):
    """
    Run *argv* and write *content* to it in two parts; *watcher* sees a file between them.
    """
    child = subprocess.Popen(argv, stdin=subprocess.PIPE)
    child.stdin.write(content[: len(content) // 2])
    child.stdin.flush()
    assert watcher.has_seen.wait(60)
    child.stdin.write(content[len(content) // 2 :])
    child.stdin.close()
    assert child.wait() == 0


def test_a_secret_is_never_readable_by_others(tmp_path):
    """
    From its first byte, only the owner can read the file.
    """
    script, stdin = command_of(operations.place._inner(make_file(tmp_path / "environment")))
    with ModeWatcher(tmp_path) as facts:
        slowly(["sh", "-c", f"umask 022; {script}"], stdin, facts)
    assert facts.modes == {0o600}


def test_the_watcher_would_notice(tmp_path):
    """
    Negative control: writing first and restricting later, as most tools do, is detected.
    """
    script = f"umask 022; cat >{tmp_path}/environment && chmod 600 {tmp_path}/environment"
    with ModeWatcher(tmp_path) as facts:
        slowly(["sh", "-c", script], b"secret\n", facts)
    assert 0o644 in facts.modes


@pytest.mark.skipif(os.getuid() != 0, reason="what is uploaded belongs to root")
def test_an_upload_is_placed_only_with_the_right_hash(tmp_path):
    """
    A damaged upload is removed, and the link stays unchanged.
    """
    source, path, link = (tmp_path / name for name in ("source", "uv-1", "uv"))
    source.write_bytes(b"program")
    good = Upload(
        path=str(path),
        source=str(source),
        sha256=hashlib.sha256(b"program").hexdigest(),
        size=7,
        mode="0755",
        link=str(link),
    )
    send, make_link = operations.upload._inner(good, send=True)
    script, stdin = send.get_raw_value(), b"".join(send.connector_arguments["_stdin"])
    assert run(script, b"progrom").returncode != 0
    assert not path.exists()
    assert run(script, stdin).returncode == 0
    assert run(make_link.get_raw_value(), b"").returncode == 0
    assert link.readlink() == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert names_in(tmp_path) == ["source", "uv", "uv-1"]


def test_a_killed_command_leaves_no_file_behind(tmp_path):
    """
    `timeout` sends TERM, and the partial file is removed.
    """
    script, _ = command_of(operations.place._inner(make_file(tmp_path / "environment")))
    child = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)
    while not names_in(tmp_path):
        assert child.poll() is None
    os.killpg(child.pid, signal.SIGTERM)
    # The shell acts on it between two programs: one that began a moment ago ends with its input.
    child.communicate(timeout=60)
    assert names_in(tmp_path) == []


class RecordingTransport:
    """
    Answers each command with the next of *answers*, and records what was sent.
    """

    host = "n1"

    def __init__(self, *answers):
        self.answers, self.sent = list(answers), []

    def run(self, argv, *, timeout_s, stdin=None, check=True, output_max=2**20):
        self.sent.append((argv, stdin))
        return Completed(tuple(argv), 0, self.answers.pop(0), "", 0.1)


def build(answer, notes=None):
    """
    Build the environment of a lock whose wheels are all present; *answer* is the host program's.
    """
    resources = make_resources()
    [venv] = [part for part in resources.placed if isinstance(part, Venv)]
    transport = RecordingTransport(answer)
    client = HostClient(transport, actor="provision", sudo=True)
    sizes = {wheel.file: wheel.size for wheel in venv.wheels}
    there = replace(bare(resources), listings={layout.WHEELHOUSE: sizes})
    operations.apply(venv, there, client, notes=notes)
    return venv, transport.sent


def test_gpus_on_which_torch_was_not_compared_are_a_warning():
    """
    A host whose slots fill its GPUs is provisioned all the same.
    """
    warned = []
    notes = SimpleNamespace(warn=lambda *texts: warned.append(texts))
    build(encode_result(VenvBuilt(built=True, took_s=1.0)), notes)
    assert warned == []
    venv, _ = build(encode_result(VenvBuilt(built=False, took_s=1.0, full_gpus=(0, 2))), notes)
    [(about, why, fix)] = warned
    assert (about, why[-4:]) == (f"torch of {venv.name}", "0, 2")
    assert f"truncate -s 0 {layout.VENVS}/{venv.digest}/.uncompared" in fix


def test_an_environment_is_built_by_the_host_program():
    """
    It runs as root, and its request has the lock and its wheels.
    """
    venv, [(argv, stdin)] = build(encode_result(VenvBuilt(built=True, took_s=1.0)))
    assert argv == ["sudo", "-n", *layout.HOST_COMMAND, "venv.build"]
    request, call = parse_request("venv.build", stdin.decode())
    assert (request.digest, request.lock, call.actor) == (venv.digest, venv.text, "provision")
    assert [wheel.file for wheel in request.wheels] == [wheel.file for wheel in venv.wheels]


def test_an_environment_that_does_not_fit_is_an_error_of_its_kind():
    """
    The host program's error keeps its class, and so its exit code.
    """
    error = HostError(ErrorKind.DISK_TOO_SMALL, "no space", "1 MiB is free", "free some")
    with pytest.raises(DiskTooSmall, match='n1 says: "no space: 1 MiB is free"'):
        build(encode_error(error))


def test_a_reserve_has_allocated_blocks_and_a_full_disk_leaves_none(tmp_path):
    """
    A file of the right size without blocks would be no reserve.
    """
    path = tmp_path / "it's reserved"
    path.write_bytes(b"left over")
    wanted = Reserve(path=str(path), size=1 << 20)

    assert run(operations.reserve_command(wanted), b"").returncode == 0
    assert path.stat().st_size == 1 << 20
    assert path.stat().st_blocks * 512 >= 1 << 20
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    too_large = Reserve(path=str(path), size=1 << 50)
    assert run(operations.reserve_command(too_large), b"").returncode != 0
    assert not path.exists()


@pytest.mark.parametrize("kind", ["socket", "link", "file", "gone"])
def test_only_a_socket_is_given_away(tmp_path, kind):
    """
    Nothing behind a link changes, and a slot that has gone is no error.
    """
    path, behind = tmp_path / "runtime.sock", tmp_path / "behind"
    behind.touch(mode=0o640)
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "link":
        path.symlink_to(behind)
    elif kind == "file":
        path.touch(mode=0o640)

    given = Socket(path=str(path), owner=USER)
    assert run(operations.giving_command(given), b"").returncode == 0

    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir() if p.exists()}
    assert modes.get("runtime.sock") == {
        "socket": 0o600, "link": 0o640, "file": 0o640, "gone": None,
    }[kind]  # fmt: skip
    assert modes["behind"] == 0o640
