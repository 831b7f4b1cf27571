"""
Reboots in waves, of hosts that run the real host program.
"""

import _thread
import hashlib
import threading
import time
from pathlib import Path

import pytest

from deploy.errors import CommandFailed, LeaseHeld, PreconditionError, TransportError
from deploy.host.journal import Journal
from deploy.host.journaled import intent_of
from deploy.host.protocol import (
    Call,
    DeadmanArm,
    DoorSet,
    JournalAppend,
    LeaseAcquire,
    Reboot,
    Status,
    VenvBuild,
    VenvBuilt,
)
from deploy.host.tree import UNCOMPARED
from deploy.leases.keeper import LeaseKeeper
from deploy.provision.reboots import RebootPolicy, Reboots
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import ComparedTorch, File, Venv
from deploy.provision.window import parse_window
from tests.local_fleet import local_fleet
from tests.local_host import ANSWER_LOST

NAMES = ("n1", "n2", "n3")
FACTS_S = 77.0


class World:
    """
    Three hosts that serve v1, and all of which need a reboot.

    Attributes:
        reboots: Hosts in the order of their reboots, each with all hosts whose door was closed.
    """

    def __init__(self, fleet):
        self.fleet, self.reboots, self.events = fleet, [], []
        fleet.requests_per_s = 0  # a balancer that looks at /readyz
        for name in NAMES:
            self.need(name)
            fleet.system(name).at_reboot = lambda name=name: self.reboot(name)

    def path(self, name, path):
        return Path(self.fleet.system(name).layout.root, path)

    def need(self, name):
        self.path(name, "run/reboot-required").touch()

    def reboot(self, name):
        self.reboots.append((name, self.closed()))
        self.fleet.system(name).reboot()

    def closed(self):
        return {name for name in NAMES if self.fleet.system(name).proxy.door == "maint"}

    def run(self, waves="1", *, chosen=NAMES, owner="me", wanted=None, **policy):
        keeper = LeaseKeeper(
            self.fleet.clients,
            owner=owner,
            release="reboot",
            ttl_s=15.0,
            clock=self.fleet.clock,
            needs_settled=True,
        )
        options = {"window": None, "interrupts": False, "drain_s": 30.0, "start_s": 60.0}
        options["facts_s"] = FACTS_S
        return Reboots(
            self.fleet.clients,
            chosen,
            keeper,
            wanted or {},
            RebootPolicy(tuple(waves.split(",")), back_s=120.0, **options | policy),
            self.fleet.clock,
            self.events.append,
        ).run()

    def said(self, name):
        return [event.change for event in self.events if event.host == name]


@pytest.fixture
def world():
    with local_fleet(*NAMES) as fleet:
        yield World(fleet)


def test_all_are_rebooted_wave_by_wave(world):
    """
    No more than the wave is away, every host serves afterwards, and all leases are given back.
    """
    outcome = world.run("1,100%")
    assert (outcome.rebooted, outcome.left, outcome.error) == (NAMES, {}, None)
    assert world.reboots[0] == ("n1", {"n1"})
    assert {name for name, _ in world.reboots[1:]} == {"n2", "n3"}
    assert all(closed <= {"n2", "n3"} for _, closed in world.reboots[1:])
    assert world.closed() == set()
    assert [world.fleet.lease_owner(name) for name in NAMES] == [None] * 3
    assert world.said("n1")[-2:] == ["v1 answers through the public port", None]
    assert world.run().rebooted == ()


def test_hosts_that_were_not_chosen_are_left(world):
    """
    And hosts that need no reboot.
    """
    world.path("n2", "run/reboot-required").unlink()
    assert world.run(chosen=("n2", "n3")).rebooted == ("n3",)
    assert [name for name, _ in world.reboots] == ["n3"]


def test_a_lost_answer_is_no_lost_host(world):
    """
    The connection usually ends before the host has answered.
    """
    for name in NAMES:
        world.fleet[name].fail(Reboot.VERB, ANSWER_LOST)
    assert world.run().rebooted == NAMES


