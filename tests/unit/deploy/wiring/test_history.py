"""
`inv history` over real host programs: journals page by page, and the record of what was seen.
"""

import itertools
import json
import stat

import pytest

from deploy.cli import report, tables
from deploy.cli.grid import draw
from deploy.errors import AuditBroken, CommandFailed, DeployError
from deploy.host import journal
from deploy.host.journal import Journal
from deploy.host.protocol import JournalPage, JournalRead
from deploy.host.records import Event
from deploy.wiring import history as wiring
from deploy.wiring.history import audit_error, keep_heads, read_history, read_journal
from tests.local_fleet import local_fleet


@pytest.fixture
def fleet(monkeypatch):
    monkeypatch.setattr(journal, "ROTATE_BYTES", 1500)
    with local_fleet("n1", "n2", "n3") as hosts:
        yield hosts


@pytest.fixture
def heads(tmp_path):
    tmp_path.chmod(0o700)
    return wiring.heads_file("lab", tmp_path)


def read(fleet, heads):
    """
    Read the history as `inv history` does, and keep what was seen.
    """
    history, errors = read_history(fleet.clients, heads)
    assert keep_heads(history, heads) is None
    return history, errors


def write(fleet, step, **args):
    for name in ("n1", "n2", "n3"):
        Journal(fleet.system(name)).append(Event("r9", 1, "ann@desk", step, args))


def release(fleet):
    write(fleet, "release.begin", kind="release")
    for number in range(30):
        write(fleet, "note", n=number)
    write(fleet, "release.end", outcome="promoted", reason="canary 10 %", evidence={"n": 7})


def test_a_release_is_read_from_all_hosts_through_many_files(fleet, heads):
    release(fleet)

    history, errors = read(fleet, heads)

    [past] = [past for past in history.releases if past.release == "r9"]
    assert (past.outcome, past.hosts) == ("promoted", ("n1", "n2", "n3"))
    assert past.evidence == {"n": 7}
    assert (history.broken, errors) == ({}, {})
    assert audit_error(history, heads) is None


def test_the_record_of_what_was_seen_is_private_and_goes_on(fleet, heads):
    release(fleet)
    read(fleet, heads)
    first = json.loads(heads.read_text())
    release(fleet)
    read(fleet, heads)

    assert stat.S_IMODE(heads.stat().st_mode) == 0o600
    assert set(first) == {"n1", "n2", "n3"}
    assert all(json.loads(heads.read_text())[host][0] > first[host][0] for host in first)


def test_a_cut_journal_is_named_and_stays_so(fleet, heads):
    """
    Root on n2 removed the last line.  The record of n2 does not go back.
    """
    release(fleet)
    read(fleet, heads)
    before = json.loads(heads.read_text())["n2"]
    path = fleet.system("n2").layout.journal
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))

    for _ in range(2):
        history, _ = read(fleet, heads)
        error = audit_error(history, heads)

        assert isinstance(error, AuditBroken)
        assert error.exit_code == 27
        assert error.host == "n2"
        assert f"cut at line {before[0]}" in error.why
        assert json.loads(heads.read_text())["n2"] == before


def test_a_changed_line_in_a_kept_file_is_named(fleet, heads):
    release(fleet)
    kept = sorted(fleet.system("n3").layout.journal_archives.iterdir())[1]
    kept.write_bytes(kept.read_bytes().replace(b"ann@desk", b"eve@evil", 1))

    history, _ = read(fleet, heads)

    assert set(history.broken) == {"n3"}
    assert "n3" not in json.loads(heads.read_text())


def test_a_host_that_does_not_answer_is_named_and_the_others_are_read(fleet, heads):
    release(fleet)
    fleet["n2"].is_cut = True

    history, errors = read(fleet, heads)

    assert set(errors) == {"n2"}
    assert history.releases[0].hosts == ("n1", "n3")


@pytest.mark.parametrize("text", ["{", "[]", '{"n1": 7}', '{"n1": ["x", "y"]}', '{"n1": [1, "y"]}'])
def test_a_damaged_record_is_an_error_and_is_kept(fleet, heads, text):
    """
    To begin anew in silence would forget what was seen.
    """
    read(fleet, heads)
    heads.write_text(text)

    with pytest.raises(DeployError, match="cannot be read"):
        read(fleet, heads)
    assert heads.read_text() == text


@pytest.mark.parametrize(("lines", "more"), [(("x",), 1), ((), 1), (("x",), 0), ((), 0)])
def test_a_journal_without_end_is_the_failure_of_its_host(fleet, monkeypatch, lines, more):
    """
    Also one whose pages are empty, or are the same page again.
    """
    monkeypatch.setattr(wiring, "_LINES_MAX", 100)
    asked = itertools.count()
    client = fleet.clients["n1"]
    monkeypatch.setattr(
        client,
        "call",
        lambda request, **_: JournalPage(
            lines, request.after_seq + more, is_end=next(asked) > 1000
        ),
    )

    with pytest.raises(CommandFailed, match="no end"):
        read_journal(client)


def test_the_table_shows_what_hosts_say_as_theirs(fleet, heads):
    """
    No control character of a journal reaches the terminal.
    """
    release(fleet)
    Journal(fleet.system("n1")).append(
        Event("r9\x1b[2J", 1, "eve", "release.begin", {"kind": "release"})
    )
    Journal(fleet.system("n1")).append(Event("r9", 1, "eve", "deadman.fired\x1b[2J", {}))
    history, errors = read(fleet, heads)

    text = draw(tables.history_table(history, errors), is_terminal=False, encoding="utf-8")

    assert "promoted" in text
    assert "by itself from" in text
    assert "\x1b" not in text
    document = report.history_json(history, errors)
    assert {past["release"] for past in document["releases"]} >= {"r9"}
    assert document["broken"] == {}


def test_reading_takes_no_lease_and_writes_nothing(fleet, heads):
    release(fleet)
    read(fleet, heads)

    assert set(fleet["n1"].verbs()) == {JournalRead.VERB}
