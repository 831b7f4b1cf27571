"""
The faults, and the boundaries at which each can happen.
"""

from deploy.host.layout import SLOTS
from tests.local_fleet import DIGESTS
from tests.simulation.etcd import NAME
from tests.simulation.host import BOOT_S, VerbKilled

DAY_S = 86_400.0
TTL_S = 15.0
OUT_S = 25.0  # of a host that is cut off: longer than a lease
FROZEN_S = 25.0


def _die(world, point, delivery):
    operator = _operator(world, point)
    operator.is_dead = True


def _operator(world, point):
    return next(o for o in world.operators if o.name == point.operator)


def _terminate(world, point, delivery):
    _operator(world, point).is_terminated = True


def _suspend(world, point, delivery):
    operator = _operator(world, point)
    operator.paused_until_s = world.now_s + TTL_S + 1.0


def _lose(world, point, delivery):
    delivery.is_lost = True


def _delay(world, point, delivery):
    delivery.is_late = True


def _repeat(world, point, delivery):
    delivery.is_twice = True


def _slow(world, point, delivery):
    delivery.is_slow = True


def _power(loses):
    def cut(world, point, delivery):
        host = world.hosts[point.host]
        if host.is_on:
            host.power_off(loses=loses)
            world.at(BOOT_S, host.power_on, f"boot of {host.name}")
            world.stops_at(world.now_s + BOOT_S)

    return cut


def _kill_verb(world, point, delivery):
    raise VerbKilled(point.verb)


def _cut_off(world, point, delivery):
    world.hosts[point.host].cut_until_s = world.now_s + OUT_S
    world.stops_at(world.now_s + OUT_S)


def _freeze(world, point, delivery):
    host = world.hosts[point.host]
    host.frozen_until_s = world.now_s + FROZEN_S
    host.excuse(FROZEN_S + 1.0)
    world.stops_at(world.now_s + FROZEN_S)


def _jump(seconds):
    def jump(world, point, delivery):
        world.hosts[point.host].clock.wall_offset += seconds

    return jump


def _fill(world, point, delivery):
    world.hosts[point.host].disk.free = 0


def _hide_metrics(world, point, delivery):
    host = world.hosts[point.host]

    def show(is_shown):
        for slot in SLOTS:
            host.runtimes[slot].has_metrics = is_shown

    show(False)
    world.at(60.0, lambda: show(True), f"metrics of {host.name}")


def _kill_haproxy(world, point, delivery):
    world.hosts[point.host].stop_haproxy()


def _crash(slot):
    def crash(world, point, delivery):
        world.hosts[point.host].crash(slot)

    return crash


def _rival(does):
    def begin(world, point, delivery):
        from tests.simulation.operators import Command

        names = {operator.name for operator in world.operators}
        name = next(n for n in ("bob", "cid", "dan", "eve") if n not in names)
        command = Command(world, name)
        {
            "rollback": lambda: command.rollback(steal=True),
            "abort": lambda: command.abort(),
            "release": lambda: command.release(DIGESTS["b3"], "v3", steal=True),
        }[does]()
        world.commands.append(command)

    return begin


def _etcd_down(world, point, delivery):
    world.etcd.down_until_s = world.now_s + OUT_S
    world.stops_at(world.now_s + OUT_S)


def _etcd_late(world, point, delivery):
    world.etcd.late_until_s = world.now_s + OUT_S
    world.stops_at(world.now_s + OUT_S + world.etcd.late_s)


FAULTS = {
    "kill": _die,
    "term": _terminate,
    "suspend": _suspend,
    "lost": _lose,
    "late": _delay,
    "twice": _repeat,
    "slow": _slow,
    "reboot": _power(None),
    "power_cut": _power("all"),
    "torn_cut": _power("contents"),
    "kill_verb": _kill_verb,
    "cut_off": _cut_off,
    "freeze": _freeze,
    "day_later": _jump(DAY_S),
    "day_earlier": _jump(-DAY_S),
    "full_disk": _fill,
    "no_metrics": _hide_metrics,
    "haproxy": _kill_haproxy,
    "crash_blue": _crash("blue"),
    "crash_green": _crash("green"),
    "rival_rollback": _rival("rollback"),
    "rival_abort": _rival("abort"),
    "rival_release": _rival("release"),
    "etcd_down": _etcd_down,
    "etcd_late": _etcd_late,
}
CUTS = ("power_cut", "torn_cut")
_AT = {
    "send": (
        "kill", "term", "suspend", "lost", "late", "reboot", "power_cut", "cut_off", "freeze",
        "day_later", "day_earlier", "full_disk", "no_metrics", "haproxy", "crash_blue",
        "crash_green", "rival_rollback", "rival_abort", "rival_release",
    ),
    "answer": ("kill", "lost", "twice", "slow", "reboot", "power_cut"),
    "before": ("power_cut", "torn_cut", "kill_verb"),
    "after": ("power_cut", "torn_cut", "kill_verb"),
}  # fmt: skip
_AT_ETCD = {
    "send": (
        "kill", "term", "suspend", "lost", "etcd_down", "etcd_late", "rival_rollback",
        "rival_abort", "rival_release",
    ),
    "answer": ("kill", "lost", "etcd_down"),
}  # fmt: skip


WORDS = {
    "kill": "the operator's process gets SIGKILL",
    "term": "the operator's process gets SIGTERM",
    "suspend": "the operator's process stands still until its leases have ended",
    "lost": "the connection breaks: before the command ran, or after it",
    "late": "the connection breaks, and the command runs 0.15 s later",
    "twice": "the command runs twice",
    "slow": "the answer comes 4 s late",
    "reboot": "the host reboots in order",
    "power_cut": "the host loses power, and all unsynced writes",
    "torn_cut": "the host loses power, and the contents of unsynced files, not their names",
    "kill_verb": "the host program is killed",
    "cut_off": "the host is cut off for 25 s",
    "freeze": "the host stands still for 25 s",
    "day_later": "the host's wall clock jumps a day forward",
    "day_earlier": "the host's wall clock jumps a day back",
    "full_disk": "the host's disk is full from then on",
    "no_metrics": "the slots of the host answer /metrics with 404 for 60 s",
    "haproxy": "HAProxy of the host is killed, and started by systemd 0.5 s later",
    "crash_blue": "the slot blue crashes, and is started by systemd 1 s later",
    "crash_green": "the slot green crashes, and is started by systemd 1 s later",
    "rival_rollback": "another operator does inv rollback --steal",
    "rival_abort": "another operator does inv abort --steal",
    "rival_release": "another operator does inv release --steal of another bundle",
    "etcd_down": "nothing reaches etcd for 25 s",
    "etcd_late": "for 25 s etcd does what it is told, and answers 10 s later",
}


def possible_at(fault):
    """
    Return the kinds of boundary at which *fault* can happen.
    """
    at = _AT_ETCD if fault.startswith("etcd") else _AT
    of = " of etcd" if at is _AT_ETCD else ""
    return [when + of for when, faults in at.items() if fault in faults]


def possible(point):
    """
    Return the faults that can happen at *point*.
    """
    return (_AT_ETCD if point.host == NAME else _AT)[point.when]
