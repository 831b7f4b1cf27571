import json
import os

import pytest

from deploy.host.journal import Journal
from deploy.host.protocol import (
    JOURNAL_PAGE_MAX,
    GoodRecord,
    HostError,
    JournalRead,
    Status,
)
from deploy.host.records import (
    PART_MAX,
    ZERO,
    Event,
    Intent,
    Result,
    bounded,
    digest_of,
    from_line,
    to_line,
)
from tests.local_host import BOOT


def append(host, step="x", **args):
    """
    Append an event and return its number.
    """
    return Journal(host.system).append(Event("r1", 1, "ann", step, args)).seq


def numbers(host):
    return [record.seq for record in Journal(host.system).read()[0]]


def test_lines_have_a_number_a_time_and_a_boot_id(host):
    """
    seq grows by one; at is UTC; boot_id changes with a reboot.
    """
    assert [append(host) for _ in range(3)] == [1, 2, 3]

    first = host.journal()[0]
    assert (first["boot_id"], first["at"]) == (BOOT, "2025-06-15T15:06:40.000Z")


@pytest.mark.parametrize(
    "torn", [b"{", b'{"seq": 3, "step": "x", "pha', b'{"seq": 9}', b"\0" * 70000]
)
def test_a_torn_last_line_is_truncated_and_ignored(host, torn):
    """
    Its write did not complete before the host died.
    """
    append(host), append(host)
    with host.layout.journal.open("ab") as file:
        file.write(torn)

    assert numbers(host) == [1, 2]
    assert append(host) == 3
    assert numbers(host) == [1, 2, 3]


def test_a_damaged_line_is_counted_and_costs_only_itself(host):
    """
    status still answers; the other lines are read.
    """
    append(host), append(host)
    text = host.layout.journal.read_text().splitlines()
    host.layout.journal.write_text("\n".join([text[0][:20], text[1]]) + "\n")

    assert numbers(host) == [2]
    assert Journal(host.system).read()[1] == 1
    assert append(host) == 3


def test_numbering_continues_after_a_very_long_line(host):
    """
    A line longer than the read window.
    """
    append(host)
    long = Event("r1", 1, "ann", "x", {"text": "x" * 200_000}, seq=2, prev="0" * 64)
    with host.layout.journal.open("ab") as file:
        file.write(to_line(long) + b"\n")

    assert append(host) == 4  # 3 is a checkpoint: the file was full


def test_a_line_that_does_not_fit_is_removed(host, monkeypatch):
    """
    A full disk leaves no partial line, and the caller gets an error.
    """
    append(host)
    before = host.layout.journal.read_bytes()
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:5], at))
    monkeypatch.setattr(os, "fsync", _full)

    with pytest.raises(OSError, match="No space"):
        append(host)

    assert host.layout.journal.read_bytes() == before


def _full(_):
    raise OSError(28, "No space left on device")


def test_a_line_is_on_disk_before_append_returns(host, monkeypatch):
    """
    So it is on disk before the effect that it announces.
    """
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))

    append(host)

    assert host.layout.journal.stat().st_size in synced


@pytest.mark.parametrize(
    "damage",
    [{"fence": "7"}, {"args": [1]}, {"release": 5}, {"step": None, "release": {}}],
    ids=lambda damage: str(sorted(damage)),
)
def test_a_line_with_wrong_types_is_damaged(host, damage):
    """
    It is counted and ignored, so that status and the next lease work.
    """
    host.lease()
    entries = host.journal()
    line = json.dumps({**entries[-1], "seq": entries[-1]["seq"] + 1, **damage})
    with host.layout.journal.open("a") as file:
        file.write(line + "\n")

    status = host.call(Status())

    assert status.journal_damaged == 1
    assert status.lease is not None


# -- records


def test_each_line_has_the_hash_of_the_one_before(host):
    append(host), append(host), append(host)

    raw = host.layout.journal.read_bytes().splitlines()
    assert [line["prev"] for line in host.journal()] == [ZERO, *map(digest_of, raw[:2])]


