"""
Full files of the journal, and a crash or a refusal at every step of the change to a new one.
"""

import contextlib
import errno
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from deploy.host import archives, journal, reserve
from deploy.host.journal import Journal
from deploy.host.protocol import GoodRecord, JournalAppend, JournalRead, LeaseAcquire
from deploy.host.records import ZERO, Checkpoint, Event, Intent, digest_of, from_line
from deploy.host.replay import replay
from tests.unit.deploy.host.fakes import BUNDLE, OTHER, TemporaryHost, short_directory

CALLS = (
    *("open", "close", "pwrite", "pread", "ftruncate", "truncate", "fsync", "fstat"),
    *("link", "replace", "unlink", "mkdir", "stat", "listdir", "scandir"),
)
FULL_BYTES = 1500  # of a file here, some five lines


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(journal, "ROTATE_BYTES", FULL_BYTES)


def note(host, number=0):
    return Journal(host.system).append(Event("r1", 1, "ann", "note", {"n": number})).seq


def live(host):
    """
    Leave a state with every part: good releases, a lease, an open intent, a release under way.
    """
    host.lease()
    host.call(GoodRecord(BUNDLE, "v1", "blue"))
    host.release = "r2"
    host.call(GoodRecord(OTHER, "v2", "green"))
    host.call(JournalAppend("release.begin", {"kind": "rollback", "to_release": "r1"}))
    intent = Intent("r2", host.fence, "ann", "slot.start", {"slot": "green"})
    Journal(host.system).append(intent)


def state(host):
    """
    Return what the journal adds up to, without its number.
    """
    return Journal(host.system).replay()._replace(seq=0)


def all_lines(host):
    return [line for _, line in Journal(host.system).lines()]


def kept(host):
    return [path for _, path in archives.files(host.layout.journal_archives)]


def assert_chained(lines):
    """
    Numbers grow by one and each line has the hash of the one before.
    """
    records = [from_line(line) for line in lines]
    assert [record.seq for record in records] == list(range(1, len(lines) + 1))
    assert [record.prev for record in records] == [ZERO, *map(digest_of, lines[:-1])]


# -- a new file


def test_a_full_file_is_kept_and_a_checkpoint_follows(host):
    live(host)
    expected = state(host)
    for number in range(40):
        note(host, number)

    head = from_line(host.layout.journal.read_bytes().splitlines()[0])
    assert isinstance(head, Checkpoint)
    assert head.actor == "slipway-host"
    assert len(kept(host)) >= 5
    assert_chained(all_lines(host))
    assert state(host)._replace(unfinished=None) == expected._replace(unfinished=None)
    assert state(host).unfinished == expected.unfinished
    assert not list(host.layout.state.glob(".tmp-*"))


def test_no_line_is_lost_and_pages_have_them_all(host):
    """
    Every note that was written, in its order, in one page or in many.
    """
    for number in range(60):
        note(host, number)

    for limit in (1, 7, 1000):
        after_seq, lines = 0, []
        while True:
            page = host.call(JournalRead(after_seq, limit))
            lines += page.lines
            if page.is_end:
                break
            after_seq = page.last_seq
        records = [from_line(line.encode()) for line in lines]
        notes = [record.args["n"] for record in records if isinstance(record, Event)]
        assert notes == list(range(60))


def test_status_reads_one_file_however_long_the_history_is(host, monkeypatch):
    """
    And an append parses no more than the last line of it.
    """
    for number in range(30):
        note(host, number)
    parsed = []
    monkeypatch.setattr(journal, "from_line", lambda line: parsed.append(line) or from_line(line))

    host.status()
    assert len(parsed) <= 8
    parsed.clear()
    while not host.layout.journal.stat().st_size < FULL_BYTES:
        note(host)
    parsed.clear()
    note(host)
    assert len(parsed) == 1


def test_the_archive_is_bounded_in_files_and_the_chain_goes_on(host, monkeypatch):
    monkeypatch.setattr(archives, "ARCHIVES_MAX", 3)
    live(host)
    expected = state(host)
    for number in range(60):
        note(host, number)

    assert len(kept(host)) == 3
    first = from_line(all_lines(host)[0])
    assert isinstance(first, Checkpoint)
    assert first.seq > 1
    assert state(host) == expected
    lines = all_lines(host)
    assert [from_line(line).prev for line in lines[1:]] == list(map(digest_of, lines[:-1]))


