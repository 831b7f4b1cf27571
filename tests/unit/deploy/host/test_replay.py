import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.host.protocol import GoodRelease
from deploy.host.records import Checkpoint, from_line, to_line
from deploy.host.replay import GOOD_MAX, OPEN_MAX, carried, replay
from tests.unit.deploy.host.fakes import BUNDLE, OTHER


def line(step, phase, release="r1", args=None, ok=None, **more):
    fields = {"step": step, "phase": phase, "release": release, "args": args or {}, "ok": ok}
    return {**fields, "fence": 1, "at": "t", "actor": "ann", **more}


def lines(*entries):
    """
    Return *entries* as records, read from lines of the format before there was a chain.
    """
    numbered = [{**entry, "seq": seq} for seq, entry in enumerate(entries, 1)]
    records = [from_line(json.dumps(entry).encode()) for entry in numbered]
    assert None not in records
    return records


def begin(release="r1"):
    return line("release.begin", "event", release)


def end(release="r1", outcome="promoted"):
    return line("release.end", "event", release, {"outcome": outcome})


def did(step, release="r1", ok=True, **args):
    return [line(step, "intent", release, args), line(step, "result", release, args, ok)]


def good(release, bundle, version):
    return did("good.record", release, bundle=bundle, version=version, slot="blue")


def test_an_intent_without_result_is_unfinished():
    """
    A killed verb is reported, with its step.
    """
    killed = line("slot.start", "intent", args={"slot": "green"})
    unfinished = replay(lines(begin(), killed)).unfinished

    assert (unfinished.release, unfinished.step) == ("r1", "slot.start")


def test_a_release_without_end_is_unfinished_at_its_last_step():
    """
    So a controller that died between two verbs is reported too.
    """
    unfinished = replay(lines(begin(), *did("slot.start", slot="green"))).unfinished

    assert (unfinished.release, unfinished.step) == ("r1", "slot.start")


def test_the_same_verb_run_again_finishes_a_killed_one():
    """
    Intent, crash, intent, result: nothing is unfinished.
    """
    killed = line("slot.start", "intent", args={"slot": "green"})

    assert replay(lines(killed, *did("slot.start", slot="green"))).unfinished is None


def begin_back(**args):
    return line("release.begin", "event", "r-back", {"kind": "rollback", **args})


def test_an_unfinished_rollback_names_its_target_in_fields():
    """
    Nothing is read out of a reason or an id: a version may have any words.
    """
    named = begin_back(to_release="r-v1", bundle="1" * 64, reason="back to basics (r-v9)")
    unfinished = replay(lines(line("lease.acquire", "event", args={"epoch": 7}), named)).unfinished
    assert (unfinished.rollback_to, unfinished.bundle) == ("r-v1", "1" * 64)
    assert unfinished.epoch == 7

    unnamed = replay(lines(begin_back(reason="back to v2.0-back-to-basics (r-v1)"))).unfinished
    assert (unnamed.release, unnamed.rollback_to, unnamed.bundle) == ("r-back", None, None)


def test_the_epoch_of_a_beginning_counts_before_that_of_the_lease():
    entries = lines(
        line("lease.acquire", "event", args={"epoch": 7}), begin_back(to_release="r-v1", epoch=8)
    )
    assert replay(entries).unfinished.epoch == 8


@pytest.mark.parametrize("args", [{"bundle": "x"}, {"bundle": 7}, {"epoch": "7"}, {"epoch": -1}])
def test_damaged_fields_of_a_beginning_are_not_reported(args):
    """
    The controller would refuse the whole status of the host for them.
    """
    unfinished = replay(lines(begin_back(**args))).unfinished
    assert (unfinished.bundle, unfinished.epoch) == (None, 0)


