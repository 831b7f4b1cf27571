"""
Checks and retries over two slots, as a real HAProxy with the rendered configuration does them.
"""

import contextlib
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.host.slots.haproxy import Haproxy
from tests.local_host import short_directory
from tests.unit.deploy.provision.public_port import DEADLINE_S, PROGRAM
from tests.unit.deploy.provision.two_slots import KeepAliveClients, TwoSlots

NUMBERED = range(20)


@pytest.fixture
def started():
    """
    Return a function that starts HAProxy and two slots with the changes that it is given.
    """
    if not Path(PROGRAM).exists():
        pytest.skip("haproxy is not installed: apt-get install haproxy")
    with contextlib.ExitStack() as stack:

        def start(folder=None, **changes):
            folder = folder or Path(stack.enter_context(short_directory()))
            port = stack.enter_context(contextlib.closing(TwoSlots(folder, **changes)))
            if "status" not in changes:
                port.all_up()
            return port

        yield start


def replaced(*pairs):
    """
    Return an edit that replaces each old text by its new one.
    """

    def edit(text):
        for old, new in pairs:
            assert old in text, old
            text = text.replace(old, new)
        return text

    return edit


DISABLED = replaced(("weight 100", "weight 100 disabled"))  # as rendered


def bodies(kind):
    return [f"{kind} {number}".encode() for number in NUMBERED]


# Late checks


@pytest.mark.parametrize("ready_after_s", [0.07, 0.2, 0.4])
def test_a_check_within_its_time_takes_no_slot_out(started, ready_after_s):
    """
    Both backends say UP all the time, also where it takes longer than the time between two checks.
    """
    # Not a tenth of 5 s: on a busy machine an answer may come half a second late.
    port = started(edit=replaced(("timeout check 500ms", "timeout check 5s")))
    for slot in port.slots.values():
        slot.ready_after_s = ready_after_s
    until_s = time.monotonic() + 4 * ready_after_s + 0.5
    while time.monotonic() < until_s:
        seen = {port.stat(b, s)["status"] for b in ("runtime", "timely") for s in port.slots}
        assert seen == {"UP"}
        time.sleep(0.02)


def test_the_times_of_checks_are_those_of_the_manual(started):
    """
    The tests here divide them by ten; docs/reference/haproxy.md names them.
    """
    page = Path("docs/reference/haproxy.md").read_text()
    for span in ("5 s", "500 ms", "1 s", "1 h"):
        assert span in page
    rendered = Path("tests/golden/haproxy.cfg").read_text()
    assert re.findall(r"timeout check (\S+)", rendered) == ["1h", "5s"]
    assert re.findall(r"inter (\S+) fall (\d) rise (\d)", rendered) == [
        ("500ms", "2", "1"),
        ("1s", "2", "1"),
    ]