def test_the_archive_is_bounded_in_bytes_and_keeps_its_newest_file(host, monkeypatch):
    monkeypatch.setattr(archives, "ARCHIVES_BYTES", 1)
    for number in range(30):
        note(host, number)

    assert len(kept(host)) == 1


# -- the former format


def former(count):
    for seq in range(1, count + 1):
        line = {"seq": seq, "at": "t", "boot_id": "b", "release": "r1", "fence": 3}
        line |= {"actor": "ann", "step": "x", "phase": "event", "args": {}}
        yield json.dumps({**line, "ok": None, "error": None, "result": None, "retired": 1})


@pytest.mark.parametrize("count", [1, 5, 400])
def test_a_journal_of_the_former_format_is_converted_at_the_next_append(host, count):
    """
    It is kept as it was; the numbers and the state go on, and the chain begins with its last line.
    """
    text = "".join(f"{line}\n" for line in former(count))
    host.layout.journal.write_text(text)

    assert state(host).fence == 3
    assert note(host) == count + 2

    [path] = kept(host)
    assert path.read_text() == text
    head, new = [from_line(line) for line in host.layout.journal.read_bytes().splitlines()]
    assert isinstance(head, Checkpoint)
    assert (head.seq, new.seq) == (count + 1, count + 2)
    assert head.prev == digest_of(text.splitlines()[-1].encode())
    assert state(host).fence == 3
    assert len(all_lines(host)) == count + 2


def test_one_with_a_damaged_line_is_converted_too(host):
    """
    The damage stays counted.
    """
    lines = list(former(3))
    host.layout.journal.write_text("\n".join([lines[0], "{", lines[2]]) + "\n")

    assert note(host) == 5
    assert host.status().journal_damaged == 1


# -- damage


def test_a_damaged_checkpoint_costs_no_state(host):
    """
    The file before it has the same.
    """
    live(host)
    for number in range(20):
        note(host, number)
    expected = state(host)
    data = host.layout.journal.read_bytes()
    assert isinstance(from_line(data.splitlines()[0]), Checkpoint)
    host.layout.journal.write_bytes(b"#" + data[1:])

    assert state(host) == expected
    assert host.status().journal_damaged == 1
    seq = Journal(host.system).replay().seq
    assert note(host) == seq + 1


def test_a_lost_file_costs_no_number(host):
    """
    Numbers go on after those of the kept files, with a state of theirs.
    """
    live(host)
    for number in range(20):
        note(host, number)
    expected = state(host)
    newest = from_line(kept(host)[-1].read_bytes().splitlines()[-1]).seq
    host.layout.journal.unlink()

    assert state(host).good == expected.good
    assert note(host) == newest + 1


def test_a_file_of_the_same_number_is_never_overwritten(host):
    """
    It is of a journal that was deleted with its archive half gone.
    """
    host.layout.journal_archives.mkdir()
    other = host.layout.journal_archives / f"{1:012d}.jsonl"
    other.write_bytes(b"other\n")
    for number in range(8):
        note(host, number)

    assert other.read_bytes() == b"other\n"
    assert len(kept(host)) > 1


# -- a crash at every call of the operating system


def counted(monkeypatch, at, act):
    """
    Let *act* happen instead of call number *at* of the operating system; return the counter.
    """
    count = [0]

    def wrap(name, real):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == at:
                act(name)
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))
    real = reserve.allocate

    def allocate(*args):
        count[0] += 1
        if count[0] == at:
            act("fallocate")
        return real(*args)

    monkeypatch.setattr(reserve, "allocate", allocate)
    monkeypatch.setattr(archives, "allocate", allocate)
    return count


def on_the_verge():
    """
    Yield a host whose next append begins a new file.
    """
    with short_directory() as root:
        host = TemporaryHost(root)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal, "ROTATE_BYTES", 1 << 30)
            live(host)
        assert host.layout.journal.stat().st_size > FULL_BYTES
        assert kept(host) == []
        yield host


