"""
A fleet of hosts that run the real host program, for the tests of releases and rollbacks.
"""

from contextlib import contextmanager, suppress
from dataclasses import dataclass

from deploy.host.layout import SLOTS
from deploy.host.protocol import Status
from deploy.leases.keeper import LeaseKeeper
from deploy.release import host_commands
from deploy.release.controller import Controller, Recheck
from deploy.release.desired import Desired, Ending, Goal
from deploy.release.events import ReleaseOutcome
from deploy.release.observe import observed
from deploy.release.plan import plan_release
from deploy.release.rollback import rollback_plan
from deploy.release.store import HostStore
from deploy.transport.client import HostClient
from tests.builders import make_policy
from tests.local_host import local_hosts, place_release, serve
from tests.simulated_clock import SimulatedClock

LIMITS = host_commands.Limits(start_s=90, drain_s=20, golden_s=60, keep=3)
DIGESTS = {f"b{number}": f"{number}" * 64 for number in range(10)}
NAMES = {digest: name for name, digest in DIGESTS.items()}


@dataclass
class StagingSummary:
    names: tuple[str, ...] = ("manifest.json",)
    size: int = 10


class LocalFleet:
    """
    Hosts, a client for each, and the clock that they share with the controller.

    Attributes:
        requests_per_s, errors_per_s: Answers of each canary in each second of the clock.
        errors_when_promoted_per_s: Of a slot that has all the traffic and is not of *stable*.
        silent: Hosts whose canary gets requests and answers none.
        on_sleep: Called after each second that passes.
    """

    def __init__(self, transports):
        self.transports = transports
        self.requests_per_s, self.errors_per_s = 5, 0
        self.errors_when_promoted_per_s = 0
        self.stable = "b1"
        self.silent = set()
        self.on_sleep = lambda: None
        self.clock = SimulatedClock(self._pass)
        self.clients = {
            name: HostClient(transport, actor="me@desk", sudo=False)
            for name, transport in transports.items()
        }

    def __getitem__(self, name):
        return self.transports[name]

    def system(self, name):
        return self.transports[name].system

    def serve(self, bundle, version=None, slot="blue"):
        """
        Let every host serve *bundle* alone, recorded as good.
        """
        for transport in self.transports.values():
            serve(transport.system, DIGESTS[bundle], version or bundle.replace("b", "v"), slot)

    def place(self, bundle, name=None):
        """
        Put *bundle* on the disk of every host, or of one.
        """
        for host in [name] if name else self.transports:
            system = self.system(host)
            if not system.layout.release(DIGESTS[bundle]).exists():
                place_release(system, DIGESTS[bundle], bundle.replace("b", "v"))

    def observed(self):
        return {
            name: observed(name, client.call(Status())) for name, client in self.clients.items()
        }

    def release(
        self,
        bundle="b2",
        *,
        policy=None,
        report=None,
        stage=None,
        recheck=Recheck,
        plan=None,
        **options,
    ):
        """
        Release *bundle* as `inv release` does, and return its outcome.
        """
        policy = policy or make_policy()
        plan = plan or self.plan(bundle, policy)
        if plan.is_noop:
            return ReleaseOutcome("r-v2", Ending.NOOP, "nothing to do", {})
        desired = Desired(
            release=f"r-{plan.version}", actor="me@desk", goal=Goal.FORWARD, plan=plan
        )
        return self.bring(
            desired, report=report, stage=stage or self.stage(bundle), recheck=recheck, **options
        )

    def plan(self, bundle="b2", policy=None):
        return plan_release(
            fleet="lab",
            bundle=DIGESTS[bundle],
            version=bundle.replace("b", "v"),
            canary_pct=10,
            policy=policy or make_policy(),
            observed=self.observed(),
            start_s=LIMITS.start_s,
            golden_s=LIMITS.golden_s,
        )

    def stage(self, bundle):
        def stage_one(client):
            self.place(bundle, client.host)
            return StagingSummary()

        return stage_one

    def roll_back(self, way, report=None, *, policy=None, recheck=Recheck, **options):
        """
        Do *way* as `inv rollback` does, and return its outcome.
        """
        if way.is_noop:
            return ReleaseOutcome("r-back", Ending.NOOP, way.reason, {})
        plan = rollback_plan(
            way, fleet="lab", policy=policy or make_policy(), start_s=90.0, golden_s=60.0
        )
        why = {left.host: left.why for left in way.left_out}
        desired = Desired(
            release="r-back", actor="me@desk", goal=Goal.FORWARD, plan=plan, left_out=why
        )
        left_out = {left.host: left.error for left in way.left_out if left.error}
        return self.bring(
            desired,
            report=report,
            stage=self.stage(NAMES[plan.bundle]),
            recheck=recheck,
            left_out=left_out,
            stop_traffic=[left.host for left in way.left_out if left.stop_traffic],
            **options,
        )

    def bring(
        self,
        desired,
        *,
        report=None,
        stage=None,
        owner="me",
        clients=None,
        make_store=HostStore,
        at_death=None,
        **options,
    ):
        """
        Run the loop until the fleet is as *desired*, and return the outcome.

        Args:
            make_store: Takes clients, keeper and clock.
        """
        clients = clients or self.clients
        keeper = LeaseKeeper(
            clients,
            owner=owner,
            release=desired.release,
            ttl_s=desired.plan.rules.lease_ttl,
            clock=self.clock,
        )
        self.controller = Controller(
            desired,
            store=make_store(clients, keeper, self.clock),
            keeper=keeper,
            clients=clients,
            stage=stage or (lambda client: StagingSummary()),
            limits=LIMITS,
            clock=self.clock,
            report=report or (lambda event: None),
            **options,
        )
        if at_death is not None:
            keeper.release_all = at_death
        return self.controller.run()

    def release_dying(self, report, killed, bundle="b2"):
        """
        Release *bundle* with an operator whose process ends when *report* raises *killed*.

        Nothing of it runs on: no way back, no renewal, no end of its leases.
        """
        ended = []

        def end_of_process():
            ended.append(True)
            self.clock.cancel_all()
            for client in self.clients.values():
                client.fence = None

        with suppress(killed):
            self.release(bundle, report=report, at_death=end_of_process)
        return ended

    def observed_one(self, name):
        return observed(name, self.clients[name].call(Status()))

    def operator(self, name="you@desk"):
        """
        Return clients of another operator.
        """
        return {
            host: HostClient(transport, actor=name, sudo=False)
            for host, transport in self.transports.items()
        }

    def stored(self):
        """
        Return the desired state as the hosts hold it.
        """
        return HostStore(self.clients, None, self.clock).read()

    def serves(self, name):
        """
        Return the share of each bundle in the host's traffic, in percent.
        """
        system = self.system(name)
        return {
            NAMES[system.linked(slot)]: weight
            for slot, weight in system.proxy.weights.items()
            if weight
        }

    def running(self, name):
        """
        Return the bundles whose slots run.
        """
        system = self.system(name)
        return {NAMES[system.linked(s)] for s in SLOTS if system.unit_of(s).active == "active"}

    def good(self, name):
        return [NAMES[good.bundle] for good in self.observed()[name].good]

    def lease_owner(self, name):
        return self.observed()[name].lease_owner

    def events(self, name):
        """
        Return the steps of the events in the journal of a host.
        """
        from deploy.host.journal import Journal
        from deploy.host.records import Event, from_line

        records = [from_line(line) for _, line in Journal(self.system(name)).lines()]
        return [record.step for record in records if isinstance(record, Event)]

    def last_event(self, name, step):
        """
        Return the data of the last event *step* in the journal of a host.
        """
        from deploy.host.journal import Journal
        from deploy.host.records import Event, from_line

        records = [from_line(line) for _, line in Journal(self.system(name)).lines()]
        return [r.args for r in records if isinstance(r, Event) and r.step == step][-1]

    def touched(self, name):
        """
        Return the verbs that this host was asked for, beside reading it.
        """
        return [verb for verb in self[name].verbs() if verb not in ("status", "measure")]

    def _pass(self, seconds):
        for name, transport in self.transports.items():
            system = transport.system
            system.clock.pass_s(seconds)
            for slot, weight in system.proxy.weights.items():
                if weight == 100:
                    errors = round(self.errors_when_promoted_per_s * seconds)
                    is_new = system.linked(slot) != DIGESTS[self.stable]
                    system.answer(
                        slot, round(self.requests_per_s * seconds), errors if is_new else 0
                    )
                elif weight:
                    requests = round(self.requests_per_s * seconds)
                    if name in self.silent:
                        system.proxy.servers[slot].counters["stot"] += requests
                    else:
                        system.answer(slot, requests, round(self.errors_per_s * seconds))
        self.on_sleep()


@contextmanager
def local_fleet(*names, serving="b1"):
    """
    Yield a fleet of *names*, each serving *serving* from blue.
    """
    with local_hosts(*names) as transports:
        fleet = LocalFleet(transports)
        for transport in transports.values():
            tested = transport.system.layout.deadman_tested
            tested.parent.mkdir(parents=True, exist_ok=True)
            tested.touch()
        if serving:
            fleet.serve(serving)
        yield fleet