WAYS_OUT = {
    "ended": lambda port: (port.green.end(), port.wait_status("green", "DOWN")),
    "maint": lambda port: port.set("green", state="maint"),
    "drain": lambda port: port.set("green", state="drain"),
    "weight": lambda port: port.set("green", weight=0),
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_late_checks_never_take_the_last_slot_out(started, way):
    """
    It answers requests, so it gets them; the slot that is out gets none.
    """
    port = started()
    WAYS_OUT[way](port)
    port.blue.ready_after_s = None
    port.wait_status("blue", "DOWN", "timely")
    assert port.stat("runtime", "blue")["status"] == "UP"
    assert port.send_each(bodies("x")) == [200] * len(NUMBERED)
    assert port.green.bodies == []


def test_with_one_limit_for_both_questions_users_get_503(started):
    """
    Negative control: a slot that answers requests is DOWN.
    """
    port = started(edit=replaced(("timeout check 1h", "timeout check 500ms")))
    port.set("green", state="maint")
    port.blue.ready_after_s = None
    port.wait_status("blue", "DOWN")
    assert set(port.send_each(bodies("x"))) == {503}
    assert port.blue.bodies == []


def test_a_late_slot_gets_nothing_while_the_other_one_can(started):
    """
    Also where it has most of the traffic; when it answers in time again it gets its share.
    """
    port = started()
    port.set("blue", weight=90)
    port.set("green", weight=10)
    port.blue.ready_after_s = None
    port.wait_status("blue", "DOWN", "timely")
    assert port.send_each(bodies("late")) == [200] * len(NUMBERED)
    assert port.blue.bodies == []
    port.blue.ready_after_s = 0.0
    port.wait_status("blue", "UP", "timely")
    assert port.send_each(bodies("again")) == [200] * len(NUMBERED)
    assert len(port.blue.bodies) == 18


def test_a_late_slot_is_late_and_not_up(started):
    """
    For `inv status`, and for whatever would give it traffic; each other status is HAProxy's own.
    """
    port = started()
    proxy = Haproxy(SimpleNamespace(haproxy=port.ask))

    def seen():
        return {name: (server.status, server.is_up) for name, server in proxy.servers().items()}

    assert seen() == {"blue": ("UP", True), "green": ("UP", True)}
    port.blue.ready_after_s = None
    port.wait_status("blue", "DOWN", "timely")
    assert seen() == {"blue": ("LATE", False), "green": ("UP", True)}
    port.set("blue", state="maint")
    assert seen()["blue"] == ("MAINT", False)


def test_a_slot_that_hangs_from_its_start_is_not_up(started):
    """
    It leaves maint and never answers a check: a release waits for it in vain and keeps its weight.
    """
    port = started()
    port.set("green", state="maint")
    port.green.ready_after_s = None
    port.wait_status("green", "DOWN", "timely")
    port.set("green", weight=0, state="ready")
    time.sleep(0.5)
    proxy = Haproxy(SimpleNamespace(haproxy=port.ask))
    assert not proxy.servers()["green"].is_up


def test_without_its_rules_a_late_slot_gets_its_share(started):
    """
    Negative control.
    """
    port = started(edit=lambda text: re.sub(r"(?m)^ +use-server .*\n", "", text))
    port.blue.ready_after_s = None
    port.wait_status("blue", "DOWN", "timely")
    port.send_each(bodies("late"))
    assert len(port.blue.bodies) == len(NUMBERED) // 2


def test_two_late_slots_share_as_their_weights_say(started):
    """
    A host that is busy as a whole goes on as it was.
    """
    port = started()
    port.set("blue", weight=90)
    port.set("green", weight=10)
    for slot in port.slots.values():
        slot.ready_after_s = None
    for name in port.slots:
        port.wait_status(name, "DOWN", "timely")
    assert port.send_each(bodies("x")) == [200] * len(NUMBERED)
    assert (len(port.blue.bodies), len(port.green.bodies)) == (18, 2)


def test_a_late_slot_takes_over_from_one_that_ended(started):
    """
    Before any check has found out: a refused connection goes to the other slot.
    """
    port = started()
    port.green.ready_after_s = None
    port.wait_status("green", "DOWN", "timely")
    port.blue.end()
    assert port.send_each(bodies("x")) == [200] * len(NUMBERED)
    assert len(port.green.bodies) == len(NUMBERED)


# Retries


def test_a_request_that_ends_an_engine_reaches_one_slot_once(started):
    """
    The runtime answers 502 for it, which HAProxy passes on.
    """
    port = started()
    assert port.send_each(bodies("502")) == [502] * len(NUMBERED)
    assert set((port.blue.counts + port.green.counts).values()) == {1}


@pytest.mark.parametrize("kind", ["500", "close", "kill"])
def test_a_request_reaches_each_slot_once_at_most(started, kind):
    """
    A 500, an end without an answer, or one that ends the whole slot.
    """
    port = started()
    for body in bodies(kind):
        port.all_up()
        assert port.send_each([body])[0] in (500, 502)
    for slot in port.slots.values():
        assert slot.counts == dict.fromkeys(bodies(kind), 1)


@pytest.mark.parametrize("kind", ["500", "close"])
def test_with_two_retries_a_slot_gets_the_same_request_twice(started, kind):
    """
    Negative control: the second retry returns to the first slot.
    """
    port = started(edit=replaced(("retries 1", "retries 2")))
    port.send_each(bodies(kind))
    assert max(port.blue.counts.values()) == 2
    assert set((port.blue.counts + port.green.counts).values()) == {3}


def end_in_the_middle(port):
    """
    End a slot that computes requests; return the clients, stopped, and what it was computing.
    """
    port.blue.work_s = 60.0
    clients = KeepAliveClients(port, 10)
    until_s = time.monotonic() + DEADLINE_S
    while len(port.blue.bodies) < 5:
        assert time.monotonic() < until_s, "no requests in flight"
        time.sleep(0.01)
    port.blue.end()
    time.sleep(0.5)
    clients.stop()
    return clients, list(port.blue.bodies)


def test_a_slot_that_ends_loses_no_request(started):
    """
    What it was computing is computed by the other slot, once.
    """
    port = started()
    clients, in_flight = end_in_the_middle(port)
    assert clients.lost == []
    assert all(port.green.counts[body] == 1 for body in in_flight)
    assert max((*port.blue.counts.values(), *port.green.counts.values())) == 1


def test_without_retries_a_slot_that_ends_loses_what_it_computes(started):
    """
    Negative control.
    """
    line = "retry-on conn-failure empty-response 500"
    port = started(edit=replaced((line, "retry-on conn-failure")))
    clients, in_flight = end_in_the_middle(port)
    assert set(in_flight) <= set(clients.lost)
    assert max((port.blue.counts + port.green.counts).values()) == 1


# Restarts


def test_the_first_start_sends_nothing(started):
    """
    Both slots are in maint until a release gives them traffic, whatever their checks say.
    """
    port = started(edit=DISABLED, status="MAINT")
    for name in port.slots:
        port.wait_status(name, "UP", "timely")
        port.wait_status(name, "MAINT")
    assert port.send_each(bodies("x")) == [503] * len(NUMBERED)
    assert port.blue.bodies == port.green.bodies == []


@pytest.mark.parametrize("of_older", [False, True])
def test_shares_outlive_a_restart(started, of_older):
    """
    From the state file, over `disabled`; also one of a configuration without the second backend.
    """
    with short_directory() as name:
        folder = Path(name)
        port = started(folder, edit=DISABLED, status="MAINT")
        port.set("blue", weight=90, state="ready")
        port.set("green", weight=10, state="drain")
        port.green.ready_after_s = None
        port.wait_status("green", "DOWN", "timely")
        state = port.ask("show servers state")
        if of_older:
            state = "".join(line for line in state.splitlines(True) if " timely " not in line)
        assert (" timely " in state) is not of_older
        port.close()
        (folder / "haproxy.state").write_text(state)

        again = started(folder, edit=DISABLED, status="UP")
        rows = {slot: again.stat("runtime", slot) for slot in again.slots}
        assert {slot: row["weight"] for slot, row in rows.items()} == {"blue": "90", "green": "10"}
        again.wait_status("blue", "UP")
        again.wait_status("green", "DRAIN")
        for slot in again.slots:
            again.wait_status(slot, "UP", "timely")
        assert again.send_each(bodies("x")) == [200] * len(NUMBERED)
        assert again.green.bodies == []
