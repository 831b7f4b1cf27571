"""
The same work on many hosts: bounded workers, and a time limit that is each host's own.
"""

import threading

import pytest

from deploy.errors import CommandFailed, TransportError
from deploy.transport import parallel
from deploy.transport.parallel import WORKERS, on_each


def test_workers_are_bounded():
    """
    A thousand hosts are a thousand calls, and never more than 64 at once.
    """
    lock, at_once, most, threads = threading.Lock(), 0, 0, set()

    def work(_name):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
            threads.add(threading.get_ident())
        threading.Event().wait(0.02)
        with lock:
            at_once -= 1

    done = []
    errors = on_each(map(str, range(1000)), lambda name: (work(name), done.append(name)))

    assert errors == {}
    assert sorted(done, key=int) == [str(number) for number in range(1000)]
    assert most <= WORKERS
    assert len(threads) <= WORKERS


def test_hosts_without_an_answer_take_no_time_from_the_others():
    """
    With more of them than workers the others still begin, each with its whole time.
    """
    silent = {f"silent-{number}" for number in range(WORKERS + 6)}
    answering = [f"n{number}" for number in range(WORKERS)]
    ended, done = threading.Event(), []

    def work(name):
        if name in silent:
            ended.wait(60)
        else:
            done.append(name)

    errors = on_each([*sorted(silent), *answering], work, within_s=1.0)
    ended.set()

    assert set(errors) == silent
    assert all(isinstance(error, TransportError) for error in errors.values())
    assert sorted(done) == sorted(answering)


def test_a_host_that_waits_for_a_worker_is_not_late():
    """
    The limit counts from when its own work begins: a fleet may take longer than one host may.
    """
    names = map(str, range(12 * WORKERS))  # twelve rounds of 0.3 s

    assert on_each(names, lambda _: threading.Event().wait(0.3), within_s=3.0) == {}


def test_work_that_was_given_up_starts_no_other():
    """
    Its worker was replaced when it was given up.
    """
    release, threads = threading.Event(), set()

    def work(name):
        threads.add((threading.get_ident(), name))
        if name == "silent":
            release.wait(60)

    errors = on_each(["silent", *map(str, range(200))], work, within_s=1.0)
    worker = next(ident for ident, name in threads if name == "silent")
    release.set()

    assert set(errors) == {"silent"}
    assert [name for ident, name in threads if ident == worker].count("silent") == 1


class _Starts:
    """
    Stands for the module `threading`: the start of one thread ends otherwise.

    Args:
        fails: Called with the number of each thread, from 1, after it has started.
    """

    Condition = threading.Condition

    def __init__(self, fails, *, before=False):
        self._count, self._fails, self._before = 0, fails, before

    def Thread(self, **options):
        self._count += 1
        number, thread = self._count, threading.Thread(**options)
        start = thread.start

        def start_or_fail():
            if self._before:
                self._fails(number)
            start()
            self._fails(number)

        thread.start = start_or_fail
        return thread


def test_an_interruption_while_workers_start_waits_for_what_has_begun(monkeypatch):
    """
    Nothing of the work runs on after it, and no other host begins.
    """
    begun, ended, three = [], [], threading.Event()

    def work(name):
        begun.append(name)
        if len(begun) == 3:
            three.set()
        three.wait(60)
        threading.Event().wait(0.05)
        ended.append(name)

    def interrupt(number):
        if number == 3:
            three.wait(60)
            raise KeyboardInterrupt

    monkeypatch.setattr(parallel, "threading", _Starts(interrupt))
    with pytest.raises(KeyboardInterrupt):
        on_each(map(str, range(20)), work)

    assert sorted(begun) == sorted(ended) == ["0", "1", "2"]


def test_the_work_is_done_by_the_threads_that_can_be_started(monkeypatch):
    def refuse(number):
        if number > 2:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(parallel, "threading", _Starts(refuse, before=True))
    done = []

    assert on_each(map(str, range(20)), done.append) == {}
    assert sorted(done, key=int) == list(map(str, range(20)))


def test_without_any_thread_nothing_is_done(monkeypatch):
    def refuse(number):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(parallel, "threading", _Starts(refuse, before=True))
    done = []

    with pytest.raises(RuntimeError):
        on_each(["n1", "n2"], done.append)
    assert done == []


def test_a_host_that_was_late_before_is_not_waited_for_beyond_the_others(monkeypatch):
    """
    It is asked all the same, and counts where it answers with them.
    """
    monkeypatch.setattr(parallel, "GRACE_S", 1.0)
    ended, done = threading.Event(), []

    def work(name):
        if name == "dead":
            ended.wait(60)
        done.append(name)

    errors = on_each(["dead", "back", "n1", "n2"], work, within_s=60.0, late=["dead", "back"])
    ended.set()

    assert set(errors) == {"dead"}
    assert isinstance(errors["dead"], TransportError)
    assert sorted(done)[:3] == ["back", "n1", "n2"]


def test_hosts_that_were_all_late_before_have_their_whole_time(monkeypatch):
    monkeypatch.setattr(parallel, "GRACE_S", 0.0)
    done = []

    def work(name):
        threading.Event().wait(0.2)
        done.append(name)

    assert on_each(["n1", "n2"], work, within_s=60.0, late=["n1", "n2"]) == {}
    assert sorted(done) == ["n1", "n2"]


@pytest.mark.parametrize("fails", [True, False])
def test_hosts_late_before_are_measured_by_those_that_succeed(fails):
    """
    One that fails at once says nothing about how long an answer takes.
    """
    gate = threading.Event()

    def work(name):
        if name == "late":
            gate.wait(0.6 if fails else 60)
        elif fails:
            raise CommandFailed("no", why="not provisioned", fix="provision")

    errors = on_each(["late", "n1"], work, within_s=60.0, late=["late"])
    gate.set()
    assert set(errors) == ({"n1"} if fails else {"late"})
