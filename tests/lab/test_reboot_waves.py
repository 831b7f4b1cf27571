"""
Reboots in waves of booted hosts that serve, behind a balancer that checks /readyz.

The tests build on each other in this order.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.bundle.send import stage
from deploy.clock import SystemClock
from deploy.demo.load import LoadGenerator
from deploy.host.protocol import LeaseAcquire, LeaseRelease, SlotStart, Status, TrafficSet
from deploy.inventory.load import load_fleet
from deploy.lab import lab
from deploy.leases.keeper import LeaseKeeper
from deploy.leases.owner import owner
from deploy.provision import EventKind, provision
from deploy.provision.reboots import RebootPolicy, Reboots
from deploy.wiring import checkout, lab_models
from deploy.wiring.bundles import make_bundle
from deploy.wiring.hosts import connect
from tests.free_port import free_port
from tests.lab.conftest import say
from tests.lab.own_lab import booted_lab, fleet_document, write_fleet_file
from tests.unit.deploy.provision.public_port import PROGRAM

ROOT = Path(__file__).parents[2]
NAMES = ("n1", "n2", "n3")
BALANCER = """\
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    retries 2
    option redispatch 1
    default-server check inter 500ms fall 2 rise 2
frontend users
    bind 127.0.0.1:{port}
    default_backend fleet
backend fleet
    option httpchk GET /readyz
    http-check expect status 200