def test_a_host_that_does_not_come_back_stops_the_run(world):
    """
    It takes no requests, and the same command goes on once it answers.
    """

    def die():
        world.reboot("n1")
        world.fleet["n1"].is_cut = True

    world.fleet.system("n1").at_reboot = die
    first = world.run()
    assert isinstance(first.error, TransportError)
    assert first.error.host == "n1"
    assert "did not come back" in str(first.error)
    assert (first.rebooted, set(first.left)) == ((), set(NAMES))
    assert world.closed() == {"n1"}

    away = world.run(chosen=("n2", "n3"))
    assert isinstance(away.error, PreconditionError)
    assert "n1: away already" in str(away.error)

    world.fleet["n1"].is_cut = False
    second = world.run()
    assert (second.rebooted, second.error) == (NAMES, None)
    assert [name for name, _ in world.reboots] == list(NAMES)
    assert world.closed() == set()


def test_a_host_that_answers_in_its_old_boot_was_not_rebooted(world):
    """
    However long it answers; it stays closed.
    """
    world.fleet.system("n1").at_reboot = lambda: None
    outcome = world.run()
    assert "n1: was not rebooted" in str(outcome.error)
    assert (outcome.rebooted, world.closed()) == ((), {"n1"})


def test_a_killed_run_is_gone_on_with(world):
    """
    The host that it left closed comes first, whether it was rebooted or not.
    """
    for name in ("n2", "n3"):
        client = world.fleet.clients[name]
        client.fence = client.call(LeaseAcquire("killed", 5.0)).fence
        client.call(DoorSet(is_open=False))
    world.fleet.system("n3").reboot()
    world.fleet.clock.sleep(10)

    assert world.run("2").error is None
    assert [name for name, _ in world.reboots] == ["n2", "n1"]
    assert world.closed() == set()


def test_a_host_that_still_gets_requests_is_opened_again(world):
    """
    Nothing in front of it looks at /readyz.  With --interrupt it is rebooted all the same.
    """
    world.fleet.on_sleep = lambda: world.fleet.system("n1").answer("blue", 3)
    outcome = world.run()
    assert "still gets requests" in str(outcome.error)
    assert "--interrupt" in outcome.error.fix
    assert (world.reboots, world.closed()) == ([], set())
    assert world.run(interrupts=True).rebooted == NAMES


def test_a_request_in_flight_is_waited_for(world):
    """
    Until the end of the drain.
    """
    server = world.fleet.system("n1").proxy.servers["blue"]
    server.sessions = 1
    assert "1 were in flight" in world.run(chosen=("n1",)).error.why
    began_s = world.fleet.clock.monotonic_s()

    def end_at_20_s():
        if world.fleet.clock.monotonic_s() - began_s > 20:
            server.sessions = 0

    world.fleet.on_sleep = end_at_20_s
    assert world.run(chosen=("n1",)).rebooted == ("n1",)


def test_a_reason_that_stays_is_no_success(world):
    """
    No other host is rebooted; this one serves again, because a closed door would mend nothing.
    """

    def reboot_in_vain():
        world.reboot("n1")
        world.need("n1")

    world.fleet.system("n1").at_reboot = reboot_in_vain
    outcome = world.run()
    assert "still needs a reboot" in str(outcome.error)
    assert "as before" in outcome.error.why
    assert "it serves again" in outcome.error.fix
    assert (outcome.rebooted, world.closed(), len(world.reboots)) == ((), set(), 1)


def test_a_new_reason_keeps_a_host_closed(world):
    """
    Negative control: the next run goes on with it.
    """

    def reboot_into_another_reason():
        world.reboot("n1")
        world.need("n1")
        world.path("n1", "run/reboot-required.pkgs").write_text("linux-image\n")

    world.fleet.system("n1").at_reboot = reboot_into_another_reason
    outcome = world.run()
    assert "still needs a reboot" in str(outcome.error)
    assert (world.closed(), len(world.reboots)) == ({"n1"}, 1)


