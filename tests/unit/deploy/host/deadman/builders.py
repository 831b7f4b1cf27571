"""
A host in the middle of a release: blue served v1 alone, green has v2 with some of the traffic.
"""

import json

from deploy.host.deadman import pending
from deploy.host.deadman.pending import Way
from deploy.host.deadman.way_back import boot
from deploy.host.protocol import DeadmanArm, LeaseAcquire, SlotStart, TrafficDrain, TrafficSet
from tests.local_host import GOLDEN, serve
from tests.unit.deploy.host.fakes import BUNDLE, OTHER

V1, V2 = BUNDLE, OTHER
EPOCH = 7
TTL_S = 30.0


def armed(host, share=10):
    """
    Bring *host* there, under a lease of TTL_S from now.
    """
    serve(host.system, V1, "v1", "blue")
    host.stage(V2, "v2", GOLDEN)
    take(host)
    host.call(DeadmanArm("green", "blue"))
    host.call(SlotStart("green", V2))
    shift(host, share)
    take(host)
    host.clock.on_sleep = lambda: jobs_go_on(host)
    return host


def jobs_go_on(host):
    """
    Let what systemd has queued come to its end, as time does.
    """
    for one in host.units.values():
        if one.queued:
            one.look()


def shift(host, share):
    host.call(TrafficSet({"blue": 100 - share, "green": share}))
    if share == 100:
        host.call(TrafficDrain("blue"))


def take(host, epoch=EPOCH, owner="ann@desk:1", release=None):
    """
    Take the lease of *host* for *epoch*.
    """
    host.release = release or host.release
    host.fence = host.call(LeaseAcquire(owner, TTL_S, epoch=epoch)).fence
    return host


def operator_dies(host):
    host.clock.pass_s(TTL_S + 0.1)


def reboot(host):
    """
    Boot *host*: what is enabled starts, after the unit of the boot.

    systemd has queued the starts before it; a stop takes one out of the queue.
    """
    system = host.system
    system.boot = f"{system.boot}-again"
    queued = []
    for slot, one in host.units.items():
        one.active, one.sub, one.queued, one.tasks = "inactive", "dead", None, 0
        if one.enabled:
            queued.append(slot)
    system.proxy.is_running = False
    before = len(system.calls)
    yield
    stopped = [c[-1] for c in system.calls[before:] if c[:2] == ["systemctl", "stop"]]
    path = host.layout.haproxy_state
    system.proxy.start(path.read_text() if path.exists() else None, host.clock.steady)
    for slot in queued:
        if f"slipway-runtime@{slot}.service" not in stopped:
            host.units[slot].start()


def booted(host):
    """
    Boot *host* with the unit of the boot, and return what that said.
    """
    steps = reboot(host)
    next(steps)
    said = boot(host.system)
    next(steps, None)
    return said


def assert_back(host):
    """
    blue serves alone, green is stopped for good, HAProxy starts so, and the host says it.
    """
    assert host.system.proxy.weights == {"blue": 100, "green": 0}
    assert host.system.proxy.servers["green"].own_weight == 0
    assert host.units["green"].active in ("inactive", "failed")
    assert not host.units["green"].enabled
    assert host.units["blue"].active == "active"
    assert host.units["blue"].enabled
    restarted = type(host.system.proxy)(host.clock.steady)
    restarted.start(host.layout.haproxy_state.read_text(), host.clock.steady)
    assert restarted.weights == {"blue": 100, "green": 0}
    assert pending.read(host.system) is None
    back = host.status().went_back
    assert (back.release, back.epoch) == (host.release, EPOCH)
    assert host.status().pending is None


def way(**changes):
    values = {
        "release": "r1",
        "epoch": EPOCH,
        "to_slot": "green",
        "from_slot": "blue",
        "boot_id": "a boot",
    }
    return Way(**values | changes)


def write_pending(host, **changes):
    host.layout.pending.write_text(json.dumps(way(**changes)._asdict()))
