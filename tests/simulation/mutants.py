"""
The program with one guard broken, to see that the simulation notices.
"""

import importlib
import inspect
import sys
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """
    Attributes:
        old, new: What is replaced in the source of `module`; `old` is there once.
        notices: What the failure says, so that nothing else counts as noticed.
        at: (when, verb) of the boundaries where `faults` happen; empty: nothing happens.
        budget: Number of faults in one run.
        also: Further replacements, where a second guard stands behind the first.
    """

    name: str
    module: str
    old: str
    new: str
    notices: str
    scenario: str = "release"
    faults: tuple[str, ...] = ()
    at: tuple[tuple[str, str], ...] = ()
    budget: int = 1
    also: tuple[tuple[str, str], ...] = ()


MUTANTS = (
    Mutant(
        "the content of a file is not synced",
        "deploy.host.reserve",
        "    os.fsync(descriptor)\n",
        "",
        "no slot serves",  # by HAProxy's state; a torn pending.json is written again
        faults=("torn_cut",),
        at=(("after", "deadman.arm"), ("after", "traffic.set")),
    ),
    Mutant(
        "the names of a directory are not synced",
        "deploy.host.files",
        "        os.fsync(descriptor)\n",
        "        pass\n",
        "a slot without a bundle",
        faults=("power_cut",),
        at=(("answer", "deadman.arm"), ("answer", "slot.start"), ("answer", "traffic.set")),
    ),
    Mutant(
        "a confirmation is not synced",
        "deploy.host.deadman.pending",
        "    system.layout.pending.replace(path)\n    sync_directory(system.layout.state)\n",
        "    system.layout.pending.replace(path)\n",
        "it took back what it had confirmed",
        faults=("power_cut",),
        at=(("answer", "deadman.confirm"), ("send", "good.record")),
    ),
    Mutant(
        "the fence of a command is not compared",
        "deploy.host.lease",
        "lease is not None and lease.fence == fence and self.left_s(lease) > 0",
        "lease is not None and self.left_s(lease) > 0",
        "was done under lease",
        faults=("late",),
        at=(("send", "traffic.set"), ("send", "slot.start"), ("send", "deadman.arm")),
    ),
    Mutant(
        "a lease never ends",
        "deploy.host.lease",
        "        return max(0.0, self.expires_steady_s - steady_s)\n",
        "        return 1.0\n",
        "without an operator: mixed",
        faults=("kill",),
        at=(("answer", "traffic.set"),),
    ),
    Mutant(
        "an old epoch is granted a lease",
        "deploy.host.lease",
        "if epoch and (epoch < newest or (epoch == newest and not is_own)):",
        "if False:",
        "epoch 1 was won by",
        faults=("rival_rollback", "rival_release"),
        at=(("send", "lease.acquire"), ("answer", "lease.acquire")),
    ),
    Mutant(
        "the host's own way back is never armed",
        "deploy.release.decide",
        "            return is_kept or (_is_armed(desired, current) and "
        "_leaves(desired, host, current))\n",
        "            return True\n",
        "without an operator: mixed",
        faults=("kill",),
        at=(("answer", "traffic.set"),),
    ),
    Mutant(
        "the host's own timer does nothing",
        "deploy.host.deadman.way_back",
        "        return _WayBack(system, way).go()\n",
        '        return ""\n',
        "without an operator: mixed",
        faults=("kill",),
        at=(("answer", "traffic.set"),),
    ),
    Mutant(
        "the host goes back while its operator is at work",
        "deploy.host.deadman.pending",
        "    if Leases(system).in_force() is None:\n",
        "    if True:\n",
        "undisturbed it ended",
    ),
    Mutant(
        "a boot takes nothing back",
        "deploy.host.deadman.way_back",
        "if way is None or way.boot_id == system.boot_id():",
        "if True:",
        "it starts with what was not confirmed",
        faults=("reboot",),
        at=(("send", "measure"),),
    ),
    Mutant(
        "a boot starts HAProxy with the weights of the change",
        "deploy.host.deadman.way_back",
        "        with failures.caught():\n            _rewrite_state(system, way)\n",
        "",
        "it starts with what was not confirmed",
        faults=("reboot",),
        at=(("send", "measure"),),
    ),
    Mutant(
        "a way back does not write HAProxy's state",
        "deploy.host.deadman.way_back",
        "    with_room(system, lambda: write_spare(system.layout.haproxy_state, data, 0o644))",
        "    del data",
        "it starts with what was not confirmed",
        faults=("kill", "power_cut"),
        at=(("answer", "traffic.set"), ("after", "check")),
        budget=2,
    ),
    Mutant(
        "a slot need not be UP before it gets traffic",
        "deploy.host.slots.traffic",
        "all(servers[slot].is_up for slot in wanted)",
        "True",
        "no slot with traffic is UP",
        scenario="rollback",
    ),
    Mutant(
        "weights fall before others rise",
        "deploy.host.slots.traffic",
        "key=lambda s: weights[s] < before[s].weight",
        "key=lambda s: weights[s] > before[s].weight",
        "no slot serves",
        scenario="rollback",
    ),
    Mutant(
        "a verdict is not recorded",
        "deploy.release.controller",
        "        if judgement.verdict is Verdict.PASS:\n            self._write()\n",
        "        if judgement.verdict is Verdict.PASS:\n",
        "without a recorded verdict",
    ),
    Mutant(
        "a refused canary keeps its traffic",
        "deploy.release.controller",
        "        goal = Goal.HELD if judgement.verdict is Verdict.PAUSE else Goal.BACK\n",
        "        goal = Goal.FORWARD\n",
        "no end after",
        scenario="rejected",
    ),
    Mutant(
        "an epoch needs no majority",
        "deploy.release.store",
        "if granted and (is_way_back or 2 * granted > len(self._clients)):",
        "if granted:",
        "goes forward under an epoch of",
        scenario="alone",
        also=(("if self._is_way_back or 2 * written > len(self._clients):", "if True:"),),
    ),
    Mutant(
        "a resumed rollback goes on with the hosts of its plan alone",
        "deploy.wiring.releases",
        "    if unplanned(last):\n",
        "    if False:\n",
        "the fleet serves several versions",
        scenario="etcd_rollback",
        faults=("slow",),
        at=(("answer", "status"),),
    ),
    Mutant(
        "an epoch of etcd is put without a comparison",
        "deploy.release.store_etcd",
        "                    self._epoch_key: now.epoch_revision,\n"
        "                    self._owner_key: now.owner_revision,\n",
        "",
        "was won by",
        scenario="etcd",
        faults=("rival_release",),
        at=(("send", "etcd.txn"), ("send", "etcd.grant")),
    ),
)


@contextmanager
def broken(mutant):
    """
    Run the program with *mutant* in place of the original.
    """
    module = importlib.import_module(mutant.module)
    source = inspect.getsource(module)
    for old, new in ((mutant.old, mutant.new), *mutant.also):
        assert source.count(old) == 1, f"{mutant.name}: its text has changed"
        source = source.replace(old, new)
    before = dict(module.__dict__)
    code = compile(source, module.__file__, "exec")
    moved = []
    try:
        exec(code, module.__dict__)
        changed = {
            id(old): (name, old)
            for name, old in before.items()
            if getattr(old, "__module__", None) == mutant.module
        }
        for other in list(sys.modules.values()):
            for name, value in list(getattr(other, "__dict__", {}).items()):
                if other is not module and id(value) in changed:
                    own, old = changed[id(value)]
                    if value is old:
                        moved.append((other, name, old))
                        setattr(other, name, module.__dict__[own])
        yield
    finally:
        for other, name, old in moved:
            setattr(other, name, old)
        module.__dict__.clear()
        module.__dict__.update(before)
