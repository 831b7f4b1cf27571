"""
Past releases by the word of most hosts, and every way to tamper with a journal.
"""

import json
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.host.records import ZERO, Carried, Checkpoint, Event, Intent, Result, digest_of, to_line
from deploy.release.history import Damage, Head, HostJournal, make_history, verify

EMPTY = Carried((), (), None, None, 0, 0, 0)


def chain(*records, first_seq=1, prev=ZERO):
    """
    Return *records* as lines with numbers and hashes.
    """
    lines = []
    for seq, record in enumerate(records, first_seq):
        fields = {**vars(record), "seq": seq, "prev": prev}
        line = to_line(type(record)(**fields))
        lines.append(line.decode())
        prev = digest_of(line)
    return lines


def event(step="note", release="r1", at="2026-01-01T00:00:00.000Z", actor="ann@desk", **args):
    return Event(release, 1, actor, step, args, at=at)


def released(release="r1", outcome="promoted", actor="ann@desk", minute=0, **more):
    began, ended = (f"2026-01-01T00:{m:02d}:00.000Z" for m in (minute, minute + 1))
    end = {"outcome": outcome, "reason": f"{outcome} it", **more}
    return [
        event("release.begin", release, began, actor, kind="release"),
        event("note", release, began, actor),
        event("release.end", release, ended, actor, **end),
    ]


def notes(count):
    return chain(*(event(n=n) for n in range(count)))


def head_of(lines):
    return HostJournal.of(lines).head


def edited(line, **changes):
    return json.dumps({**json.loads(line), **changes}, sort_keys=True)


# -- verification


def test_a_whole_chain_is_whole():
    lines = notes(6)

    assert verify(lines) is None
    assert verify(lines, head_of(lines)) is None
    assert verify(lines, head_of(lines[:3])) is None
    assert verify([]) is None


def test_it_goes_on_through_a_checkpoint_and_may_begin_with_one():
    """
    Older files are deleted.
    """
    lines = chain(*[event()] * 3, Checkpoint("slipway-host", EMPTY), *[event()] * 3)

    assert verify(lines) is None
    assert verify(lines[3:]) is None


def test_lines_of_the_former_format_come_first():
    """
    Their last one is chained; one that comes later was put there.
    """
    former = [
        json.dumps({"seq": n, "step": "x", "phase": "event", "args": {}}) for n in range(1, 4)
    ]
    lines = former + chain(event(), event(), first_seq=4, prev=digest_of(former[-1].encode()))

    assert verify(lines) is None
    changed = verify([*former[:2], edited(former[2], step="y"), *lines[3:]])
    assert (changed.seq, changed.damage) == (4, Damage.CHANGED)
    inserted = verify([*lines, edited(former[0], seq=6)])
    assert (inserted.seq, inserted.damage) == (6, Damage.CHANGED)


@pytest.mark.parametrize("at", range(5))
def test_a_changed_line_is_found_where_it_stands(at):
    """
    Any but the last, whose change only a head that was seen can show.
    """
    lines = notes(6)
    lines[at] = edited(lines[at], actor="mallory")

    found = verify(lines)

    assert (found.seq, found.damage) == (at + 2, Damage.CHANGED)
    assert f"line {at + 1} is not" in found.why


def test_a_change_of_the_last_line_shows_against_the_head_that_was_seen():
    lines = notes(6)
    head = head_of(lines)
    lines[5] = edited(lines[5], actor="mallory")

    assert verify(lines) is None
    found = verify(lines, head)
    assert (found.seq, found.damage) == (6, Damage.CUT)


@pytest.mark.parametrize("at", range(1, 5))
def test_a_removed_line_is_named(at):
    lines = notes(6)
    del lines[at]

    found = verify(lines)

    assert (found.seq, found.damage) == (at + 2, Damage.REMOVED)
    assert f"{at + 1} to {at + 1}" in found.why


def test_lines_removed_at_the_beginning_are_named():
    found = verify(notes(6)[2:])

    assert (found.seq, found.damage) == (3, Damage.REMOVED)


