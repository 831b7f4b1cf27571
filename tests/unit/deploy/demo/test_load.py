"""
The generator as its users hold it: a process, a report, and an end.
"""

import asyncio
import contextlib
import os
import threading

import pytest

from deploy.demo.load import LoadGenerator
from deploy.errors import CommandFailed, UsageError
from deploy.lab.config import LabConfig
from tests.unit.deploy.demo.server import RESET, Server, answer


@contextlib.contextmanager
def served(script):
    """
    Serve *script* from a thread of its own; yields the server and a function that waits for it.
    """
    ready, loop = threading.Event(), asyncio.new_event_loop()
    found = {}

    async def scene():
        found["stop"] = asyncio.Event()
        async with Server(script) as server:
            found["server"] = server
            ready.set()
            await found["stop"].wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(scene(),), daemon=True)
    thread.start()
    assert ready.wait(5)
    server = found["server"]

    def wait_for(count):
        asyncio.run_coroutine_threadsafe(server.wait_for(count), loop).result(15)

    yield server, wait_for
    loop.call_soon_threadsafe(found["stop"].set)
    thread.join(5)


def make_generator(*targets, **changes):
    given = {"prompts": ["a"], "rate_rps": 200, "connections": 4, "timeout_s": 3} | changes
    return LoadGenerator(list(targets), **given)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_counts_what_the_server_counted():
    """
    One of ten is reset; the report of the whole run has exactly those.
    """
    with served(lambda n, body: [RESET] if n % 10 == 9 else answer()) as (server, wait_for):
        generator = make_generator(server.url)
        generator.start()
        wait_for(40)
        before = generator.snapshot()
        report = generator.stop()

        assert before.requests <= report.requests == len(server.bodies)
        assert report.lost_requests == len(server.bodies) // 10 > 0
        assert generator.stop() == report
        assert generator.pid is not None
        assert not is_running(generator.pid)


def test_leaving_the_block_stops_the_process():
    """
    An error in what the traffic is for does not leave the traffic behind.
    """
    with served(lambda n, body: answer()) as (server, wait_for):
        generator = make_generator(server.url)
        with contextlib.suppress(ZeroDivisionError), generator:
            wait_for(3)
            raise ZeroDivisionError
        assert generator.pid is not None
        assert not is_running(generator.pid)


def test_a_load_that_ended_early_is_no_clean_report():
    """
    Nothing lost by a generator that was not running proves nothing.
    """
    with served(lambda n, body: answer()) as (server, _):
        generator = make_generator(server.url, deadline_s=0.2)
        generator.start()
        assert generator._process is not None
        generator._process.wait(10)
        with pytest.raises(CommandFailed, match="ended before it was stopped"):
            generator.stop()
        assert generator.stop().requests > 0


def test_a_client_that_was_killed_is_no_clean_report():
    """
    The same when the process died in the middle.
    """
    with served(lambda n, body: answer()) as (server, wait_for):
        generator = make_generator(server.url)
        generator.start()
        wait_for(3)
        assert generator._process is not None
        generator._process.kill()
        generator._process.wait(10)
        with pytest.raises(CommandFailed):
            generator.stop()


@pytest.mark.parametrize(
    "target",
    [
        "http://10.20.0.11:8000",
        "http://192.0.2.1:80",
        "http://example.com",
        "http://localhost.example.com:8000",
        "https://127.0.0.1:8000",
        "127.0.0.1:8000",
        "file:///etc/passwd",
        "http://127.0.0.1@192.0.2.1:80",
        "",
    ],
)
def test_load_goes_to_the_lab_only(target):
    """
    A name, a foreign address or another scheme is refused before anything is sent.
    """
    with pytest.raises(UsageError):
        make_generator(target)


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:8000", "http://10.78.0.14:8000/", "http://[::1]:8000"]
)
def test_the_lab_and_loopback_are_allowed(target):
    """
    Their addresses become the targets, and would be refused if their networks were not named.
    """
    assert make_generator(target)._targets == [target.rstrip("/")]
    with pytest.raises(UsageError, match="load is refused"):
        make_generator(target, networks=["192.0.2.0/24"])


def test_every_address_of_the_lab_is_allowed():
    """
    The network that is allowed by default is that of the lab's hosts; the one beside it is not.
    """
    address = LabConfig.from_env({}).address("n1")
    assert make_generator(f"http://{address}:8000")._targets == [f"http://{address}:8000"]
    first, second, third, host = address.split(".")
    with pytest.raises(UsageError, match="load is refused"):
        make_generator(f"http://{first}.{second}.{int(third) + 1}.{host}:8000")


def test_other_networks_are_named_or_allowed_explicitly():
    """
    A lab with other addresses is named; anything else has to be meant.
    """
    assert make_generator("http://10.99.0.11:8000", networks=["10.99.0.0/24"])
    assert make_generator("http://example.com:8000", allow_any=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate_rps": 0},
        {"rate_rps": 5000},
        {"connections": 0},
        {"connections": 1000},
        {"streams": -1},
        {"prompts": []},
        {"timeout_s": 0},
    ],
)
def test_a_load_outside_its_range_is_refused(wrong):
    """
    Before a process is started.
    """
    with pytest.raises(UsageError):
        make_generator("http://127.0.0.1:1", **wrong)