def test_a_host_that_serves_otherwise_stays_closed_also_in_vain(world):
    """
    The reason alone opens the door, never before the host is compared and asked.
    """

    def reboot_in_vain():
        world.reboot("n1")
        world.need("n1")

    world.fleet.system("n1").at_reboot = reboot_in_vain
    file = File(path="/etc/pinned", content=b"", owner="root", group="root")
    outcome = world.run(wanted={"n1": ResourceSet(requirements=(), placed=(file,), running=())})
    assert "these differ: /etc/pinned" in str(outcome.error)
    assert world.closed() == {"n1"}


def test_a_host_that_does_not_serve_afterwards_stays_closed(world):
    """
    Its slot has the traffic and does not start.
    """
    world.fleet.system("n1").unit_of("blue").starts = "exit"
    outcome = world.run()
    assert "does not serve" in str(outcome.error)
    assert (world.closed(), len(world.reboots)) == ({"n1"}, 1)


def test_a_host_that_is_not_as_pinned_afterwards_stays_closed(world):
    """
    Of the others the same files are asked, and found.
    """
    file = File(path="/etc/pinned", content=b"", owner="root", group="root")
    for name in ("n2", "n3"):
        path = world.path(name, "etc/pinned")
        path.parent.mkdir(exist_ok=True)
        path.touch()
        path.chmod(int(file.mode, 8))
    wanted = ResourceSet(requirements=(), placed=(file,), running=())
    limits, transport = [], world.fleet["n1"]
    run = transport.run

    def recorded(argv, *, timeout_s, **options):
        limits.append((argv[-1], timeout_s))
        return run(argv, timeout_s=timeout_s, **options)

    transport.run = recorded
    outcome = world.run(wanted=dict.fromkeys(NAMES, wanted))
    # As long as provisioning waits for them.
    assert [limit for verb, limit in limits if verb == "facts"] == [FACTS_S]
    assert "these differ: /etc/pinned" in str(outcome.error)
    assert world.closed() == {"n1"}
    later = world.run(wanted=dict.fromkeys(("n2", "n3"), wanted))
    assert (later.rebooted, later.error) == (NAMES, None)


def mark_environment(world, name):
    """
    Give a host a GPU, and an environment whose torch no GPU has compared yet.
    """
    lock = "torch==9.0+cu130\n"
    venv = Venv(
        digest=hashlib.sha256(lock.encode()).hexdigest(),
        text=lock,
        python="3.11",
        wheels=(),
        torch="9.0+cu130",
    )
    gpu = world.path(name, "proc/driver/nvidia/gpus/0000:01:00.0")
    gpu.mkdir(parents=True)
    (gpu / "information").write_text("Model:  NVIDIA H100 80GB HBM3\n")
    world.path(name, "sys/module/nvidia_uvm").mkdir(parents=True)
    mark = world.path(name, venv.path.lstrip("/")) / UNCOMPARED
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return venv, mark


@pytest.mark.parametrize("agrees", [True, False])
def test_torch_that_waited_for_the_driver_is_compared_before_the_door_is_opened(world, agrees):
    """
    A host whose driver and row changed in one run was rebooted for both.
    """
    venv, mark = mark_environment(world, "n1")
    wanted = ResourceSet(requirements=(), placed=(), running=(ComparedTorch(venv=venv),))
    client, asked = world.fleet.clients["n1"], []
    call = client.call

    def compared(request, **options):
        if not isinstance(request, VenvBuild):
            return call(request, **options)
        asked.append((request, world.closed()))
        if not agrees:
            raise CommandFailed("torch", why="a product differs", fix="nvidia-smi", host="n1")
        mark.unlink()
        return VenvBuilt(built=False, took_s=0.0, full_gpus=(1, 3))

    client.call = compared
    outcome = world.run(chosen=("n1",), wanted={"n1": wanted})
    assert asked == [(venv.build_request, {"n1"})]
    full = "torch not compared on GPUs without free memory: 1, 3"  # slots started at this boot
    assert (full in world.said("n1")) is agrees
    assert (outcome.rebooted, outcome.error is None) == (("n1",) if agrees else (), agrees)
    assert world.closed() == (set() if agrees else {"n1"})