@pytest.mark.parametrize("at", range(4))
def test_lines_in_another_order_are_named(at):
    lines = notes(6)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]

    assert verify(lines).damage in (Damage.REORDERED, Damage.REMOVED)


def test_a_repeated_line_is_out_of_order():
    lines = notes(4)

    found = verify([*lines[:2], lines[1], *lines[2:]])

    assert (found.seq, found.damage) == (2, Damage.REORDERED)


@pytest.mark.parametrize("left", [0, 1, 5])
def test_a_cut_end_shows_only_against_the_head_that_was_seen(left):
    lines = notes(6)
    head = head_of(lines)

    assert verify(lines[:left]) is None
    found = verify(lines[:left], head)
    assert (found.seq, found.damage) == (6, Damage.CUT)


def test_a_journal_written_anew_with_right_hashes_shows_against_the_head():
    """
    Root on the host can make a chain that is whole.
    """
    head = head_of(notes(6))
    forged = chain(*(event(n="forged") for _ in range(9)))

    assert verify(forged) is None
    assert verify(forged, head).damage == Damage.CUT


def test_a_head_that_is_no_longer_kept_is_named():
    """
    Old files are deleted, or somebody says so: it cannot be told, so it is no success.
    """
    lines = chain(Checkpoint("slipway-host", EMPTY), event(), first_seq=50, prev="a" * 64)

    found = verify(lines, Head(7, "b" * 64))

    assert found.damage == Damage.CUT
    assert "the oldest line is 50" in found.why


@pytest.mark.parametrize("line", ["", "{", "[]", '{"seq": 3}', "[" * 100_000, "\ud800"])
def test_a_line_that_cannot_be_read_is_a_change(line):
    lines = notes(4)
    text = line.encode(errors="replace").decode()

    found = verify([*lines[:2], text, *lines[3:]])

    assert (found.seq, found.damage) == (3, Damage.CHANGED)


@given(st.data())
def test_no_edit_of_lines_that_were_seen_passes(data):
    """
    Whatever is deleted, repeated, moved or changed, up to the head that was seen.
    """
    lines = notes(8)
    head = head_of(lines)
    tampered = data.draw(
        st.lists(
            st.one_of(
                st.sampled_from(lines),
                st.sampled_from(lines).map(lambda line: edited(line, actor="mallory")),
            ),
            max_size=10,
        ).filter(lambda one: one != lines)
    )
    if tampered[: len(lines)] == lines:
        assert verify(tampered[: len(lines)], head) is None
    else:
        assert verify(tampered, head) is not None


def test_without_the_comparison_of_hashes_a_change_passes(monkeypatch):
    """
    Control: a hash that equals every other one.
    """
    lines = notes(3)
    changed = [edited(lines[0], actor="mallory"), *lines[1:]]
    assert verify(changed) is not None

    monkeypatch.setattr("deploy.release.history.digest_of", lambda _line: ANY)

    assert verify(changed) is None


# -- past releases


def history(seen=None, **by_host):
    journals = {host: HostJournal.of(chain(*records)) for host, records in by_host.items()}
    return make_history(journals, seen or {})


def test_a_release_has_what_its_hosts_agree_on():
    records = released(evidence={"canary": {"n": 1200}})

    [past] = history(n1=records, n2=records, n3=records).releases

    assert (past.kind, past.actor, past.outcome) == ("release", "ann@desk", "promoted")
    assert (past.began_at, past.ended_at) == (
        "2026-01-01T00:00:00.000Z",
        "2026-01-01T00:01:00.000Z",
    )
    assert (past.reason, past.evidence) == ("promoted it", {"canary": {"n": 1200}})
    assert (past.hosts, past.others) == (("n1", "n2", "n3"), {})


