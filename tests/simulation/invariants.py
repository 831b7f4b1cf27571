"""
What must hold in every world: checked while time passes, at every boundary and at the end.
"""

import json

from deploy.host.layout import SLOTS
from deploy.release import desired_text
from deploy.release.plan import Kind
from tests.simulation.host import content, node_of
from tests.simulation.world import Violation

SETTLE_S = 2.0  # beyond lease + 5 s: to wait for UP, to stop the slot, and latencies


class Invariants:
    """
    Watches one world.

    Args:
        new: Digests of the bundles that are released during the run.
        canary_pct: Share that a canary of them may have at most, before its verdict.
    """

    def __init__(self, world, new, canary_pct):
        self.world, self.new, self.canary_pct = world, set(new), canary_pct
        self._epochs = dict.fromkeys(world.hosts, 0)
        self._leases = {}
        self._owners = {}
        self._weights = {}
        world.watch = self.check

    def check(self):
        for host in self.world.hosts.values():
            if host.is_on:
                self._epoch(host)
                self._serves(host)
                self._exposure(host)

    def _serves(self, host):
        if host.excused_until_s >= self.world.now_s or host.frozen_until_s >= self.world.now_s:
            return
        if not host.serving():
            raise Violation(f"{host.name}: no slot serves: {_shown(host)}")

    def _exposure(self, host):
        weights = tuple(host.proxy.weights.values())
        if self._weights.get(host.name) == weights:
            return
        self._weights[host.name] = weights
        for bundle, share in host.shares().items():
            if bundle in self.new:
                self._won(host)
            if (
                bundle in self.new
                and share > self.canary_pct + 0.5
                and not self._passed(host, bundle)
            ):
                raise Violation(
                    f"{host.name}: {share:.0f} % on {bundle[:4]} without a recorded verdict"
                )

    def _won(self, host):
        """
        Nothing goes forward under an epoch that was not won on more than half of the hosts.
        """
        lease = content(host, "lease.json")
        if lease is None or lease["owner"] is None or not lease["epoch"]:
            return
        if self.world.etcd is not None:
            winners = self.world.etcd.winners.get(lease["epoch"], set())
            if winners != {lease["owner"]}:
                raise Violation(f"{host.name}: goes forward under an epoch of {sorted(winners)}")
            return
        names = self._owners.get(lease["epoch"], {}).get(lease["owner"], ())
        if 2 * len(names) <= len(self.world.hosts):
            raise Violation(f"{host.name}: goes forward under an epoch of {sorted(names)} alone")

    def _passed(self, host, bundle):
        """
        Return whether a host has a verdict on record that lets *bundle* have all of *host*, or has
        confirmed it.
        """
        confirmed = content(host, "confirmed.json")
        if confirmed is not None and host.linked(confirmed["to_slot"]) == bundle:
            return True
        for desired in self.desired():
            plan = desired.plan
            if plan.bundle != bundle:
                continue
            if plan.kind is Kind.ROLLBACK:
                return True
            part = plan.by_name.get(host.name)
            if part is not None and not (part.from_slot and part.from_ready):
                return True  # nothing to compare it with: golden answers only
            passed = {r.wave for r in desired.rulings if r.verdict == "pass"}
            waves = [n for n, wave in enumerate(plan.waves, 1) if host.name in wave]
            if waves and waves[0] in passed:
                return True
        return False

    def desired(self):
        """
        Return the desired states that hosts hold, and etcd.
        """
        if self.world.etcd is not None and (text := self.world.etcd.state()) is not None:
            yield desired_text.from_text(text, 0, 0)
        for host in self.world.hosts.values():
            document = content(host, "desired.json")
            if document is not None:
                yield desired_text.from_text(document["text"], 0, 0)

    def _epoch(self, host):
        node = node_of(host, "lease.json")
        if node is None or self._leases.get(host.name) == bytes(node.content):
            return
        self._leases[host.name] = bytes(node.content)
        lease = json.loads(node.content)
        if lease["epoch"] < self._epochs[host.name]:
            raise Violation(f"{host.name}: epoch {lease['epoch']} after {self._epochs[host.name]}")
        self._epochs[host.name] = lease["epoch"]
        if lease["owner"] and lease["epoch"]:
            owners = self._owners.setdefault(lease["epoch"], {})
            owners.setdefault(lease["owner"], set()).add(host.name)
            strong = [o for o, names in owners.items() if 2 * len(names) > len(self.world.hosts)]
            if len(strong) > 1:
                raise Violation(f"epoch {lease['epoch']} was won by {strong}")

    def check_start(self, host, pending):
        """
        A host does not start with a change that is not confirmed.
        """
        if pending is not None and host.proxy.weights[pending["to_slot"]]:
            raise Violation(f"{host.name}: it starts with what was not confirmed: {_shown(host)}")

    # -- at the end

    def check_converged(self, when):
        """
        Every host that is up has its traffic on one slot, and nothing pending.
        """
        for host in self.world.hosts.values():
            if not host.is_on:
                raise Violation(f"{host.name}: it did not come up again")
            shares = host.shares()
            if len(shares) != 1:
                raise Violation(f"{host.name}: {when}: mixed: {_shown(host)}")
            if None in shares:
                raise Violation(f"{host.name}: {when}: a slot without a bundle: {_shown(host)}")
            if node_of(host, "pending.json") is not None and not self._leased(host):
                raise Violation(f"{host.name}: {when}: still pending: {_shown(host)}")
            back = content(host, "went-back.json")
            if back is not None and back["release"] in host.confirmed:
                raise Violation(f"{host.name}: it took back what it had confirmed")
            if not host.serving():
                raise Violation(f"{host.name}: {when}: nothing serves: {_shown(host)}")

    def _leased(self, host):
        lease = content(host, "lease.json")
        return (
            lease is not None
            and lease["owner"] is not None
            and lease["boot_id"] == host.boot
            and lease["expires_steady_s"] > host.clock.steady
        )

    def check_rejected(self):
        """
        A bundle with a recorded refusal, and none that let it pass later, has no traffic.
        """
        refused = {
            d.plan.bundle for d in self.desired() if any(r.verdict == "revert" for r in d.rulings)
        }
        for host in self.world.hosts.values():
            for bundle in host.shares():
                if bundle in refused:
                    raise Violation(f"{host.name}: the refused {bundle[:4]} serves")

    def check_all_serve(self, bundle):
        """
        What a command without an error brings, every host serves.
        """
        for host in self.world.hosts.values():
            if set(host.shares()) != {bundle}:
                raise Violation(f"{host.name}: no error named it, and it serves something else")

    def check_one_version(self):
        serving = {name: sorted(h.shares()) for name, h in self.world.hosts.items()}
        bundles = {bundle for shares in serving.values() for bundle in shares}
        if len(bundles) != 1 or any(len(shares) != 1 for shares in serving.values()):
            shown = {name: [b[:4] for b in shares] for name, shares in serving.items()}
            raise Violation(f"the fleet serves several versions: {shown}")


def _shown(host):
    slots = {
        slot: (
            (host.linked(slot) or "none")[:2] if host.is_on else "?",
            host.unit_of(slot).active,
            host.proxy.servers[slot].status,
            host.proxy.servers[slot].weight,
        )
        for slot in SLOTS
    }
    return f"{slots}, haproxy {'runs' if host.proxy.is_running else 'is down'}"
