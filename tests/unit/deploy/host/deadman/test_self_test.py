import pytest

from deploy.host.deadman.self_test import PATHS, mark_of
from deploy.host.deadman.way_back import check
from deploy.host.layout import DEADMAN_TIMER
from deploy.host.protocol import DeadmanTest


def timer_of(host, runs=check):
    """
    Let the timer run *runs* every 5 seconds of the host's clock.
    """
    next_s = [host.clock.steady + 5]

    def tick():
        if host.clock.steady >= next_s[0]:
            next_s[0] += 5
            runs(host.system)

    host.clock.on_sleep = tick


@pytest.fixture
def untested(host):
    host.layout.deadman_tested.unlink()
    return host


def test_a_timer_that_runs_the_check_passes(untested):
    """
    The mark is of the present program and units, and nothing is left of the test.
    """
    timer_of(untested)

    assert 4 < untested.call(DeadmanTest()).took_s < 6

    assert untested.status().is_deadman_tested
    assert not untested.layout.deadman_test.exists()
    assert not untested.layout.deadman_fired.exists()


def test_a_timer_that_runs_nothing_fails(untested):
    """
    No mark, and no question that a later check would answer.
    """
    timer_of(untested, runs=lambda _: None)

    error = untested.refusal(DeadmanTest())

    assert (error.kind, DEADMAN_TIMER in error.why) == ("CommandFailed", True)
    assert not untested.status().is_deadman_tested
    assert not untested.layout.deadman_test.exists()


def test_another_program_than_the_installed_one_fails(untested):
    """
    The unit runs an older file than provisioning placed.
    """

    def runs(system):
        program = system.layout.host_program
        new = program.read_bytes()
        program.write_bytes(b"older")
        check(system)
        program.write_bytes(new)

    timer_of(untested, runs)

    assert "another host program" in untested.refusal(DeadmanTest()).why
    assert not untested.status().is_deadman_tested


def test_an_answer_to_an_earlier_test_does_not_count(untested):
    """
    A killed test left a question, and its answer.
    """
    untested.layout.deadman_test.write_text("{}")
    check(untested.system)
    assert untested.layout.deadman_fired.exists()  # negative control
    timer_of(untested, runs=lambda _: None)

    assert "did not run the check" in untested.refusal(DeadmanTest()).why


def test_a_host_without_the_units_says_what_is_missing(untested):
    untested.layout.deadman_units[1].unlink()

    error = untested.refusal(DeadmanTest())

    assert (error.kind, "slipway-deadman.service" in error.why) == ("PreconditionError", True)


def test_a_stopped_timer_is_not_waited_for(untested):
    untested.system.units[DEADMAN_TIMER].active = "inactive"
    began_s = untested.clock.steady

    assert "switched off" in untested.refusal(DeadmanTest()).what
    assert untested.clock.steady == began_s


@pytest.mark.parametrize("path", PATHS)
def test_every_part_is_in_the_mark(path):
    """
    A change of the program or of any unit asks for another test.
    """
    parts = dict.fromkeys(PATHS, b"x")
    assert mark_of(parts) != mark_of({**parts, path: b"y"})