def test_a_host_that_says_otherwise_is_named_and_changes_nothing():
    """
    Another outcome, actor and time.
    """
    lie = released(outcome="reverted", actor="eve@evil", minute=50)

    [past] = history(n1=released(), n2=lie, n3=released()).releases

    assert (past.outcome, past.actor, past.hosts) == ("promoted", "ann@desk", ("n1", "n3"))
    assert past.began_at == "2026-01-01T00:00:00.000Z"
    assert past.others == {"n2": "release of eve@evil: reverted"}


def test_without_a_majority_nobody_is_believed():
    [past] = history(n1=released(), n2=released(outcome="reverted")).releases

    assert (past.outcome, past.hosts) == (None, ())
    assert set(past.others) == {"n1", "n2"}


def test_one_host_cannot_move_the_time_of_a_release():
    """
    The median of those that agree.
    """
    [past] = history(n1=released(), n2=released(), n3=released(minute=40)).releases

    assert past.outcome == "promoted"
    assert past.began_at == "2026-01-01T00:00:00.000Z"


def test_a_release_of_some_hosts_needs_most_of_those():
    """
    `--limit`: the others do not have it on record.
    """
    [past] = history(n1=released(), n2=[event()], n3=[event()]).releases

    assert (past.outcome, past.hosts, past.others) == ("promoted", ("n1",), {})


def test_newest_first_and_a_release_that_was_taken_over():
    unended = released("r1")[:2]
    records = [*unended, *released("r2", minute=5)]

    second, first = history(n1=records).releases

    assert (second.release, second.outcome) == ("r2", "promoted")
    assert (first.release, first.outcome, first.ended_at) == ("r1", "taken over", None)


def test_a_release_that_another_operator_goes_on_with_is_that_of_the_first():
    """
    Paused, then resumed: one release, with the beginning and the actor of the first.
    """
    records = [*released(outcome="paused"), *released(actor="bob@desk", minute=9)]

    [past] = history(n1=records).releases

    assert (past.actor, past.outcome) == ("ann@desk", "promoted")
    assert past.began_at == "2026-01-01T00:00:00.000Z"
    assert past.ended_at == "2026-01-01T00:10:00.000Z"


def test_a_release_under_way_has_not_ended():
    [past] = history(n1=released()[:2]).releases

    assert (past.outcome, past.ended_at, past.hosts) == (None, None, ("n1",))


def test_a_release_whose_beginning_was_deleted_with_its_file_has_an_end():
    [past] = history(n1=released()[2:]).releases

    assert (past.began_at, past.outcome) == (None, "promoted")


def test_a_host_that_went_back_by_itself_is_listed():
    """
    What a controller asked it for, arming for example, is not.
    """
    began, ended = (f"2026-01-01T00:0{m}:00.000Z" for m in (1, 2))
    args = {"why": "no lease"}
    intent = Intent("r1", None, "deadman", "deadman.go_back", args, at=began)
    result = Result("r1", None, "deadman", "deadman.go_back", args, ok=True, at=ended)

    [own] = history(n1=[event("deadman.arm"), intent, result], n2=[]).own_ways_back

    assert (own.host, own.step, own.release) == ("n1", "deadman.go_back", "r1")
    assert (own.at, own.ended_at, own.data) == (began, ended, args)
    [open_one] = history(n1=[intent]).own_ways_back
    assert open_one.ended_at is None


@pytest.mark.parametrize("args", [{"outcome": 7, "reason": [], "evidence": "x"}, {"kind": {}}, {}])
def test_arguments_of_any_type_stop_nothing(args):
    records = [
        Event("r1", 1, "ann", "release.begin", args),
        Event("r1", 1, "ann", "release.end", args),
    ]

    [past] = history(n1=records).releases

    assert past.evidence is None
    assert isinstance(past.reason, str)


def test_heads_are_those_of_whole_journals():
    """
    A broken one keeps the head that was seen, so that it stays broken.
    """
    lines = notes(4)
    journals = {"n1": HostJournal.of(lines), "n2": HostJournal.of(lines[1:])}

    result = make_history(journals, {"n1": head_of(lines[:2])})

    assert result.heads == {"n1": head_of(lines)}
    assert set(result.broken) == {"n2"}
