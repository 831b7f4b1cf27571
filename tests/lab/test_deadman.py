"""
The host's own way back on a booted host: its operator dies, it reboots, its disk is full.

The tests talk to the host program as the controller does, and then no more.
"""

import json
import os
import time

import pytest

from deploy.bundle.send import stage
from deploy.demo.load import LoadGenerator
from deploy.host import layout
from deploy.host.protocol import (
    DeadmanArm,
    DeadmanConfirm,
    DeadmanDisarm,
    LeaseAcquire,
    LeaseRelease,
    LeaseRenew,
    SlotStart,
    SlotStop,
    Status,
    TrafficDrain,
    TrafficSet,
)
from deploy.inventory.load import load_fleet
from deploy.lab import lab
from deploy.provision import provision
from deploy.transport.client import HostClient
from deploy.transport.ssh import SshTransport
from deploy.wiring import checkout, lab_models
from deploy.wiring.bundles import make_bundle
from tests.lab.conftest import IS_LONG, say
from tests.lab.own_lab import booted_lab, fleet_document, write_fleet_file

LEASE_S = 6.0
TICK_S = 5.0  # of the timer
SLACK_S = 3.0  # a busy machine


@pytest.fixture(scope="module")
def config():
    with booted_lab("deadman", 1) as config:
        yield config


@pytest.fixture(scope="module")
def fleet(config, tmp_path_factory):
    root = tmp_path_factory.mktemp("fleet")
    write_fleet_file(root / "inventories" / "deadman.yml", fleet_document(config, ("n1",)))
    return load_fleet("deadman", root=root)


@pytest.fixture(scope="module")
def models():
    return [lab_models.make_lab_model(kind, None, say) for kind in ("good-v1", "good-v2")]


class Operator:
    """
    An operator of one host, who may stop at any line.
    """

    def __init__(self, fleet, config):
        self.config = config
        self.transport = SshTransport(fleet.hosts[0])
        self.client = HostClient(self.transport, actor="test", sudo=False)
        self.client.release = "r1"
        self.epoch = 0

    def call(self, request, timeout_s=120.0):
        return self.client.call(request, timeout_s=timeout_s)

    def take(self, release="r1", ttl_s=LEASE_S):
        self.epoch += 1
        self.client.release = release
        self.client.fence = self.call(LeaseAcquire("test", ttl_s, epoch=self.epoch)).fence

    def inside(self, script):
        done = lab.inside("n1", ["sh", "-c", script], config=self.config)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def weights(self):
        return {slot: one.weight for slot, one in self.call(Status()).slots.items()}


@pytest.fixture(scope="module")
def provisioned(fleet):
    reports = [
        provision(fleet, progress=lambda event: say(str(event)), env=os.environ) for _ in range(2)
    ]
    assert not reports[0].failed, reports[0].failed
    return reports


@pytest.fixture(scope="module")
def operator(provisioned, fleet, config, models):
    """
    v1 serves from blue; v2 can be started.
    """
    operator = Operator(fleet, config)
    operator.take("r0", ttl_s=600)
    operator.bundles = []
    for version, model in zip(("v1.0.0", "v1.1.0"), models, strict=True):
        bundle = make_bundle(fleet, model, version, say)
        stage(bundle, client=operator.client, wheels=checkout.wheels(), allow_older=True)
        operator.bundles.append(bundle.digest)
    operator.call(SlotStart("blue", operator.bundles[0], 90.0, allow_older=True))
    operator.call(TrafficSet({"blue": 100}))
    operator.call(LeaseRelease())
    yield operator
    operator.transport.close()


def canary(operator, release, share):
    """
    Take *operator* as far as a release with a canary of *share* percent, under a lease of LEASE_S.
    """
    operator.take(release, ttl_s=300)
    operator.call(DeadmanArm("green", "blue"))
    operator.call(SlotStart("green", operator.bundles[1], 90.0, allow_older=True))
    operator.call(TrafficSet({"blue": 100 - share, "green": share}))
    if share == 100:
        operator.call(TrafficDrain("blue"))
    operator.call(LeaseRenew(LEASE_S))


def assert_back(operator, release):
    status = operator.call(Status())
    assert {s: (one.weight, one.unit) for s, one in status.slots.items()} == {
        "blue": (100, "active"), "green": (0, "inactive"),
    }  # fmt: skip
    assert (status.went_back.release, status.pending) == (release, None)
    enabled = "systemctl is-enabled slipway-runtime@blue slipway-runtime@green || :"
    assert operator.inside(enabled).split() == ["enabled", "disabled"]


def is_back(operator):
    status = operator.call(Status())
    return status.went_back is not None and status.went_back.release == operator.client.release


@pytest.fixture
def load(operator, fleet, models):
    """
    Live traffic on the host.
    """
    generator = LoadGenerator(
        [f"http://{fleet.hosts[0].address}:{fleet.service.port}"],
        prompts=json.loads((models[0] / "live_prompts.json").read_text()),
        rate_rps=20, connections=4, streams=2, max_tokens=8,
        networks=(operator.config.subnet,),
    )  # fmt: skip
    generator.start()
    yield generator
    generator.stop()


