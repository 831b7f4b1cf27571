"""
The load generator as its callers use it: start, snapshot, stop.
"""

import asyncio
import contextlib
import os
import threading
from urllib.parse import urlsplit

import pytest

from deploy.demo.load import LoadGenerator
from deploy.errors import CommandFailed, UsageError, hide_passwords
from deploy.lab.config import LabConfig
from tests.unit.deploy.demo.server import RESET, Server, answer


@contextlib.contextmanager
def served(script):
    """
    Serve *script* in a thread; yield the server and a function that waits for its requests.
    """
    ready, loop = threading.Event(), asyncio.new_event_loop()
    shared = {}

    async def serve():
        shared["stop"] = asyncio.Event()
        async with Server(script) as server:
            shared["server"] = server
            ready.set()
            await shared["stop"].wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(60)
    server = shared["server"]

    def wait_for(count):
        asyncio.run_coroutine_threadsafe(server.wait_for(count), loop).result(60)

    yield server, wait_for
    loop.call_soon_threadsafe(shared["stop"].set)
    thread.join(60)


def make_generator(*targets, **changes):
    arguments = {"prompts": ["a"], "rate_rps": 200, "connections": 4, "timeout_s": 30} | changes
    return LoadGenerator(list(targets), **arguments)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_run_counts_what_the_server_counted():
    """
    One request of ten is reset; exactly these are lost in the report of the whole run.
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
    Also when the block raises an error.
    """
    with served(lambda n, body: answer()) as (server, wait_for):
        generator = make_generator(server.url)
        with contextlib.suppress(ZeroDivisionError), generator:
            wait_for(3)
            raise ZeroDivisionError
        assert generator.pid is not None
        assert not is_running(generator.pid)


def test_a_load_that_ended_early_is_an_error():
    """
    Its report covers only a part of the time, so "no loss" would prove nothing.
    """
    with served(lambda n, body: answer()) as (server, _):
        generator = make_generator(server.url, deadline_s=0.5)
        generator.start()
        assert generator._process is not None
        generator._process.wait(60)
        with pytest.raises(CommandFailed, match="ended before it was stopped"):
            generator.stop()
        assert generator.stop().requests == len(server.bodies)


def test_a_killed_client_is_an_error():
    """
    For the same reason.
    """
    with served(lambda n, body: answer()) as (server, wait_for):
        generator = make_generator(server.url)
        generator.start()
        wait_for(3)
        assert generator._process is not None
        generator._process.kill()
        generator._process.wait(60)
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
def test_a_target_outside_the_lab_and_loopback_is_refused(target):
    """
    A name, another network's address or another scheme is refused before anything is sent.
    """
    with pytest.raises(UsageError, match="load") as raised:
        make_generator(target)

    assert hide_passwords(target) in raised.value.what
    assert raised.value.why.startswith(
        ("a target has the form", f"{urlsplit(target).hostname} is not an address in 127.0.0.0/8")
    )


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:8000", "http://10.78.0.14:8000/", "http://[::1]:8000"]
)
def test_the_lab_and_loopback_are_allowed(target):
    """
    The generator sends to exactly this target.  Without its network, the same target is refused.
    """
    assert make_generator(target).snapshot().targets == (target.rstrip("/"),)
    with pytest.raises(UsageError, match="not allowed"):
        make_generator(target, networks=["192.0.2.0/24", "2001:db8::/32"])


def test_with_an_authority_only_https_is_allowed(tmp_path):
    """
    A token must not be sent in the clear.
    """
    authority = tmp_path / "slipway-ca.pem"
    target = "https://127.0.0.1:8000"
    assert make_generator(target, authority=authority).snapshot().targets == (target,)
    with pytest.raises(UsageError, match="not a target") as raised:
        make_generator("http://127.0.0.1:8000", authority=authority)
    assert "https://ADDRESS:PORT" in raised.value.why


def test_every_address_of_the_default_lab_is_allowed():
    """
    The allowed network is that of the default lab's hosts; the next network is refused.
    """
    address = LabConfig.from_env({}).address("n1")
    first, second, third, host = address.split(".")
    neighbour = f"{first}.{second}.{int(third) + 1}.{host}"

    assert make_generator(f"http://{address}:80").snapshot().targets == (f"http://{address}:80",)
    with pytest.raises(UsageError, match="not allowed"):
        make_generator(f"http://{neighbour}:80")


@pytest.mark.parametrize(
    ("target", "permission"),
    [
        ("http://10.99.0.11:8000", {"networks": ["10.99.0.0/24"]}),
        ("http://example.com:8000", {"allow_any": True}),
    ],
)
def test_other_targets_need_an_explicit_permission(target, permission):
    """
    The network of another lab, or `allow_any` for every target.
    """
    assert make_generator(target, **permission).snapshot().targets == (target,)
    with pytest.raises(UsageError, match="not allowed"):
        make_generator(target)


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
def test_a_number_out_of_its_range_is_refused(wrong):
    """
    The error names the argument, its value and the range.
    """
    [name] = wrong
    with pytest.raises(UsageError, match=f"{name} is out of range"):
        make_generator("http://127.0.0.1:1", **wrong)


def test_a_load_without_targets_is_refused():
    with pytest.raises(UsageError, match="number of targets is out of range"):
        make_generator()