def test_the_window_is_judged_before_each_wave(world):
    """
    The hosts whose turn it was no longer are left; the next run goes on with them.
    """
    window = parse_window("00:16-00:17 UTC")
    outcome = world.run(window=window)
    assert "window for reboots is closed" in str(outcome.error)
    assert outcome.rebooted == NAMES[: len(outcome.rebooted)]
    assert 1 <= len(outcome.rebooted) < 3
    assert set(outcome.left) == set(NAMES) - set(outcome.rebooted)
    assert world.closed() == set()
    assert world.run(window=parse_window("00:00-23:00 UTC")).error is None


@pytest.mark.parametrize("state", ["pending", "begun", "held"])
def test_nothing_begins_beside_a_release(world, state):
    """
    One that is not confirmed, one that was interrupted, or one whose operator is at work.
    """
    client = world.fleet.clients["n3"]
    client.release, client.fence = "r7", client.call(LeaseAcquire("ann", 20.0)).fence
    if state == "pending":
        client.call(DeadmanArm("green", "blue"))
    elif state == "begun":
        client.call(JournalAppend("release.begin", {"bundle": "b" * 64}))
    if state != "held":
        world.fleet.clock.sleep(30)
    outcome = world.run()
    kind = LeaseHeld if state == "held" else PreconditionError
    assert isinstance(outcome.error, kind), outcome.error
    assert (world.reboots, world.closed()) == ([], set())


@pytest.mark.parametrize("purpose", ["reboot", "provision"])
def test_an_interrupted_run_is_no_open_release(world, purpose):
    """
    Its last verb has no result: the host program was killed while HAProxy was told of the door.
    """
    system = world.fleet.system("n3")
    call = Call(None, purpose, "me")
    Journal(system).append(intent_of(call, DoorSet.VERB, {"is_open": False}))
    status = world.fleet.clients["n3"].call(Status())
    assert status.unfinished.release == purpose
    outcome = world.run()
    assert (outcome.rebooted, outcome.error) == (NAMES, None)


def test_a_release_that_begins_meanwhile_is_refused(world):
    """
    The leases of all hosts are held, also of those that are not rebooted.
    """
    errors = []

    def release():
        try:
            world.fleet.clients["n3"].call(LeaseAcquire("ann", 20.0, epoch=9))
        except LeaseHeld as error:
            errors.append(error)
        world.reboot("n1")

    world.fleet.system("n1").at_reboot = release
    assert world.run(chosen=("n1",)).error is None
    assert "me holds the lease" in errors[0].why


class _SlowToStart(threading.Thread):
    """
    Runs for half a second before its caller goes on, as on a busy machine.
    """

    def start(self):
        super().start()
        time.sleep(0.5)


@pytest.mark.parametrize("thread", [threading.Thread, _SlowToStart])
def test_control_c_opens_a_host_that_drains(world, monkeypatch, thread):
    """
    It is not rebooted, and its lease is given back, also where its wave has just begun.
    """
    monkeypatch.setattr(threading, "Thread", thread)
    clock, sleep, interrupts = world.fleet.clock, world.fleet.clock.sleep, []

    def interrupted(seconds):
        if not interrupts:
            interrupts.append(1)
            _thread.interrupt_main()
        time.sleep(0.01)  # the main thread has to run
        sleep(seconds)

    monkeypatch.setattr(clock, "sleep", interrupted)
    world.fleet.system("n1").proxy.servers["blue"].sessions = 1
    with pytest.raises(KeyboardInterrupt):
        world.run(drain_s=10**9)
    assert (world.reboots, world.closed()) == ([], set()), world.events
    assert world.fleet.lease_owner("n1") is None