"""


@pytest.fixture(scope="module")
def config():
    with booted_lab("reboots", len(NAMES)) as config:
        yield config


class World:
    """
    Three provisioned hosts that serve one release.
    """

    def __init__(self, config, root):
        self.config = config
        document = fleet_document(
            config,
            NAMES,
            service={"monitoring_networks": ["127.0.0.0/8", config.subnet]},
            release={"lease_ttl": "15s"},
        )
        self.file = write_fleet_file(root / "inventories" / "reboots.yml", document)
        self.fleet = load_fleet("reboots", root=root)

    def provision(self):
        return provision(self.fleet, progress=lambda event: say(str(event)), env=os.environ)

    def serve(self, model):
        bundle = make_bundle(self.fleet, model, "v1.0.0", say)
        with connect(self.fleet) as on:
            for client in on.clients.values():
                client.release = "r0"
                client.fence = client.call(LeaseAcquire("test", 600.0, epoch=1)).fence
                stage(bundle, client=client, wheels=checkout.wheels(), allow_older=True)
                start = SlotStart("blue", bundle.digest, 90.0, allow_older=True)
                client.call(start, timeout_s=120.0)
                client.call(TrafficSet({"blue": 100}))
                client.call(LeaseRelease())

    def status(self):
        with connect(self.fleet) as on:
            return {name: client.call(Status()) for name, client in on.clients.items()}

    def boots(self):
        return {name: status.boot_id for name, status in self.status().items()}

    def inside(self, name, script):
        done = lab.inside(name, ["sh", "-c", script], config=self.config)
        assert done.returncode == 0, done.stderr

    def need(self, *names):
        for name in names:
            self.inside(name, "echo libc6 >/run/reboot-required.pkgs; touch /run/reboot-required")

    def reboot(self, waves, when=lambda event: None, back_s=120.0):
        """
        Reboot in waves, with *when* told of each event.
        """

        def report(event):
            say(str(event))
            when(event)

        policy = RebootPolicy(
            waves=tuple(waves.split(",")),
            window=None,
            interrupts=False,
            drain_s=60.0,
            start_s=90.0,
            facts_s=60.0,
            back_s=back_s,
        )
        with connect(self.fleet) as on:
            clock = SystemClock()
            keeper = LeaseKeeper(
                on.clients,
                owner=owner(),
                release="reboot",
                ttl_s=15.0,
                clock=clock,
                needs_settled=True,
            )
            return Reboots(on.clients, NAMES, keeper, {}, policy, clock, report).run()


@pytest.fixture(scope="module")
def world(config, tmp_path_factory):
    made = World(config, tmp_path_factory.mktemp("fleet"))
    report = made.provision()
    assert not report.failed, report.failed
    assert report.reboots == ()
    made.model = lab_models.make_lab_model("good-v1", None, say)
    made.serve(made.model)
    return made


@pytest.fixture
def load(world, tmp_path):
    """
    Live traffic through a balancer that takes a host out when /readyz answers 503.
    """
    port = free_port()
    servers = [
        f"    server {h.name} {h.address}:{world.fleet.service.port}" for h in world.fleet.hosts
    ]
    text = BALANCER.format(port=port) + "\n".join(servers) + "\n"
    (tmp_path / "balancer.cfg").write_text(text)
    balancer = subprocess.Popen([PROGRAM, "-db", "-f", str(tmp_path / "balancer.cfg")])
    generator = LoadGenerator(
        [f"http://127.0.0.1:{port}"],
        prompts=json.loads((world.model / "live_prompts.json").read_text()),
        rate_rps=10, connections=4, streams=2, max_tokens=8, deadline_s=1200.0,
    )  # fmt: skip
    try:
        generator.start()
        yield generator
    finally:
        generator.stop()
        balancer.kill()
        balancer.wait()


def test_a_needed_reboot_is_reported_and_not_done(world):
    """
    By a run that changes nothing, with one command a host.
    """
    world.need("n2")
    before = world.boots()
    report = world.provision()
    [need] = report.reboots
    assert (need.host, need.reasons) == ("n2", (("packages", "libc6"),))
    assert (report.changes, report.commands) == ((), dict.fromkeys(NAMES, 1))
    assert world.boots() == before


def test_a_fleet_is_rebooted_under_load(world, load):
    """
    One host, then the others: no request is lost, and each serves what it served before.
    """
    world.need(*NAMES)
    before = world.boots()
    ended = []
    outcome = world.reboot("1,50%", lambda e: ended.append((e.host, e.kind)))
    assert (outcome.rebooted, outcome.error) == (NAMES, None)
    after = world.status()
    assert all(after[name].boot_id != before[name] for name in NAMES)
    assert {one.slots["blue"].weight for one in after.values()} == {100}
    assert all(
        one.is_open and not one.reboot_reasons and one.lease is None for one in after.values()
    )
    first = ended.index(("n1", EventKind.REBOOTED))
    assert {host for host, _ in ended[: first + 1]} == {"n1"}
    report = load.stop()
    assert (report.lost_requests, report.cut_streams) == (0, 0), report.losses


def test_an_operator_is_killed_and_the_command_goes_on(world):
    """
    While the first host reboots: the next run brings it back and goes on with the others.
    """
    world.need(*NAMES)
    before = world.boots()
    argv = [sys.executable, "-m", "deploy.cli", "provision", "--hosts", str(world.file)]
    argv += ["--waves", "1", "--yes"]
    process = subprocess.Popen(
        argv, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    with contextlib.closing(process.stdout):
        for line in process.stdout:
            say(line.rstrip())
            if "n1: rebooting" in line:
                process.send_signal(signal.SIGKILL)
                break
    assert process.wait() == -signal.SIGKILL
    time.sleep(world.fleet.release.lease_ttl)  # its leases were not given back and have to expire

    done = subprocess.run([*argv, "--json"], cwd=ROOT, text=True, capture_output=True, check=False)
    say(done.stderr)
    assert done.returncode == 0, done.stderr
    reboots = json.loads(done.stdout)["reboots"]
    assert {(one["host"], one["rebooted"]) for one in reboots} == {(name, True) for name in NAMES}
    after = world.status()
    assert all(after[name].boot_id != before[name] and after[name].is_open for name in NAMES)


def test_a_host_that_does_not_come_back_stops_the_waves(world):
    """
    It boots without sshd.  The others are left as they are, and the next run goes on.
    """
    world.need(*NAMES)
    before = world.boots()
    world.inside("n1", "systemctl mask --quiet ssh.service ssh.socket")

    outcome = world.reboot("1", back_s=30.0)

    assert (outcome.error.host, outcome.rebooted) == ("n1", ())
    assert "did not come back" in str(outcome.error)
    world.inside("n1", "systemctl unmask --quiet ssh.service ssh.socket; systemctl start ssh")
    status = world.status()
    assert [status[name].is_open for name in NAMES] == [False, True, True]
    assert [status[name].boot_id == before[name] for name in NAMES] == [False, True, True]

    outcome = world.reboot("1")
    assert (outcome.rebooted, outcome.error) == (NAMES, None)
    assert all(status.is_open for status in world.status().values())