@pytest.mark.parametrize(
    ("outcome", "is_open"), [("failed", True), ("promoted", False), ("reverted", False)]
)
def test_a_way_back_that_failed_stays_unfinished(outcome, is_open):
    """
    The next one goes to the same place; any other end, and a new beginning, closes it.
    """
    ended = [begin_back(to_release="r-v1"), line("release.end", "event", "r-back")]
    ended[1]["args"] = {"outcome": outcome}
    unfinished = replay(lines(*ended)).unfinished
    assert (unfinished is not None) is is_open
    if is_open:
        assert (unfinished.rollback_to, unfinished.step) == ("r-v1", "release.end")

    again = replay(lines(*ended, line("release.begin", "event", "r9", {})))
    assert again.unfinished.release == "r9"
    assert again.unfinished.rollback_to is None


def test_rolling_back_to_a_release_that_was_not_on_record_leaves_that_alone():
    """
    A host that joined later has only releases after it.
    """
    joined = did("good.record", bundle="2" * 64, version="v2")
    went = did("good.rollback", to_release="r-v1", bundle="1" * 64, version="v1")
    assert replay(lines(*joined, *went)).good == [GoodRelease("r-v1", "1" * 64, "v1")]

    unknown = did("good.rollback", to_release="r-v1", bundle=None, version=None)
    assert [good.version for good in replay(lines(*joined, *unknown)).good] == ["v2"]


def test_an_unfinished_release_names_no_target():
    assert replay(lines(begin())).unfinished.rollback_to is None


def test_another_slot_finishes_nothing():
    """
    Negative control: a result for other arguments leaves the intent open.
    """
    killed = line("slot.start", "intent", args={"slot": "green"})

    unfinished = replay(lines(killed, *did("slot.start", slot="blue"))).unfinished

    assert unfinished.step == "slot.start"


def test_a_failed_result_is_a_result():
    """
    A verb that reported an error is not unfinished.
    """
    assert replay(lines(*did("slot.start", ok=False))).unfinished is None


def test_the_end_of_a_release_finishes_all_its_steps():
    """
    Its writer checked the host and left it in order.
    """
    entries = lines(begin(), line("slot.start", "intent"), end(outcome="reverted"))

    assert replay(entries).unfinished is None


def test_the_end_of_another_release_ends_nothing():
    """
    Only the release that began last can end.
    """
    assert replay(lines(begin("r1"), end("r0"))).unfinished.release == "r1"


def test_a_new_release_takes_over_an_unfinished_one():
    """
    After r2's end nothing is unfinished, although r1 never ended.
    """
    entries = lines(begin("r1"), begin("r2"), end("r2"))

    assert replay(entries[:2]).unfinished.release == "r2"
    assert replay(entries).unfinished is None


def test_good_releases_are_a_stack():
    """
    A record pushes; a rollback pops down to its target.
    """
    entries = lines(
        *good("r1", BUNDLE, "v1"),
        *good("r2", OTHER, "v2"),
        *good("r3", BUNDLE, "v3"),
        *did("good.rollback", "r4", to_release="r1"),
    )

    assert [g.release for g in replay(entries[:6]).good] == ["r1", "r2", "r3"]
    assert [g.release for g in replay(entries).good] == ["r1"]


def test_recording_the_same_release_again_changes_nothing():
    """
    A controller that lost the answer may repeat it.
    """
    assert len(replay(lines(*good("r1", BUNDLE, "v1"), *good("r1", BUNDLE, "v1"))).good) == 1


def test_a_failed_record_is_not_good():
    """
    Only a result with ok counts.
    """
    assert replay(lines(*did("good.record", ok=False, bundle=BUNDLE, version="v1"))).good == []


def test_lines_of_earlier_versions_replay():
    """
    A good record with more keys; retired events are read as notes.
    """
    args = {"bundle": BUNDLE, "version": "v1", "slot": "blue", "at": "t", "by": "ann"}
    old = lines(
        begin(),
        line("release.paused", "event", args={"reason": "errors"}),
        line("release.resumed", "event"),
        *did("good.record", "r1", **args),
        end(),
    )

    replayed = replay(old)

    assert replayed.good == [GoodRelease("r1", BUNDLE, "v1")]
    assert (replayed.paused, replayed.unfinished) == (None, None)


