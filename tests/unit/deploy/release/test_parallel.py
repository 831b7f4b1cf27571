"""
The same work on many hosts: bounded workers, and a time limit that is each host's own.
"""

import threading

from deploy.errors import TransportError
from deploy.release.parallel import WORKERS, on_each


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

    errors = on_each([*sorted(silent), *answering], work, within_s=0.2)
    ended.set()

    assert set(errors) == silent
    assert all(isinstance(error, TransportError) for error in errors.values())
    assert sorted(done) == sorted(answering)


def test_a_host_that_waits_for_a_worker_is_not_late():
    """
    The limit counts from when its own work begins: a fleet may take longer than one host may.
    """
    names = map(str, range(5 * WORKERS))  # five rounds of 0.3 s

    assert on_each(names, lambda _: threading.Event().wait(0.3), within_s=1.2) == {}


def test_work_that_was_given_up_starts_no_other():
    """
    Its worker was replaced when it was given up.
    """
    release, threads = threading.Event(), set()

    def work(name):
        threads.add((threading.get_ident(), name))
        if name == "silent":
            release.wait(60)

    errors = on_each(["silent", *map(str, range(200))], work, within_s=0.1)
    worker = next(ident for ident, name in threads if name == "silent")
    release.set()

    assert set(errors) == {"silent"}
    assert [name for ident, name in threads if ident == worker].count("silent") == 1