def test_provisioning_tests_it_once(provisioned, operator):
    """
    The real timer answers; the second run changes nothing, with one command.
    """
    first, second = provisioned
    assert layout.DEADMAN_TESTED in {change.resource for change in first.changes}
    assert second.changes == ()
    assert second.commands == {"n1": 1}
    assert operator.call(Status()).is_deadman_tested


def test_an_idle_timer_starts_nothing_and_logs_nothing(operator):
    """
    Its service has no process and no line in the journal while nothing is pending.
    """
    count = "journalctl -b -u slipway-deadman.service -o cat | wc -l"
    before = operator.inside(count)
    triggered = "systemctl show -P LastTriggerUSecMonotonic slipway-deadman.timer"
    first = operator.inside(triggered)
    time.sleep(2 * TICK_S + 1)
    assert operator.inside(triggered) != first
    assert operator.inside(count) == before
    assert operator.inside("systemctl is-active slipway-deadman.service || :") == "inactive\n"


@pytest.mark.parametrize("share", [10, 100] if IS_LONG else [10])
def test_a_host_whose_operator_dies_goes_back(operator, load, eventually, share):
    """
    Within the lease and 5 seconds, and no request is lost; not before.
    """
    canary(operator, f"r-dies-{share}", share)
    for _ in range(3):  # negative control: while the lease is renewed, it stays
        time.sleep(LEASE_S / 2)
        operator.call(LeaseRenew(LEASE_S))
    assert operator.weights() == {"blue": 100 - share, "green": share}
    died_s = time.monotonic()

    eventually(operator.weights, {"blue": 100, "green": 0}, timeout_s=30)

    took_s = time.monotonic() - died_s
    say(f"traffic back {took_s:.1f} s after the last renewal, with a lease of {LEASE_S:.0f} s")
    assert LEASE_S <= took_s <= LEASE_S + TICK_S + SLACK_S
    eventually(lambda: is_back(operator), True, timeout_s=30)
    assert_back(operator, f"r-dies-{share}")
    report = load.stop()
    assert (report.lost_requests, report.cut_streams) == (0, 0), report.losses


def test_a_reboot_takes_back_and_never_starts_the_change(operator, config, eventually):
    """
    A power cut at 90/10: after it HAProxy has 100/0 from its first second, and green never runs.
    """
    canary(operator, "r-reboot", 10)
    operator.call(LeaseRenew(600))
    lab.crash("n1", progress=say, config=config)
    lab.start("n1", progress=say, config=config)

    eventually(lambda: is_back(operator), True, timeout_s=60)

    assert_back(operator, "r-reboot")
    assert "rebooted" in operator.call(Status()).went_back.why
    started = "journalctl -b -o cat -u slipway-runtime@{} | grep -c Started || :"
    assert operator.inside(started.format("green")).strip() == "0"
    assert operator.inside(started.format("blue")).strip() == "1"  # control of the search
    said = operator.inside("journalctl -b -o cat -u slipway-deadman-boot.service")
    assert "was not confirmed: blue serves" in said


def test_a_dead_haproxy_and_a_dead_stable_slot_come_back(operator, eventually):
    """
    Both are killed after the operator died, so that systemd does not restart them.
    """
    canary(operator, "r-dead", 100)
    operator.inside("systemctl stop haproxy slipway-runtime@blue")

    eventually(lambda: is_back(operator), True, timeout_s=90)

    assert_back(operator, "r-dead")


def test_a_full_disk_does_not_block_it(operator, config, eventually):
    """
    The state of the host lies on a small file system without a byte left, the reserve included.
    """
    state = layout.STATE
    operator.inside(
        f"mkdir -p /mnt/full; mount -t tmpfs -o size=64m tmpfs /mnt/full; "
        f"cp -a {state}/. /mnt/full; mount --bind /mnt/full {state}"
    )
    canary(operator, "r-full", 100)
    operator.inside(f"rm -f {state}/reserve; cat /dev/zero >{state}/junk 2>/dev/null || :")
    assert operator.call(Status()).free_state_bytes == 0

    eventually(lambda: is_back(operator), True, timeout_s=60)

    assert_back(operator, "r-full")
    # The file system of before the test is there again after a boot.
    operator.inside("systemctl disable --quiet slipway-runtime@green")
    lab.crash("n1", progress=say, config=config)
    lab.start("n1", progress=say, config=config)
    eventually(operator.weights, {"blue": 100, "green": 0}, timeout_s=60)


def test_a_confirmed_release_survives_its_operator_and_a_reboot(operator, config, eventually):
    """
    After one request through the public port.
    """
    eventually(lambda: operator.call(Status()).slots["blue"].ready, True, timeout_s=60)
    canary(operator, "r-good", 100)
    operator.call(LeaseRenew(300))
    assert operator.call(DeadmanConfirm(operator.bundles[1], "v1.1.0")).checked
    assert operator.call(Status()).went_back is None
    operator.call(SlotStop("blue"))
    operator.call(LeaseRelease())
    time.sleep(TICK_S + 1)
    lab.crash("n1", progress=say, config=config)
    lab.start("n1", progress=say, config=config)

    eventually(operator.weights, {"blue": 0, "green": 100}, timeout_s=60)
    eventually(lambda: operator.call(Status()).slots["green"].ready, True, timeout_s=60)
    operator.take("r-next")
    assert operator.call(DeadmanDisarm()).disarmed is False