def test_a_release_that_ends_paused_stays_paused_until_the_next_begins():
    """
    The new slot stays warm: status shows it, although no release is unfinished.
    """
    ended = lines(begin(), end(outcome="paused"))

    assert replay(ended).paused == "r1"
    assert replay(ended).unfinished is None
    assert replay([*ended, *lines(begin("r2"))]).paused is None


@given(st.lists(st.sampled_from(["begin", "intent", "result", "end", "good"]), max_size=12))
def test_replaying_is_pure_and_an_ended_release_leaves_nothing_open(kinds):
    """
    For any earlier lines, nothing is unfinished after begin and end; a second replay gives the
    same.
    """
    lines_by_kind = {
        "begin": [begin()],
        "intent": [line("slot.stop", "intent")],
        "result": [line("slot.stop", "result", ok=True)],
        "end": [end()],
        "good": good("r1", BUNDLE, "v1"),
    }
    entries = [entry for kind in kinds for entry in lines_by_kind[kind]]
    records = lines(*entries)
    before = list(map(to_line, records))

    assert replay(records) == replay(records)
    assert list(map(to_line, records)) == before
    assert replay(lines(*entries, begin("r9"), end("r9"))).unfinished is None


def test_a_good_record_without_a_release_is_ignored():
    assert replay(lines(*good("r1", BUNDLE, "v1"), *good(None, OTHER, "v2"))).good == [
        GoodRelease("r1", BUNDLE, "v1")
    ]


# -- a checkpoint stands for all before it

STEPS = {
    "begin": [begin()],
    "back": [begin_back(to_release="r1", bundle=BUNDLE)],
    "failed": [end("r-back", "failed")],
    "intent": [line("slot.start", "intent", args={"slot": "green"})],
    "other": [line("slot.stop", "intent", "r2", {"slot": "green"})],
    "result": did("slot.start", slot="green")[1:],
    "end": [end()],
    "paused": [end("r2", "paused")],
    "good": good("r1", BUNDLE, "v1"),
    "next": good("r2", OTHER, "v2"),
    "pop": did("good.rollback", "r3", to_release="r1", bundle=BUNDLE, version="v1"),
    "lease": [line("lease.acquire", "event", None, {"epoch": 7}, fence=9)],
    "note": [line("note", "event", "r2")],
}


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=14), st.integers(0, 20))
def test_a_checkpoint_at_any_line_changes_no_state(kinds, at):
    """
    Replaying it and what follows gives the state of all lines.
    """
    records = lines(*(entry for kind in kinds for entry in STEPS[kind]))
    at = min(at, len(records))
    checkpoint = Checkpoint("host", carried(records[:at], 0), seq=replay(records[:at]).seq)

    assert replay([checkpoint, *records[at:]]) == replay(records)


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=8))
def test_a_checkpoint_is_read_back_as_it_was_written(kinds):
    records = lines(*(entry for kind in kinds for entry in STEPS[kind]))
    checkpoint = Checkpoint("host", carried(records, 2), seq=99, prev="0" * 64)

    assert from_line(to_line(checkpoint)) == checkpoint


def test_a_checkpoint_is_bounded():
    """
    The newest good releases and open intents.
    """
    records = lines(
        *(entry for n in range(GOOD_MAX + 5) for entry in good(f"r{n}", BUNDLE, "v1")),
        *(line("venv.build", "intent", args={"digest": n}) for n in range(OPEN_MAX + 5)),
    )

    state = carried(records, 0)

    assert [state.good[0].release, state.good[-1].release] == ["r5", f"r{GOOD_MAX + 4}"]
    assert len(state.open_intents) == OPEN_MAX
    assert state.open_intents[-1].seq == len(records)


@pytest.mark.parametrize("epoch", [-1, True, "7", 2**60, None, 1.5])
def test_an_epoch_of_another_type_or_size_is_ignored(epoch):
    """
    A checkpoint could not carry it.
    """
    records = lines(line("lease.acquire", "event", None, {"epoch": epoch}))

    assert replay(records).epoch == 0
    state = Checkpoint("host", carried(records, 0), prev="0" * 64)
    assert from_line(to_line(state)) is not None
