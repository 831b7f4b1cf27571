import os
import socket

import pytest

from runtime.contract.errors import ConfigError
from runtime.server import notify
from runtime.server.notify import Notifier, Watchdog
from tests.hostile_text import CORPUS, complaints


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def received(listening):
    messages = []
    while True:
        try:
            messages.append(listening.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_messages_follow_sd_notify(manager):
    """
    Each call sends one datagram in systemd's format.
    """
    notifier = Notifier(manager.getsockname())
    notifier.status("loading")
    notifier.ready("serving v1")
    notifier.stopping("draining")

    assert received(manager) == [
        "STATUS=loading",
        "READY=1\nSTATUS=serving v1",
        "STOPPING=1\nSTATUS=draining",
    ]


def test_an_abstract_address_is_supported():
    """
    A leading @ stands for the NUL of an abstract socket.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0slipway-test-{os.getpid()}")
        Notifier(f"@slipway-test-{os.getpid()}").status("here")
        assert listening.recv(100) == b"STATUS=here"


@pytest.mark.parametrize("address", [None, "/nowhere/notify"])
def test_the_runtime_works_without_a_manager(address):
    """
    Started by hand, or after the manager is gone.
    """
    Notifier(address).ready("serving")


def test_the_watchdog_applies_only_to_watchdog_pid():
    """
    WATCHDOG_USEC counts for the process that WATCHDOG_PID names.
    """
    mine = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_env(mine).watchdog_s == 30.0
    assert Notifier.from_env(mine | {"WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier.from_env({}).watchdog_s is None


def test_heartbeats_are_rate_limited_and_never_invented(manager):
    """
    A hundred beats in a period send a few messages; no beat sends none.
    """
    watchdog = Watchdog(Notifier(manager.getsockname(), watchdog_s=10.0))
    assert received(manager) == []
    for tenth in range(100):
        watchdog.beat(tenth / 10)
    assert received(manager) == ["WATCHDOG=1"] * 5


@pytest.mark.parametrize("usec", ["abc", "-5", "1e6", "\u0663", "9" * 5000])
def test_a_watchdog_of_no_number_is_named(usec):
    """
    Before the engine is started.
    """
    assert Notifier.from_env({"WATCHDOG_USEC": ""}).watchdog_s is None
    with pytest.raises(ConfigError, match="WATCHDOG_USEC"):
        Notifier.from_env({"WATCHDOG_USEC": usec})


def test_without_a_watchdog_nothing_is_fed(manager):
    """
    A unit without WatchdogSec gets no message.
    """
    Watchdog(Notifier(manager.getsockname())).beat(1.0)
    assert received(manager) == []


INJECTED = "lab\nMAINPID=1\nEXTEND_TIMEOUT_USEC=999999999\nFDSTORE=1"


@pytest.mark.parametrize("kind", ["status", "ready", "stopping"])
@pytest.mark.parametrize(
    "text", [*CORPUS, INJECTED, "五" * 5000], ids=lambda text: ascii(text)[:40]
)
def test_a_text_adds_no_assignment(manager, kind, text):
    """
    A datagram is lines of NAME=VALUE; systemd ignores one of more than 4,096 bytes.
    """
    getattr(Notifier(manager.getsockname()), kind)(text)
    (message,) = received(manager)
    names = [line.partition("=")[0] for line in message.split("\n")]
    assert names == {"status": [], "ready": ["READY"], "stopping": ["STOPPING"]}[kind] + ["STATUS"]
    assert len(message.encode()) <= 4096
    assert complaints(message.encode()) == []


def test_the_lines_of_an_error_become_one():
    """
    What and why, for `systemctl status`.
    """
    error = ConfigError("model: missing", why="no file", fix="add it")
    assert notify._one_line(f"failed: {error}") == (
        "failed: model: missing; why: no file; fix: add it"
    )


def test_without_the_guard_a_text_is_obeyed(manager, monkeypatch):
    """
    Negative control: the name of a model extends the time that systemd waits.
    """
    monkeypatch.setattr(notify, "_one_line", lambda text: text)
    Notifier(manager.getsockname()).status(f"loading {INJECTED}")
    assert "EXTEND_TIMEOUT_USEC=999999999" in received(manager)[0].split("\n")


@pytest.mark.timeout(30)
def test_a_heartbeat_never_waits_for_a_busy_manager(manager):
    """
    Its queue is full: with a second for each, these would take minutes, and requests with them.
    """
    notifier = Notifier(manager.getsockname())
    for _ in range(300):
        notifier.watchdog()
    kept = received(manager)
    assert 0 < len(kept) < 300, "the control: the queue was full"
    notifier.watchdog()
    assert received(manager) == ["WATCHDOG=1"]