def test_an_intent_and_its_result_are_typed(leased):
    """
    The result names its intent, and has the arguments of it.
    """
    leased.call(GoodRecord("a" * 64, "v1", "blue"))

    intent, result = Journal(leased.system).read()[0][-2:]
    assert (type(intent), type(result)) == (Intent, Result)
    assert (result.intent, result.args) == (intent.seq, intent.args)
    assert (result.ok, result.actor, result.release) == (True, "ann", "r1")


@pytest.mark.parametrize(
    "change",
    [
        {"seq": -1}, {"seq": True}, {"seq": 2**60}, {"prev": "no hash"}, {"step": None},
        {"extra": 1}, {"phase": "notes"}, {"phase": ["event"]}, {"actor": 7}, {"at": 5},
    ],
    ids=str,
)  # fmt: skip
def test_a_line_is_decoded_strictly(change):
    """
    Another type, a key too many, an unknown phase: the line is damaged.
    """
    line = to_line(Event("r1", 1, "ann", "x", {}, seq=4, prev=ZERO))
    assert from_line(line) is not None

    assert from_line(json.dumps({**json.loads(line), **change}).encode()) is None


@pytest.mark.parametrize("line", [b"", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_object_is_no_line(line):
    assert from_line(line) is None


def test_a_part_that_is_too_long_is_named_by_size_and_hash(host):
    """
    The same each time, so that a result finds its intent; short parts stay.
    """
    part = {"slot": "green", "text": "x" * PART_MAX}

    assert bounded(part) == bounded(part)
    assert bounded(part)["slot"] == "green"
    assert bounded(part)["text"]["cut_bytes"] == PART_MAX + 2
    assert bounded({"slot": "green"}) == {"slot": "green"}
    append(host, **part)
    assert host.layout.journal.stat().st_size < 1000


def test_a_part_of_many_values_is_bounded_as_a_whole():
    part = {str(n): "x" * 100 for n in range(PART_MAX // 50)}

    assert set(bounded(part)) == {"cut_bytes", "sha256"}


def test_a_name_that_is_too_long_is_refused(host):
    host.release = "r" * 2000

    with pytest.raises(HostError, match="too long"):
        host.lease()
    assert not host.layout.journal.exists() or host.layout.journal.stat().st_size == 0


# -- the verb that reads it


def pages(host, limit=1000):
    after_seq, lines = 0, []
    while True:
        page = host.call(JournalRead(after_seq, limit))
        assert len(page.lines) <= limit
        lines += page.lines
        if page.is_end:
            return lines
        assert page.last_seq > after_seq
        after_seq = page.last_seq


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_pages_give_the_file(host, limit):
    """
    Byte for byte, whatever the size of a page.
    """
    for _ in range(5):
        append(host)

    assert pages(host, limit) == host.layout.journal.read_text().splitlines()


def test_a_page_is_bounded_in_bytes(host):
    for _ in range(20):
        append(host, a="x" * 50_000, b="y" * 10_000)

    page = host.call(JournalRead())

    assert 0 < sum(map(len, page.lines)) <= JOURNAL_PAGE_MAX
    assert not page.is_end
    assert len(pages(host)) > len(page.lines)


def test_reading_needs_no_lease_and_changes_nothing(host):
    append(host)
    before = host.layout.journal.read_bytes()

    assert host.fence is None
    assert len(pages(host)) == 1
    assert host.layout.journal.read_bytes() == before
    assert not host.layout.lock.exists()


def test_a_host_without_a_journal_has_an_empty_one(host):
    page = host.call(JournalRead())

    assert (page.lines, page.last_seq, page.is_end) == ((), 0, True)


def test_a_damaged_line_is_shown_as_it_is(host):
    """
    Its bytes that are no text are replaced; what follows is there too.
    """
    append(host)
    with host.layout.journal.open("ab") as file:
        file.write(b"\xff broken, \n")
    append(host)

    lines = pages(host)
    assert [from_line(line.encode()) is None for line in lines] == [False, True, False]
    assert "broken" in lines[1]