verge = contextlib.contextmanager(on_the_verge)


@pytest.fixture(scope="module")
def steps():
    """
    How many calls one append with a new file takes.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "ROTATE_BYTES", FULL_BYTES)
        with verge() as host, pytest.MonkeyPatch.context() as inner:
            count = counted(inner, 0, None)
            note(host, 1)
            steps = count[0]
        assert steps > 20
        return steps


def killed_at(host, at):
    """
    Append in a process that dies at call *at*; return whether it died before append returned.
    """
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            counted(patch, at, lambda _: os._exit(9))
            with contextlib.suppress(BaseException):
                note(host, 77)
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_kill_between_any_two_steps_loses_nothing(steps):
    """
    Every line is there once, numbers grow, the state is the same, and the next append works.
    """
    for at in range(1, steps + 1):
        with verge() as host:
            before, expected = all_lines(host), state(host)

            assert killed_at(host, at)

            lines = all_lines(host)
            assert lines[: len(before)] == before, at
            assert_chained(lines)
            assert state(host) == expected, at
            assert host.status().journal_damaged == 0
            note(host, 78)
            assert all_lines(host)[: len(lines)] == lines, at
            assert_chained(all_lines(host))
            assert state(host) == expected, at


def test_a_kill_at_any_step_of_two_appends_in_a_row(steps):
    """
    The second one finds what the first one left, and dies as well.
    """
    for first in range(1, steps + 1, 4):
        for second in range(1, steps + 1, 4):
            with verge() as host:
                before, expected = all_lines(host), state(host)

                killed_at(host, first)
                killed_at(host, second)

                note(host, 78)
                assert all_lines(host)[: len(before)] == before, (first, second)
                assert_chained(all_lines(host))
                assert state(host) == expected, (first, second)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_an_error_of_any_step_loses_nothing(steps, number):
    """
    The line is on disk where append returned; where it raised, the next one works.
    """

    def fail(name):
        if name != "close":
            raise OSError(number, os.strerror(number))

    written = 0
    for at in range(1, steps + 1):
        with verge() as host:
            before, expected = all_lines(host), state(host)
            with pytest.MonkeyPatch.context() as patch:
                counted(patch, at, fail)
                try:
                    seq = note(host, 77)
                except OSError:
                    seq = None

            lines = all_lines(host)
            assert lines[: len(before)] == before, at
            if seq is not None:
                written += 1
                assert from_line(lines[-1]).args == {"n": 77}
                assert from_line(lines[-1]).seq == seq
            note(host, 78)
            assert_chained(all_lines(host))
            assert state(host) == expected, at
    assert written > steps // 3  # most of them are steps of the new file, which can wait


def test_without_the_second_name_a_kill_loses_lines(monkeypatch, steps):
    """
    Control: the old file is not kept first.
    """
    monkeypatch.setattr(archives, "_keep", lambda journal, archives, seq: journal)
    lost = []
    for at in range(1, steps + 1):
        with verge() as host:
            before = all_lines(host)
            killed_at(host, at)
            if all_lines(host)[: len(before)] != before:
                lost.append(at)
    assert lost


def test_the_new_file_takes_the_name_only_when_all_is_on_disk(host, monkeypatch):
    """
    Draft synced, then the second name and its directory, then the first name and its directory,
    and only then append returns: the order that a power loss needs.
    """
    monkeypatch.setattr(journal, "ROTATE_BYTES", 1 << 30)
    live(host)
    monkeypatch.setattr(journal, "ROTATE_BYTES", FULL_BYTES)
    order = []
    real = {name: getattr(os, name) for name in ("fsync", "link", "replace")}

    def fsync(descriptor):
        order.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        real["fsync"](descriptor)

    def named(name):
        def call(*args, **kwargs):
            order.append((name, str(args[0]).rpartition("/")[2]))
            return real[name](*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", named("link"))
    monkeypatch.setattr(os, "replace", named("replace"))

    note(host)

    state_directory = host.layout.state.name
    assert order == [
        ("fsync", state_directory),  # journal.d is new
        ("fsync", ".tmp-journal.jsonl"),
        ("link", "journal.jsonl"),
        ("fsync", "journal.d"),
        ("replace", ".tmp-journal.jsonl"),
        ("fsync", "journal.jsonl"),
        ("fsync", state_directory),
    ]


def test_a_crash_before_the_directory_was_synced_is_made_good_by_the_next_line(host, monkeypatch):
    """
    The next append finds a checkpoint alone, and syncs the directory.
    """
    for number in range(30):
        note(host, number)
    data = host.layout.journal.read_bytes().splitlines(keepends=True)
    host.layout.journal.write_bytes(data[0])
    synced = []
    monkeypatch.setattr(journal, "sync_directory", synced.append)

    note(host)
    assert synced == [host.layout.state]
    note(host)
    assert len(synced) == 1


# -- while others read


def test_readers_without_a_lock_see_every_line(host):
    """
    A status or a page that meets the change of files.
    """
    live(host)
    expected, stop, wrong = state(host), threading.Event(), []

    def read():
        while not stop.is_set():
            numbers = [from_line(line).seq for line in all_lines(host)]
            if numbers != list(range(1, len(numbers) + 1)) or state(host) != expected:
                wrong.append(numbers)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(150):
        note(host, number)
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_a_reader_that_is_overtaken_by_two_files_has_the_lines_in_order(host, monkeypatch):
    """
    Between its look at the journal and its list of the kept files.
    """
    for number in range(12):
        note(host, number)
    real = archives.files

    def late(directory):
        monkeypatch.setattr(archives, "files", real)
        for number in range(12):
            note(host, number)
        return real(directory)

    before = len(kept(host))
    monkeypatch.setattr(archives, "files", late)
    lines = all_lines(host)

    assert len(kept(host)) >= before + 2
    assert_chained(lines)


# -- a full disk


@pytest.fixture
def disk(tmp_path):
    argv = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(argv, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def fill(disk):
    with (disk / "junk").open("wb", buffering=0) as junk, contextlib.suppress(OSError):
        while True:
            junk.write(b"x" * (1 << 16))
    assert os.statvfs(disk).f_bavail == 0


@pytest.mark.parametrize("asks", [True, False])
def test_on_a_full_disk_the_journal_goes_on_in_its_file(disk, asks):
    """
    In the space ahead of its end, whether it sees before or only from an error that there is no
    room; with room again, a new file begins.
    """
    host = TemporaryHost(disk)
    live(host)
    if asks:
        host.system.free = 0
    fill(disk)
    expected, before = state(host), kept(host)

    for number in range(200):
        note(host, number)

    assert kept(host) == before
    assert_chained(all_lines(host))
    assert state(host) == expected
    assert not (host.layout.state / ".tmp-journal.jsonl").exists()
    (disk / "junk").unlink()
    host.system.free = 1 << 40
    note(host)
    assert len(kept(host)) == len(before) + 1
    assert_chained(all_lines(host))
    assert state(host) == expected


def test_a_disk_with_room_for_a_checkpoint_alone_gets_no_new_file(disk):
    """
    It would have no space ahead of its end.
    """
    host = TemporaryHost(disk)
    live(host)
    before = kept(host)
    (disk / "room").write_bytes(b"x" * (128 << 10))
    fill(disk)
    (disk / "room").unlink()

    for number in range(20):
        note(host, number)

    assert kept(host) == before


def test_a_new_file_has_space_ahead_and_the_old_one_gives_its_back(disk):
    """
    So a disk that fills up later does not stop it, and 128 kept files take little.
    """
    host = TemporaryHost(disk)
    for number in range(8):
        note(host, number)

    [path] = kept(host)
    assert path.stat().st_blocks * 512 < 64 << 10
    assert host.layout.journal.stat().st_blocks * 512 >= reserve.AHEAD_BYTES // 2


def test_a_lease_needs_no_new_file(disk):
    """
    The epoch and the fence of a full journal survive it.
    """
    host = TemporaryHost(disk)
    host.call(LeaseAcquire("ann", 30.0, epoch=7))
    for number in range(40):
        note(host, number)
    host.layout.lease.unlink()

    assert replay(Journal(host.system).read()[0]).epoch == 7
    assert host.refusal(LeaseAcquire("bob", 30.0, epoch=7)).kind == "EpochOld"
    assert host.lease() == 2
