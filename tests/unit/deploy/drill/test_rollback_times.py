"""
When a version has no traffic any more, as a host's own looks show it.
"""

from deploy.drill.rollback_times import RollbackTime, RollbackTimes, off_after
from tests.unit.deploy.drill.builders import make_state


def test_the_time_counts_to_the_first_look_without_weight():
    states = [
        make_state(blue=0, green=100, at_s=9.9),
        make_state(blue=0, green=100, at_s=10.4),
        make_state(blue=100, green=0, at_s=10.45),
        make_state(blue=100, green=0, at_s=10.5),
    ]
    assert round(off_after(states, "green", 10.0), 2) == 0.45


def test_traffic_that_comes_back_counts_to_its_last_end():
    states = [make_state(0, 100, at_s=1.0), make_state(100, 0, at_s=2.0),
              make_state(90, 10, at_s=3.0), make_state(100, 0, at_s=4.0)]  # fmt: skip
    assert off_after(states, "green", 1.0) == 3.0


def test_a_version_that_keeps_weight_is_never_off():
    """
    A HAProxy that does not answer may still send traffic there.
    """
    assert off_after([make_state(0, 100)], "green", 0.0) is None
    assert off_after([], "green", 0.0) is None
    silent = make_state()
    silent = type(silent)(5.0, {}, None, False, "boot")
    assert off_after([make_state(100, 0), silent], "green", 0.0) is None


def test_the_document_has_the_slowest_host():
    runs = (RollbackTime(None, {"n1": 0.5, "n2": 0.75}, 2.5, 0, 0),)
    times = RollbackTimes(runs, 2)
    assert runs[0].worst_off_s == 0.75
    assert times.as_json()["runs"][0]["off_s"] == {"n1": 0.5, "n2": 0.75}
    assert "median 0.75 s" in times.table().notes[0]


def test_a_stopped_slot_is_no_part_of_the_warm_ones_median():
    runs = (
        RollbackTime(None, {"n1": 0.5}, 2.0, 0, 0),
        RollbackTime(None, {"n1": 20.0}, 25.0, 0, 0, old_slot="stopped"),
        RollbackTime("n4", {"n1": 0.75}, 2.25, 9, 0),
    )
    notes = RollbackTimes(runs, 4).table().notes
    assert [note.split(": median ")[1].split(" until")[0] for note in notes] == [
        "0.50 s", "0.75 s", "20.00 s"]  # fmt: skip
