"""
Following journals from outside of their hosts.
"""

import json

from deploy.drill.journals import JournalFollower


def write(path, *entries, mode="a"):
    with path.open(mode) as file:
        for seq, step, phase in entries:
            file.write(json.dumps({"seq": seq, "step": step, "phase": phase}) + "\n")


def steps(follower):
    return [(seen.host, seen.step, seen.phase) for seen in follower.read()]


def test_only_new_lines_are_returned(tmp_path):
    """
    Those from before do not count, and each counts once.
    """
    path = tmp_path / "journal.jsonl"
    write(path, (1, "lease.acquire", "event"))
    follower = JournalFollower({"n1": path})
    assert steps(follower) == []
    write(path, (2, "slot.start", "intent"))
    assert steps(follower) == [("n1", "slot.start", "intent")]
    assert steps(follower) == []


def test_a_line_counts_once_it_is_whole(tmp_path):
    """
    A line is on disk with its end, and not before.
    """
    path = tmp_path / "journal.jsonl"
    write(path, (1, "lease.acquire", "event"))
    follower = JournalFollower({"n1": path})
    whole = json.dumps({"seq": 2, "step": "retire", "phase": "intent"})
    with path.open("a") as file:
        file.write(whole[:10])
    assert steps(follower) == []
    with path.open("a") as file:
        file.write(whole[10:] + "\n")
    assert steps(follower) == [("n1", "retire", "intent")]


def test_a_rotated_journal_is_read_on(tmp_path):
    """
    The new file begins with lines that were read already, or not at all.
    """
    path = tmp_path / "journal.jsonl"
    write(path, (1, "lease.acquire", "event"), (2, "slot.start", "intent"))
    follower = JournalFollower({"n1": path})
    new = tmp_path / "new"
    write(new, (2, "slot.start", "intent"), (3, "slot.start", "result"))
    new.replace(path)
    assert steps(follower) == [("n1", "slot.start", "result")]


def test_a_journal_that_is_not_there_yet_is_waited_for(tmp_path):
    path = tmp_path / "journal.jsonl"
    follower = JournalFollower({"n1": path})
    assert steps(follower) == []
    write(path, (1, "lease.acquire", "event"))
    assert steps(follower) == [("n1", "lease.acquire", "event")]


def test_a_torn_line_in_the_middle_is_skipped(tmp_path):
    """
    A crash can leave one.
    """
    path = tmp_path / "journal.jsonl"
    write(path, (1, "lease.acquire", "event"))
    follower = JournalFollower({"n1": path})
    with path.open("a") as file:
        file.write('{"seq": 2, "st\n[]\n{"seq": "x"}\n')
    write(path, (3, "release.end", "event"))
    assert steps(follower) == [("n1", "release.end", "event")]
