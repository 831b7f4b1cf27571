from deploy.cli.progress import QUIET_S, Progress, waiting

HEARTBEAT = 'waiting for the step after "booting n1, n2": 2 s so far'


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def make_progress():
    clock, lines = Clock(), []
    return Progress(lines.append, clock=clock), clock, lines


def run(progress, clock, seconds):
    """
    Let time pass in the steps of the heartbeat's thread.
    """
    for _ in range(round(seconds / 0.25)):
        clock.now_s += 0.25
        progress.beat()


def test_a_line_comes_at_least_every_two_seconds():
    """
    Whatever is awaited: a venv of 19 s gives nine lines or more, two seconds apart at most.
    """
    progress, clock, lines = make_progress()
    times = []
    progress._write = lambda line: times.append(clock.now_s)
    progress.wait_for("the venv", ["n1"])
    run(progress, clock, 19)
    gaps = [b - a for a, b in zip([100.0, *times], [*times, 119.0], strict=True)]
    assert len(times) >= 9
    assert max(gaps) <= 2.0
    assert lines == []


def test_the_line_says_what_on_whom_since_when_and_how_long_at_most():
    progress, clock, lines = make_progress()
    progress.wait_for("the start of the new slot", ["n1", "n2"], 90.0)
    run(progress, clock, 4)
    assert (
        lines[-1] == "n1, n2: waiting for the start of the new slot: 4 s so far, at most 1m26s left"
    )


def test_hosts_that_wait_for_different_things_are_told_apart():
    progress, clock, lines = make_progress()
    progress.wait_for("the venv", ["n1"])
    progress.wait_for("packages", ["n2"])
    run(progress, clock, 2)
    assert lines[-1] == "n1: waiting for the venv: 2 s so far; n2: waiting for packages: 2 s so far"


def test_a_limit_that_has_passed_says_by_how_much():
    progress, clock, lines = make_progress()
    progress.wait_for("the drain", ["n1"], 5.0)
    run(progress, clock, 10)
    assert lines[-1].endswith("9 s so far, 4 s over its limit")


def test_nothing_is_said_when_nothing_is_awaited():
    """
    Negative control: a heartbeat is no habit.
    """
    progress, clock, lines = make_progress()
    run(progress, clock, 60)
    progress.wait_for("the venv", ["n1"])
    progress.end_wait("n1")
    run(progress, clock, 60)
    assert lines == []


def test_a_line_of_progress_puts_the_heartbeat_off():
    progress, clock, lines = make_progress()
    progress.wait_for("the lab")
    for _ in range(20):
        run(progress, clock, QUIET_S - 0.25)
        progress("booting n1")
    assert set(lines) == {"booting n1"}


def test_without_hosts_the_step_after_the_last_line_is_awaited():
    progress, clock, lines = make_progress()
    progress.wait_for("the lab")
    progress("booting n1, n2")
    run(progress, clock, 2)
    assert lines == ["booting n1, n2", HEARTBEAT]


def test_the_thread_ends_with_the_block():
    import threading

    with waiting("the lab"):
        assert "heartbeat" in {thread.name for thread in threading.enumerate()}
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}
